"""What the tiny image models share."""

import json
from collections.abc import Callable
from pathlib import Path

from transformers import AutoModelForImageClassification, PretrainedConfig

from .family_fixture import FamilyFixture, arrays, hugging_face

SIZE = 16
IMAGES = {"image_size": SIZE, "patch_size": 4, "num_channels": 3}


def image_family(config: Callable[[], PretrainedConfig], processor: str) -> FamilyFixture:
    """Describe a family of image classifiers.

    Args:
        config: Makes the configuration.
        processor: Class of its image processor.
    """

    def preparation(directory: Path) -> None:
        document = {
            "image_processor_type": processor,
            "do_resize": True,
            "size": {"height": SIZE, "width": SIZE},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        }
        (directory / "preprocessor_config.json").write_text(json.dumps(document))

    return hugging_face(
        config,
        model_class=AutoModelForImageClassification,
        preparation=preparation,
        examples=arrays(3, SIZE, SIZE),
    )
