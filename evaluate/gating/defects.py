"""Defects that compressed encoders really come with, seeded on purpose.

Some stand in the files, some in what the inputs are turned into, some in how the answers are read.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tcompress import storage
from tcompress.artifact import ENCODER_KIND, MANIFEST_FILE, Manifest, is_artifact
from tcompress.loading import load_encoder
from tcompress.preprocessing import Batch
from tcompress.runtime import MODEL_FILES, ONNX_KIND
from tcompress.writing import writing_artifact

from .sides import Logits

_FACTOR = 8.0
"""By how much a broken scale is off."""


class Place(StrEnum):
    """Where a defect is seeded."""

    FILE = "file"
    INPUTS = "inputs"
    ANSWERS = "answers"


@dataclass(frozen=True)
class Defect:
    """Something that can go wrong.

    Attributes:
        name: What it is called.
        place: Where it is seeded.
        story: How it comes about.
    """

    name: str
    place: Place
    story: str


DEFECTS = (
    Defect("zeroed layer", Place.FILE, "the matrices of the first layer are zero"),
    Defect("broken scale", Place.FILE, f"one matrix of the first layer is {_FACTOR:g} times off"),
    Defect("swapped inputs", Place.INPUTS, "token ids and attention mask change places"),
    Defect("swapped mask", Place.INPUTS, "attention mask and token types change places"),
    Defect("shifted tokens", Place.INPUTS, "a tokenizer with another vocabulary"),
    Defect("permuted labels", Place.ANSWERS, "every label stands for the next one"),
    Defect("constant answer", Place.ANSWERS, "the first label, whatever the example"),
    Defect("not finite", Place.ANSWERS, "one answer in a hundred is not a number"),
)


def damage_inputs(name: str, batch: Batch) -> Batch:
    """Return a batch as a defect of that name leaves it.

    Args:
        name: `swapped inputs`, `swapped mask` or `shifted tokens`.
        batch: Arrays by input name; `swapped mask` needs `token_type_ids`.
    """
    mask = "attention_mask"
    ids, *others = (key for key in batch if key != mask)
    if name == "shifted tokens":
        return {**batch, ids: _shifted(batch[ids])}
    if name == "swapped mask":
        return {**batch, mask: batch[others[0]], others[0]: batch[mask]}
    if batch[ids].ndim == 4:
        return {**batch, ids: np.ascontiguousarray(batch[ids].swapaxes(2, 3))}
    if batch[ids].ndim == 3:  # features and a mask cannot be confused; two features can
        return {**batch, ids: np.ascontiguousarray(batch[ids][..., ::-1])}
    return {**batch, mask: batch[ids], ids: batch[mask]}


def damage_answers(name: str, logits: Logits) -> Logits:
    """Return answers as a defect of that name leaves them.

    Args:
        name: `permuted labels`, `constant answer` or `not finite`.
        logits: `(examples, classes)`.
    """
    damaged = np.array(logits)
    if name == "permuted labels":
        return np.roll(damaged, 1, axis=1)
    if name == "constant answer":
        damaged[:] = 0
        damaged[:, 0] = 1
    else:
        damaged[::100, 0] = np.nan
    return damaged


def fits_inputs(name: str, names: Iterable[str]) -> bool:
    """Tell whether a model has the inputs that a defect damages.

    Args:
        name: A defect of inputs.
        names: The model's inputs.
    """
    return name != "swapped mask" or "token_type_ids" in names


def can_damage_file(directory: Path) -> bool:
    """Tell whether defects can be seeded into what stands in a directory.

    Args:
        directory: A model directory or an artifact.
    """
    return not is_artifact(directory) or Manifest.read(directory).kind in (ENCODER_KIND, ONNX_KIND)


def write_damaged(name: str, directory: Path, target: Path) -> bool:
    """Write a copy of an artifact with a defect in its file.

    Args:
        name: `zeroed layer` or `broken scale`.
        directory: A model directory, an encoder artifact or an ONNX artifact.
        target: Directory of the copy, which must not exist.

    Returns:
        Whether there was something to damage.
    """
    if is_artifact(directory):
        manifest = Manifest.read(directory)
        with writing_artifact(target) as draft:
            if manifest.kind == ONNX_KIND:
                changed = _copy_onnx(name, directory, draft.directory)
            else:
                changed = _save_encoder(name, directory, draft.directory)
            draft.manifest = replace(manifest, files={})
        return changed
    storage.make_directory(target)
    return _save_encoder(name, directory, target)


def _shifted(values: Any) -> Any:
    if values.ndim == 3:
        return np.roll(values, 1, axis=2)
    return np.where(values < values.max(), values + 1, values)


def _save_encoder(name: str, directory: Path, target: Path) -> bool:
    import torch

    encoder = load_encoder(directory)
    layer = encoder.anatomy.layers[0]
    whole = (*layer.projections(), layer.output, layer.ffn_in, layer.ffn_out)
    damaged = (layer.ffn_out,) if name == "broken scale" else whole
    changed = any(bool(linear.weight.any()) for linear in damaged)
    with torch.no_grad():
        for linear in damaged:
            linear.weight.mul_(_FACTOR if name == "broken scale" else 0)
    encoder.save(target)
    return changed


def _copy_onnx(name: str, directory: Path, target: Path) -> bool:
    import onnx
    from onnx import numpy_helper

    model_file = MODEL_FILES[ONNX_KIND]
    for path in directory.iterdir():
        if path.name not in (model_file, MANIFEST_FILE):
            storage.copy_file(path, target / path.name)
    model = onnx.load(directory / model_file)
    change = _broken if name == "broken scale" else _zeroed
    changed = False
    for tensor in model.graph.initializer:
        before = numpy_helper.to_array(tensor)
        after = change(tensor.name)(before)
        changed |= not np.array_equal(before, after)
        tensor.CopyFrom(numpy_helper.from_array(after, tensor.name))
    storage.write_with(target / model_file, partial(onnx.save, model))
    return changed


def _zeroed(name: str) -> Callable[[Any], Any]:
    is_matrix = name.startswith("layer.0.") and "norm" not in name and ".weight" in name
    return np.zeros_like if is_matrix and not name.endswith("_scale") else lambda value: value


def _broken(name: str) -> Callable[[Any], Any]:
    stem = "layer.0.feed_forward.out.weight"
    is_it = name in (stem, f"{stem}_scale")
    return (lambda value: value * value.dtype.type(_FACTOR)) if is_it else lambda value: value
