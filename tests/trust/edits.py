"""Changes to files, drawn by hypothesis: of their bytes, and of the values in a document."""

import copy
import json
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any

from hypothesis import strategies as st

TOKENS = (
    *(b"", b"\x00", b"\xff", b"\r\n", b"\xef\xbb\xbf", b"\xf0\x9f\x98\x80", b"\\ud800", b"\\u0000"),
    *(b"9" * 5000, b"1e999", b"-", b"NaN", b"null", b"[" * 200, b"{", b"]", b"}", b'"', b",", b"="),
)
HOSTILE = (
    *(0, -1, 1, 2, 255, 1 << 31, 1 << 63, (1 << 64) - 1, 10**30, -(10**30), 10**400),
    *(0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"), True, False, None),
    *("", " ", "\x00", "\ud800", "x" * 5000, "../x", "/dev/zero", "1", "NaN", "\x1b[31m", "a\nb"),
    *([], {}, [[]], [None], [0], ["a", "a"], {"": {}}, {"a": [{"b": None}]}, [[[[[[[[0]]]]]]]]),
)
"""Values that a reader may not expect."""


class Edit(StrEnum):
    """What is done to bytes, or to a document."""

    FLIP = "flip"
    INSERT = "insert"
    DELETE = "delete"
    DUPLICATE = "duplicate"
    SPLICE = "splice"


Bytes = tuple[Edit, int, int, bytes]
"""What, where, where else or how much, and what is put there."""
Values = tuple[Edit, int, int, Any]
"""Likewise, places counted from the root of a document."""

_PLACES = st.integers(0, 255) | st.integers(0, 1 << 14)
_KINDS = st.sampled_from(Edit)


def bytes_edits() -> st.SearchStrategy[list[Bytes]]:
    """Return a strategy of one to four changes of bytes."""
    put = st.sampled_from(TOKENS) | st.binary(max_size=12)
    return st.lists(st.tuples(_KINDS, _PLACES, _PLACES, put), min_size=1, max_size=4)


def value_edits() -> st.SearchStrategy[list[Values]]:
    """Return a strategy of one or two changes of values."""
    put = st.sampled_from(HOSTILE)
    places = st.integers(0, 1 << 10)
    return st.lists(st.tuples(_KINDS, places, places, put), min_size=1, max_size=2)


def change_bytes(raw: bytes, edits: Sequence[Bytes]) -> bytes:
    """Change bytes, one edit after the other."""
    for kind, place, other, put in edits:
        at, size = place % (len(raw) + 1), other % 64
        if kind is Edit.FLIP:
            raw = raw[:at] + bytes(b ^ (1 << other % 8) for b in raw[at : at + 1]) + raw[at + 1 :]
        elif kind is Edit.INSERT:
            raw = raw[:at] + put + raw[at:]
        elif kind is Edit.DELETE:
            raw = raw[:at] + raw[at + size :]
        elif kind is Edit.DUPLICATE:
            raw = raw[: at + size] + raw[at:]
        else:
            start = other % (len(raw) + 1)
            raw = raw[:at] + raw[start : start + 32] + raw[at + len(put) :]
    return raw


def change_values(document: Any, edits: Sequence[Values]) -> Any:
    """Change a document's values, one edit after the other; returns another document."""
    root = {"": copy.deepcopy(document)}
    for kind, place, other, put in edits:
        places = list(_places(root))
        holder, key = places[place % len(places)]
        source, name = places[other % len(places)]
        if kind in (Edit.FLIP, Edit.INSERT) or holder is root:
            holder[key] = copy.deepcopy(put)
        elif kind is Edit.DELETE:
            del holder[key]
        elif kind is Edit.SPLICE:
            holder[key] = copy.deepcopy(source[name])
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[str(put)[:64]] = copy.deepcopy(holder[key])
    return root[""]


def _places(holder: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    for key in keys:
        yield holder, key
        if isinstance(holder[key], dict | list):
            yield from _places(holder[key])


def composed_json(document: Any) -> bytes:
    """Write JSON, of values that JSON has not, too."""
    return json.dumps(document).encode()


def without_none(value: Any) -> Any:
    """Return what TOML can say of a document."""
    if isinstance(value, dict):
        return {name: without_none(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_none(inner) for inner in value if inner is not None]
    return value
