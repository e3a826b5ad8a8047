"""A tiny ModernBERT: one global layer, then two whose window is shorter than the longest input."""

from transformers import ModernBertConfig

from .family_fixture import ANSWERS, INITIALIZER, SIZES, TEXT, hugging_face

FIXTURE = hugging_face(
    lambda: ModernBertConfig(
        **TEXT,
        **SIZES,
        **ANSWERS,
        **INITIALIZER,
        global_attn_every_n_layers=3,
        local_attention=8,
        classifier_pooling="mean",
        reference_compile=False,
    )
)
