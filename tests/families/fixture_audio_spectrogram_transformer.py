"""A tiny Audio Spectrogram Transformer: overlapping patches."""

import json
from pathlib import Path

from transformers import ASTConfig, AutoModelForAudioClassification

from .family_fixture import ANSWERS, INITIALIZER, SIZES, arrays, hugging_face

FRAMES, BINS = 16, 16


def _write_extractor(directory: Path) -> None:
    document = {
        "feature_extractor_type": "ASTFeatureExtractor",
        "feature_size": 1,
        "max_length": FRAMES,
        "num_mel_bins": BINS,
        "sampling_rate": 16000,
        "do_normalize": True,
        "mean": 0.0,
        "std": 0.5,
        "padding_value": 0.0,
        "return_attention_mask": False,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(document))


FIXTURE = hugging_face(
    lambda: ASTConfig(
        **SIZES,
        **ANSWERS,
        **INITIALIZER,
        patch_size=4,
        frequency_stride=3,
        time_stride=3,
        max_length=FRAMES,
        num_mel_bins=BINS,
    ),
    model_class=AutoModelForAudioClassification,
    preparation=_write_extractor,
    examples=arrays(FRAMES, BINS),
)
