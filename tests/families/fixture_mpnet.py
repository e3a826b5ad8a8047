"""A tiny MPNet: relative positions in buckets, the same in every layer."""

from transformers import MPNetConfig

from .family_fixture import ANSWERS, INITIALIZER, SIZES, TEXT, hugging_face

FIXTURE = hugging_face(lambda: MPNetConfig(**TEXT, **SIZES, **ANSWERS, **INITIALIZER))
