"""Arrays from NPZ and safetensors files."""

import zipfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, InputError, StorageError
from ..intake import read_header, regular_file
from .examples import Examples

Arrays = Mapping[str, npt.NDArray[Any]]
TENSOR_SUFFIXES = (".npz", ".safetensors")
MAX_BYTES = 1 << 40
MAX_ARRAYS = 64
# An archive of many equal numbers is packed well; one that fills the memory is not opened.
MAX_GROWTH = 32
FREE_BYTES = 256 << 20


def read_tensors(path: Path, kind: str, slices: Sequence[str]) -> Examples:
    """Read the arrays `inputs`, and where they are there `labels`, `mask`, `ids`.

    Args:
        path: The file.
        kind: Its suffix.
        slices: Names of arrays by whose values accuracy is also told apart.

    Raises:
        DataError: If the file is damaged, or its arrays do not fit each other.
    """
    arrays = _load(path, kind)
    _check_inputs(path, arrays)
    _check_dimensions(path, arrays)
    _check_mask(path, arrays)
    inputs, labels, ids = arrays["inputs"], arrays.get("labels"), arrays.get("ids")
    several = labels is not None and labels.ndim == 2
    return Examples(
        origin=str(path),
        ids=tuple(str(i) for i in (range(len(inputs)) if ids is None else ids)),
        labels=None if labels is None or several else tuple(str(label) for label in labels),
        label_sets=None if labels is None or not several else _label_sets(path, labels),
        inputs=inputs,
        mask=arrays.get("mask"),
        slices={name: _slice_array(path, arrays, name) for name in slices},
    )


def _load(path: Path, kind: str) -> Arrays:
    regular_file(path, limit_bytes=MAX_BYTES, error=DataError, remedy="name another file")
    try:
        if kind == ".safetensors":
            from safetensors.numpy import load_file

            read_header(path, error=DataError)
            return dict(load_file(path))
        _check_archive(path)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (InputError, StorageError):
        raise
    except Exception as error:  # the parsers raise many kinds for a damaged file
        msg = f"{path}: cannot be read as {kind[1:]}: {error}"
        raise DataError(msg) from error


def _check_archive(path: Path) -> None:
    """Check what the members of an archive say of themselves, before room is made for them."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        size, packed = sum(member.file_size for member in members), path.stat().st_size
        if len(members) > MAX_ARRAYS or size > MAX_GROWTH * packed + FREE_BYTES:
            msg = f"{len(members):,} arrays of {size:,} bytes, packed in {packed:,}"
            raise ValueError(msg)
        if len({member.filename for member in members}) < len(members):
            msg = "two arrays have the same name"
            raise ValueError(msg)
        for member in members:
            with archive.open(member) as stream:
                _check_array(member, stream)


def _check_array(member: zipfile.ZipInfo, stream: IO[bytes]) -> None:
    version = np.lib.format.read_magic(stream)
    formats = np.lib.format
    read = {(1, 0): formats.read_array_header_1_0, (2, 0): formats.read_array_header_2_0}
    if version not in read:
        msg = f"{member.filename!r} is of version {version} of the format"
        raise ValueError(msg)
    shape, _, dtype = read[version](stream)
    if dtype.hasobject:
        msg = f"{member.filename!r} holds Python objects, which are never unpickled"
        raise ValueError(msg)
    if stream.tell() + prod(shape) * dtype.itemsize != member.file_size:
        msg = f"{member.filename!r} has {member.file_size:,} bytes, which are not {dtype}{shape}"
        raise ValueError(msg)


def _check_inputs(path: Path, arrays: Arrays) -> None:
    if "inputs" not in arrays:
        msg = f"{path}: no array 'inputs'; it has: {', '.join(sorted(arrays))}"
        raise DataError(msg)
    inputs = arrays["inputs"]
    if inputs.ndim not in (2, 3, 4):
        msg = (
            f"{path}: 'inputs' must be (examples, tokens) ids, (examples, tokens, features) or "
            f"images (examples, channels, height, width), got shape {inputs.shape}"
        )
        raise DataError(msg)
    if inputs.dtype.kind not in "fiu":
        msg = f"{path}: 'inputs' must be floats or whole numbers, got {inputs.dtype}; convert them"
        raise DataError(msg)
    if 0 in inputs.shape[1:]:
        msg = f"{path}: 'inputs' of shape {inputs.shape} hold nothing; save at least one token each"
        raise DataError(msg)
    for name in ("labels", "mask", "ids"):
        if name in arrays and arrays[name].shape[:1] != inputs.shape[:1]:
            shape = arrays[name].shape
            found = str(shape[0]) if shape else "no examples"
            msg = f"{path}: 'inputs' has {len(inputs)} examples, {name!r} has {found}"
            raise DataError(msg)
    if inputs.dtype.kind == "f" and not _is_finite(inputs):
        msg = (
            f"{path}: 'inputs' holds values that are not finite in float32, which models read; "
            "repair them"
        )
        raise DataError(msg)


def _is_finite(inputs: npt.NDArray[Any]) -> bool:
    with np.errstate(over="ignore"):
        return all(np.isfinite(example.astype(np.float32)).all() for example in inputs)


def _check_dimensions(path: Path, arrays: Arrays) -> None:
    for name, most in (("labels", 2), ("ids", 1)):
        if name in arrays and arrays[name].ndim > most:
            expected = "(examples,)" if most == 1 else "(examples,) or (examples, labels)"
            msg = f"{path}: {name!r} must be {expected}, got shape {arrays[name].shape}"
            raise DataError(msg)


def _check_mask(path: Path, arrays: Arrays) -> None:
    mask, inputs = arrays.get("mask"), arrays["inputs"]
    if mask is None:
        return
    if inputs.ndim == 4:
        msg = f"{path}: 'mask' goes with tokens; images {inputs.shape} have none"
        raise DataError(msg)
    if mask.shape != inputs.shape[:2]:
        msg = f"{path}: 'mask' must be (examples, tokens)={inputs.shape[:2]}, got {mask.shape}"
        raise DataError(msg)
    if mask.dtype.kind not in "bfiu" or not np.isin(mask, (0, 1)).all():
        msg = f"{path}: 'mask' must hold 0 and 1 only, 1 at real tokens; it is of {mask.dtype}"
        raise DataError(msg)
    if not (mask != 0).any(axis=1).all():
        msg = f"{path}: 'mask' leaves an example without any token"
        raise DataError(msg)


def _label_sets(path: Path, labels: npt.NDArray[Any]) -> tuple[tuple[str, ...], ...]:
    if labels.dtype.kind not in "bfiu" or not np.isin(labels, (0, 1)).all():
        msg = f"{path}: 'labels' of shape {labels.shape} must hold 0 and 1 only, one column a label"
        raise DataError(msg)
    return tuple(tuple(str(i) for i in np.flatnonzero(row)) for row in labels)


def _slice_array(path: Path, arrays: Arrays, name: str) -> tuple[str, ...]:
    if name not in arrays:
        msg = f"{path}: no array {name!r}; it has: {', '.join(sorted(arrays))}"
        raise DataError(msg)
    expected, found = (len(arrays["inputs"]),), arrays[name].shape
    if found != expected:
        msg = (
            f"{path}: {name!r} must have one value per example, (examples,)={expected}, got {found}"
        )
        raise DataError(msg)
    return tuple(str(value) for value in arrays[name])
