"""A tiny DeiT on images of 16 patches: a distillation token beside the class token."""

from transformers import DeiTConfig

from .family_fixture import ANSWERS, INITIALIZER, SIZES
from .image_fixture import IMAGES, image_family

FIXTURE = image_family(
    lambda: DeiTConfig(
        **SIZES,
        **ANSWERS,
        **INITIALIZER,
        **IMAGES,
        architectures=["DeiTForImageClassification"],
    ),
    "DeiTImageProcessor",
)
