"""A tiny DeBERTa-v2 with the settings of the published v3 models."""

from transformers import DebertaV2Config

from .family_fixture import ANSWERS, INITIALIZER, SIZES, TEXT, hugging_face

FIXTURE = hugging_face(
    lambda: DebertaV2Config(
        **TEXT,
        **SIZES,
        **ANSWERS,
        **INITIALIZER,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=8,
        max_relative_positions=-1,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        pooler_hidden_size=32,
    )
)
