"""A tiny ViT on images of 16 patches."""

from transformers import ViTConfig

from .family_fixture import ANSWERS, INITIALIZER, SIZES
from .image_fixture import IMAGES, image_family

FIXTURE = image_family(
    lambda: ViTConfig(**SIZES, **ANSWERS, **INITIALIZER, **IMAGES), "ViTImageProcessor"
)
