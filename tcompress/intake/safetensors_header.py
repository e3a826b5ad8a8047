"""The header of a safetensors file, by every rule of the format, before its own parser sees it."""

import reprlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..errors import InputError, ModelError, StorageError
from .json_documents import parse_json

# The format allows 100 MB; the headers of the largest encoders have 0.2 MB.
MAX_HEADER_BYTES = 32 << 20
MAX_TENSORS = 50_000
MAX_DIMENSIONS = 8
_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"
_KEYS = {"dtype", "shape", "data_offsets"}
_LARGEST = 1 << 48
_REMEDY = "fetch the file again from where it came"
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor.

    Attributes:
        dtype: Name of its type, such as `F32`.
        shape: Its shape.
        offsets: First byte, and the one behind the last, counted from the end of the header.
    """

    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, int]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


def read_header(path: Path, *, error: type[InputError] = ModelError) -> dict[str, TensorInfo]:
    """Read and check the header of a safetensors file; of the rest only its size.

    Args:
        path: A regular file.
        error: What to raise of a bad file.

    Returns:
        The tensors by name.

    Raises:
        InputError: If the file breaks a rule of the format; of the type `error`.
        StorageError: If the system does not let it be read.
    """
    try:
        raw, size = _header_bytes(path)
        origin = f"{path}: damaged or not safetensors: its header"
        document = parse_json(raw, origin, error=error, remedy=_REMEDY)
        return _tensors(document, size)
    except ValueError as fault:
        msg = f"{path}: damaged or not safetensors: {fault}; {_REMEDY}"
        raise error(msg) from fault
    except OSError as fault:
        msg = f"{path}: cannot be read: {fault.strerror or fault}; check its permissions"
        raise StorageError(msg) from fault


def _header_bytes(path: Path) -> tuple[bytes, int]:
    """Return the header, and how many bytes stand behind it."""
    size = path.stat().st_size
    if size < _LENGTH.size:
        msg = f"{size} bytes, the length of its header alone takes {_LENGTH.size}"
        raise ValueError(msg)
    with path.open("rb") as stream:
        (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
        left = size - _LENGTH.size - length
        if length > MAX_HEADER_BYTES or left < 0:
            msg = f"a header of {length:,} bytes in a file of {size:,}"
            raise ValueError(msg)
        raw = stream.read(length)
    if not raw.startswith(b"{"):
        msg = f"its header starts with {raw[:8]!r}, expected '{{'"
        raise ValueError(msg)
    if (count := raw.count(b"data_offsets")) > MAX_TENSORS:
        msg = f"its header names {count:,} tensors, at most {MAX_TENSORS:,} are read"
        raise ValueError(msg)
    return raw, left


def _tensors(document: dict[str, Any], size: int) -> dict[str, TensorInfo]:
    metadata = document.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        msg = f"{_METADATA} must hold texts only"
        raise ValueError(msg)
    if len(document) > MAX_TENSORS:
        msg = f"its header names {len(document):,} tensors, at most {MAX_TENSORS:,} are read"
        raise ValueError(msg)
    tensors = {name: _tensor(name, entry) for name, entry in document.items()}
    _check_contiguous(tensors.items(), size)
    return tensors


def _tensor(name: str, entry: Any) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != _KEYS:
        msg = f"{_short(name)} must have {', '.join(sorted(_KEYS))}"
        raise ValueError(msg)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        msg = f"{_short(name)} has the unknown dtype {_short(dtype)}"
        raise ValueError(msg)
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        msg = f"{_short(name)} has the shape {_short(shape)}"
        raise ValueError(msg)
    if not _are_sizes(offsets) or len(offsets) != 2:
        msg = f"{_short(name)} has the offsets {_short(offsets)}"
        raise ValueError(msg)
    info = TensorInfo(dtype, tuple(shape), (offsets[0], offsets[1]))
    if (bits := info.elements * _BITS[dtype]) != 8 * (offsets[1] - offsets[0]):
        msg = (
            f"{_short(name)} has {offsets[1] - offsets[0]:,} bytes by its offsets, {bits / 8:,.10g}"
            f" by its shape {_short(shape)}"
        )
        raise ValueError(msg)
    return info


def _check_contiguous(tensors: Iterable[tuple[str, TensorInfo]], size: int) -> None:
    """Raise unless every byte behind the header is of exactly one tensor."""
    end = 0
    for name, info in sorted(tensors, key=lambda item: item[1].offsets):
        if info.offsets[0] != end:
            what = "a hole before" if info.offsets[0] > end else "an overlap with"
            msg = f"there is {what} {_short(name)} at byte {min(info.offsets[0], end):,}"
            raise ValueError(msg)
        end = info.offsets[1]
    if end != size:
        what = "are missing" if end > size else "belong to no tensor"
        msg = f"at the end {abs(end - size):,} bytes {what}"
        raise ValueError(msg)


def _are_sizes(values: Any) -> bool:
    if not isinstance(values, list):
        return False
    return all(type(value) is int and 0 <= value < _LARGEST for value in values)


def _short(value: Any) -> str:
    return reprlib.repr(value)
