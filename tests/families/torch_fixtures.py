"""Tiny classifiers around `torch.nn.TransformerEncoder`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tcompress.data import Examples
from tcompress.transformer import ARCHITECTURE_FILE, TransformerClassifier, TransformerSpec

from .family_fixture import LABELS, FamilyFixture, arrays, stir_

FEATURES = 5
WEIGHTS = "model.safetensors"


def torch_family(name: str, **settings: Any) -> FamilyFixture:
    """Describe a form of `torch.nn.TransformerEncoder`.

    Args:
        name: Its row in the support table.
        settings: Fields of its `TransformerSpec`.
    """

    def write(directory: Path, seed: int) -> None:
        torch.manual_seed(seed)
        sizes = {"d_model": 32, "num_heads": 4, "feed_forward_size": 48, "num_layers": 3}
        spec = TransformerSpec(
            labels=LABELS, feature_size=FEATURES, max_positions=24, **sizes, **settings
        )
        model = TransformerClassifier(spec)
        stir_(model)
        directory.mkdir(parents=True, exist_ok=True)
        spec.write(directory / ARCHITECTURE_FILE)
        save_file(model.state_dict(), directory / WEIGHTS)

    return FamilyFixture(name, None, write, padded_arrays, _reference)


def padded_arrays(count: int) -> Examples:
    """Make labelled sequences of 2 to 11 steps, the shortest first."""
    examples = arrays(11, FEATURES)(count)
    lengths = np.array([2 + i % 10 for i in range(count)])
    mask = (np.arange(11) < lengths[:, None]).astype(np.int64)
    return Examples(
        examples.origin, examples.ids, labels=examples.labels, inputs=examples.inputs, mask=mask
    )


def _reference(directory: Path) -> Callable[[dict[str, Tensor]], Tensor]:
    model = TransformerClassifier(TransformerSpec.read(directory / ARCHITECTURE_FILE))
    model.load_state_dict(load_file(directory / WEIGHTS))
    model.eval()
    return lambda inputs: model(inputs["inputs"], inputs["attention_mask"])


FIXTURES = (
    torch_family("torch-post-norm", positions="sinusoidal", activation="relu"),
    torch_family("torch-pre-norm", norm_first=True, positions="learned", activation="gelu"),
    torch_family("torch-sequence-first", batch_first=False, pooling="first", positions="none"),
)
