"""A tiny ALBERT: one layer applied three times, behind a factorized embedding."""

from transformers import AlbertConfig

from .family_fixture import ANSWERS, INITIALIZER, SIZES, TEXT, hugging_face

FIXTURE = hugging_face(
    lambda: AlbertConfig(
        **TEXT, **SIZES, **ANSWERS, **INITIALIZER, embedding_size=16, num_hidden_groups=1
    )
)
