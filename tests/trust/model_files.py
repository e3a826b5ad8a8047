"""Copies of seed models, and single files of them spoiled."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .case import Seeds

WEIGHTS, CONFIG = "model.safetensors", "config.json"
Build = Callable[[Seeds, Path], Path]


def copied(model: Path, directory: Path) -> Path:
    """Copy a model directory."""
    return Path(shutil.copytree(model, directory / "model"))


def bert_with(spoil: Callable[[Path], object]) -> Build:
    """Build a copy of the tiny BERT that is then spoiled in place."""

    def build(seeds: Seeds, directory: Path) -> Path:
        model = copied(seeds.bert, directory)
        spoil(model)
        return model

    return build


def with_weights(spoil: Callable[[bytes], bytes]) -> Build:
    """Build a tiny BERT with other bytes as weights."""

    def change(model: Path) -> None:
        path = model / WEIGHTS
        path.write_bytes(spoil(path.read_bytes()))

    return bert_with(change)


def with_state(spoil: Callable[[dict[str, Tensor]], object]) -> Build:
    """Build a tiny BERT with other values as weights."""

    def change(model: Path) -> None:
        state = load_file(model / WEIGHTS)
        spoil(state)
        save_file(state, model / WEIGHTS)

    return bert_with(change)


def with_config(**changes: Any) -> Build:
    """Build a tiny BERT with other values in its configuration."""
    return bert_with(lambda model: edit(model / CONFIG, lambda document: document.update(changes)))


def with_config_bytes(spoil: Callable[[bytes], bytes]) -> Build:
    """Build a tiny BERT with other bytes as configuration."""

    def change(model: Path) -> None:
        (model / CONFIG).write_bytes(spoil((model / CONFIG).read_bytes()))

    return bert_with(change)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON file."""
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def header_of(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """Take a safetensors file apart: header and buffer."""
    (length,) = struct.unpack_from("<Q", raw)
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def joined(header: bytes, buffer: bytes = b"") -> bytes:
    """Put a safetensors file together."""
    return struct.pack("<Q", len(header)) + header + buffer


def with_header(spoil: Callable[[dict[str, Any]], object]) -> Build:
    """Build a tiny BERT whose weights have another header before the same bytes."""

    def change(raw: bytes) -> bytes:
        document, buffer = header_of(raw)
        spoil(document)
        return joined(json.dumps(document).encode(), buffer)

    return with_weights(change)


def with_tensor(name: str, dtype: str, shape: list[int], size: int) -> Build:
    """Build a tiny BERT whose weights have one more tensor, of zeros."""

    def change(raw: bytes) -> bytes:
        document, buffer = header_of(raw)
        offsets = [len(buffer), len(buffer) + size]
        document[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        return joined(json.dumps(document).encode(), buffer + bytes(size))

    return with_weights(change)


def write_parts(model: Path) -> Path:
    """Save weights as two parts with an index, whose path is returned."""
    state = load_file(model / WEIGHTS)
    names, weight_map = sorted(state), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, model / file)
        weight_map |= dict.fromkeys(part, file)
    (model / WEIGHTS).unlink()
    index = model / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def fill(value: float) -> Callable[[Tensor], Tensor]:
    """Give all numbers of a tensor one value."""
    return lambda tensor: tensor.fill_(value)


def first(value: float) -> Callable[[Tensor], Tensor]:
    """Give the first number of a tensor a value."""

    def change(tensor: Tensor) -> Tensor:
        with torch.no_grad():
            tensor.view(-1)[0] = value
        return tensor

    return change
