"""The weights of a model directory: one safetensors file, or parts that an index lists."""

import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import ModelError
from .files import checked_file, is_there
from .json_documents import read_json
from .pickles import pickles_in
from .safetensors_header import TensorInfo, read_header

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_BYTES = 64 << 30
MAX_PARTS = 1_000
_PART = re.compile(r"\w[\w.-]{0,200}\.safetensors", re.ASCII)
# What other libraries pack into other types means nothing without their scales.
_PLAIN = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}
_MISSING = "save the model in safetensors form"
_INDEX_REMEDY = "take the index and its parts from where they came, or save the model as one file"


def weight_names(directory: Path, name: str = WEIGHTS_FILE) -> tuple[str, ...]:
    """Return which files of a directory hold its weights, an index first where there is one.

    Args:
        directory: A model directory.
        name: The file of weights where they are one, below the directory.

    Raises:
        ModelError: If there are none, or one of them may not be opened.
    """
    if is_there(directory / name):
        checked_file(directory, name, limit_bytes=MAX_BYTES)
        return (name,)
    if name != WEIGHTS_FILE or not is_there(directory / INDEX_FILE):
        raise ModelError(_missing(directory, name))
    parts = dict.fromkeys(_weight_map(directory).values())
    for part in parts:
        checked_file(directory, part, limit_bytes=MAX_BYTES, remedy=_INDEX_REMEDY)
    return (INDEX_FILE, *parts)


def read_headers(directory: Path, name: str = WEIGHTS_FILE) -> dict[str, TensorInfo]:
    """Return what a directory's weights are, of which nothing is loaded.

    Args:
        directory: A model directory.
        name: The file of weights where they are one, below the directory.

    Raises:
        ModelError: If a file of them is bad, or they do not fit their index.
    """
    return {tensor: info for _, header in _headers(directory, name) for tensor, info in header}


def read_weights(directory: Path, name: str = WEIGHTS_FILE) -> dict[str, Tensor]:
    """Load a directory's weights, those of floating point as float32.

    Args:
        directory: A model directory.
        name: The file of weights where they are one, below the directory.

    Raises:
        ModelError: If a file of them is bad, or they do not fit their index.
    """
    state: dict[str, Tensor] = {}
    for path, header in _headers(directory, name):
        _check_types(path, header)
        try:
            state |= load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            msg = f"{path}: damaged or not safetensors: {error}"
            raise ModelError(msg) from error
    return {
        name: value.float() if value.is_floating_point() else value for name, value in state.items()
    }


def _missing(directory: Path, name: str) -> str:
    if not directory.is_dir():
        return f"{directory}: no such model directory"
    pickled = next(pickles_in((directory / name).parent), None)
    if pickled is None:
        return f"{directory}: no {name} in it; {_MISSING}"
    return (
        f"{directory}: its weights are in {pickled.name}, a pickle, which may run code where it is "
        f"read; convert it to {name}, or let `tcompress init MODEL --data FILE "
        "--allow-pickle-weights` do so, which runs none of it"
    )


_Header = list[tuple[str, TensorInfo]]


def _headers(directory: Path, name: str) -> Iterator[tuple[Path, _Header]]:
    names = weight_names(directory, name)
    files = {part: read_header(directory / part) for part in names if part != INDEX_FILE}
    if INDEX_FILE in names:
        _check_parts(directory / INDEX_FILE, _weight_map(directory), files)
    for part, header in files.items():
        yield directory / part, list(header.items())


def _weight_map(directory: Path) -> dict[str, str]:
    """Return in which part each tensor is, as the index says."""
    path = checked_file(directory, INDEX_FILE, limit_bytes=MAX_BYTES)
    found: Any = read_json(path, remedy=_INDEX_REMEDY).get("weight_map")
    if not isinstance(found, dict) or not found:
        msg = f"{path}: 'weight_map' must say which file holds each tensor; {_INDEX_REMEDY}"
        raise ModelError(msg)
    for part in found.values():
        if not isinstance(part, str) or _PART.fullmatch(part) is None:
            msg = (
                f"{path}: {reprlib.repr(part)} is no name of a safetensors file in the directory; "
                f"{_INDEX_REMEDY}"
            )
            raise ModelError(msg)
    if (count := len(set(found.values()))) > MAX_PARTS:
        msg = f"{path}: {count:,} parts, at most {MAX_PARTS:,} are read; {_INDEX_REMEDY}"
        raise ModelError(msg)
    return found


def _check_parts(
    index: Path, listed: Mapping[str, str], files: Mapping[str, Mapping[str, TensorInfo]]
) -> None:
    """Raise unless each tensor is in the part that the index says, and in no other."""
    for part, header in files.items():
        for tensor in header:
            if (home := listed.get(tensor)) != part:
                what = "not listed" if home is None else f"listed to be in {home}"
                msg = f"{index}: {part} holds {reprlib.repr(tensor)}, {what}; {_INDEX_REMEDY}"
                raise ModelError(msg)
    for tensor, part in listed.items():
        if tensor not in files[part]:
            msg = f"{index}: {part} does not hold {reprlib.repr(tensor)}; {_INDEX_REMEDY}"
            raise ModelError(msg)


def _check_types(path: Path, header: _Header) -> None:
    for tensor, info in header:
        if info.dtype not in _PLAIN:
            msg = (
                f"{path}: {reprlib.repr(tensor)} is of type {info.dtype}, which needs the library "
                "that packed it; save the model in float32, bfloat16 or float16"
            )
            raise ModelError(msg)
