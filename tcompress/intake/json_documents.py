"""Reading JSON that somebody else wrote: of sane size and depth, unambiguous, finite numbers."""

import json
import math
import re
import reprlib
from collections import Counter
from pathlib import Path
from typing import Any, Never

from ..errors import InputError, ModelError, StorageError

LIMIT_BYTES = 16 << 20
MAX_DEPTH = 64
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_BRACKETS = re.compile(rf"{_STRING}|([\[{{])|([\]}}])", re.DOTALL)
_CONSTANTS = re.compile(rf"{_STRING}|(NaN|-?Infinity)", re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_FORMS = {dict: "an object", list: "a list", object: "a value"}


def read_json(
    path: Path,
    *,
    limit_bytes: int = LIMIT_BYTES,
    error: type[InputError] = ModelError,
    expected: type = dict,
    remedy: str = "restore the file",
) -> Any:
    """Read a JSON document.

    Args:
        path: A regular file.
        limit_bytes: Largest size; more is not read.
        error: What to raise of a bad document.
        expected: `dict`, `list`, or `object` where any value will do.
        remedy: What the user can do about a bad document, as the end of the message.

    Raises:
        InputError: If it is not there, or not such a document; of the type `error`.
        StorageError: If the system does not let it be read.
    """
    try:
        if not path.is_file():
            found = "is not a regular file" if path.exists() else "is not there"
            msg = f"{path}: {found}; {remedy}"
            raise error(msg)
        with path.open("rb") as stream:
            raw = stream.read(limit_bytes + 1)
    except OSError as fault:
        msg = f"{path}: cannot be read: {fault.strerror or fault}; check its permissions"
        raise StorageError(msg) from fault
    if len(raw) > limit_bytes:
        msg = f"{path}: larger than the {limit_bytes:,} bytes that it may have; {remedy}"
        raise error(msg)
    return parse_json(raw, str(path), error=error, expected=expected, remedy=remedy)


def parse_json(
    raw: bytes,
    origin: str,
    *,
    error: type[InputError] = ModelError,
    expected: type = dict,
    remedy: str = "restore the file",
) -> Any:
    """Read a JSON document from bytes.

    Args:
        raw: The bytes.
        origin: Where they are from, as the start of messages.
        error: What to raise of a bad document.
        expected: `dict`, `list`, or `object` where any value will do.
        remedy: What the user can do about a bad document, as the end of the message.

    Raises:
        InputError: If it is not such a document; of the type `error`.
    """
    try:
        document = _parse(_decoded(raw))
    except json.JSONDecodeError as fault:
        where = f"line {fault.lineno}, column {fault.colno}"
        msg = f"{origin}: not valid JSON: {fault.msg} at {where}; {remedy}"
        raise error(msg) from fault
    except ValueError as fault:
        msg = f"{origin}: not valid JSON: {fault}; {remedy}"
        raise error(msg) from fault
    if not isinstance(document, expected):
        msg = (
            f"{origin}: it holds a {type(document).__name__}, expected {_FORMS[expected]}; {remedy}"
        )
        raise error(msg)
    return document


def _decoded(raw: bytes) -> str:
    if not raw.strip():
        msg = "it is empty"
        raise ValueError(msg)
    if (encoding := json.detect_encoding(raw)) != "utf-8":
        msg = f"its encoding is {encoding}, expected UTF-8 without a byte order mark"
        raise ValueError(msg)
    try:
        return raw.decode()
    except UnicodeDecodeError as fault:
        msg = f"byte {fault.start} is not UTF-8"
        raise ValueError(msg) from fault


def _parse(text: str) -> Any:
    _check_depth(text)

    def refuse(constant: str) -> Never:
        places = (found.start(1) for found in _CONSTANTS.finditer(text) if found[1])
        raise json.JSONDecodeError(constant, text, next(places))

    document = json.loads(
        text, object_pairs_hook=_unique, parse_constant=refuse, parse_float=_finite
    )
    if _SURROGATE.search(text):  # half a character can be read but never be written
        json.dumps(document, ensure_ascii=False).encode()
    return document


def _check_depth(text: str) -> None:
    """Raise where brackets nest too deep, before a parser that calls itself sees them."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for found in _BRACKETS.finditer(text):
        depth += (found[1] is not None) - (found[2] is not None)
        if depth > MAX_DEPTH:
            msg = f"nested more than {MAX_DEPTH} deep"
            raise json.JSONDecodeError(msg, text, found.start())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        msg = f"key {reprlib.repr(twice)} stands twice in one object"
        raise ValueError(msg)
    return document


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        msg = f"the number {reprlib.repr(number)} is too large"
        raise ValueError(msg)
    return value
