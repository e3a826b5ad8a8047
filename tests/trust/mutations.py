"""Strategies that spoil what was valid: bytes, and the values in documents."""

import json
import tomllib
from collections.abc import Callable, Iterator
from copy import deepcopy
from fractions import Fraction
from typing import Any

import tomli_w
from hypothesis import strategies as st

Path = tuple[str | int, ...]
Spoil = Callable[[bytes], st.SearchStrategy[bytes]]

_MOST = 3  # changes of one input
_FRAGMENTS = (
    *(b"\x00", b"\xff" * 8, b"\x80" * 12, b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\n" * 300),
    *(b'"', b"'", b"\\", b",", b"=1+1", b"NaN", b"-1", b"1e999", b"9" * 400, b"x" * 70_000),
    *(
        b"[" * 2000,
        b'{"a":' * 2000,
        b"../../x",
        b"/dev/zero",
        b"\x1b[31m",
        b"[/red]",
        b"PK\x03\x04",
    ),
)
_VALUES = (
    *(None, True, False, "", "x", "../../x", "/etc/passwd", "\x00", "\ud800", "\x1b[31m", "[/red]"),
    *(0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e308, 1e-320),
    *(float("nan"), float("inf"), "x" * 70_000, "os.system", "torch.float64", "(" * 3000),
    *([], {}, [[]], [None], [-1], {"": None}, {"x": {"x": []}}, ["x"] * 3000, [0] * 3000),
)
_KEYS = ("auto_map", "trust_remote_code", "__class__", "__metadata__", "", "x\x00", "added_tokens")


def spoiled_bytes(content: bytes) -> st.SearchStrategy[bytes]:
    """Flip, insert, delete, duplicate, splice and cut bytes."""
    changes = st.lists(_change_of_bytes(content), min_size=1, max_size=_MOST)
    return changes.map(lambda found: _applied(content, found))


def spoiled_header(content: bytes) -> st.SearchStrategy[bytes]:
    """Do so to the header of a safetensors file alone, mostly to its values."""
    end = 8 + int.from_bytes(content[:8], "little")

    def joined(header: bytes) -> bytes:
        return len(header).to_bytes(8, "little") + header + content[end:]

    values = spoiled_json(content[8:end]).map(joined)
    return st.one_of(values, spoiled_bytes(content[:end]).map(lambda head: head + content[end:]))


def spoiled_json(content: bytes) -> st.SearchStrategy[bytes]:
    """Change values of a document, and at times bytes of its text."""
    values = spoiled_values(json.loads(content)).map(lambda found: json.dumps(found).encode())
    return st.one_of(values, values, spoiled_bytes(content))


def spoiled_lines(content: bytes) -> st.SearchStrategy[bytes]:
    """Change values of a document on one of the lines."""
    lines = content.splitlines()

    def put(at: int) -> st.SearchStrategy[bytes]:
        return spoiled_json(lines[at]).map(
            lambda line: b"\n".join([*lines[:at], line, *lines[at:]])
        )

    return st.one_of(st.integers(0, len(lines) - 1).flatmap(put), spoiled_bytes(content))


def spoiled_toml(content: bytes) -> st.SearchStrategy[bytes]:
    """Change values of a document that TOML can say, and at times bytes of its text."""
    values = spoiled_values(tomllib.loads(content.decode())).map(_as_toml)
    return st.one_of(values.filter(bool), spoiled_bytes(content))


def spoiled_values(document: Any) -> st.SearchStrategy[Any]:
    """Replace, resize, remove, exchange and add values of a document."""
    changes = st.lists(_change_of_values(tuple(_paths(document))), min_size=1, max_size=_MOST)
    return changes.map(lambda found: _applied(deepcopy(document), found))


def _applied(content: Any, changes: list[Callable[[Any], Any]]) -> Any:
    for change in changes:
        content = change(content)
    return content


def _as_toml(document: Any) -> bytes:
    if not isinstance(document, dict):
        return b""
    try:
        return tomli_w.dumps(document).encode()
    except (TypeError, ValueError):  # None, surrogates
        return b""


def _change_of_bytes(content: bytes) -> st.SearchStrategy[Callable[[bytes], bytes]]:
    place, length = st.integers(0, len(content)), st.integers(1, 64)
    fragment = st.one_of(_one_of(_FRAGMENTS), st.binary(min_size=1, max_size=8))
    return st.one_of(
        st.builds(_flipped, place, st.integers(1, 255)),
        st.builds(_replaced, place, st.just(0), fragment),
        st.builds(_replaced, place, length, fragment),
        st.builds(_replaced, place, length, st.just(b"")),
        st.builds(_spliced, place, length, place),
        st.builds(_cut, place),
    )


def _one_of(values: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    """Draw a value; unlike `sampled_from`, it is not described by all of them, which takes long."""
    return st.integers(0, len(values) - 1).map(values.__getitem__)


def _flipped(at: int, mask: int) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:at] + bytes(byte ^ mask for byte in raw[at : at + 1]) + raw[at + 1 :]


def _replaced(at: int, length: int, by: bytes) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:at] + by + raw[at + length :]


def _spliced(source: int, length: int, target: int) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:target] + raw[source : source + length] + raw[target:]


def _cut(at: int) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:at]


def _paths(document: Any, above: Path = ()) -> Iterator[Path]:
    """Yield where values are in a document, the document itself first."""
    yield above
    if isinstance(document, dict):
        for key, value in document.items():
            yield from _paths(value, (*above, key))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from _paths(value, (*above, index))


def _change_of_values(paths: tuple[Path, ...]) -> st.SearchStrategy[Callable[[Any], Any]]:
    path, value = st.sampled_from(paths), _one_of(_VALUES)
    return st.one_of(
        st.builds(_put, path, value.map(lambda found: lambda _: found)),
        st.builds(_put, path, st.sampled_from(_RESIZED)),
        st.builds(_put, path, st.builds(_added, st.sampled_from(_KEYS), value)),
        st.builds(_removed, path),
        st.builds(_exchanged, path, path),
    )


def _resized(factor: float, plus: int) -> Callable[[Any], Any]:
    """Change a number, or how many a list or text holds."""

    def change(value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return int(value * Fraction(factor)) + plus
        if isinstance(value, list | str):
            return value[: len(value) // 2] if factor < 1 else value * 2
        return value * factor if isinstance(value, float) else value

    return change


_RESIZED = tuple(
    _resized(*sizes) for sizes in ((1, 1), (1, -1), (-1, 0), (2, 0), (0.5, 0), (1e6, 0))
)


def _added(key: str, value: Any) -> Callable[[Any], Any]:
    def change(found: Any) -> Any:
        if isinstance(found, dict):
            return found | {key: value}
        return [*found, value] if isinstance(found, list) else found

    return change


def _put(path: Path, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(document: Any) -> Any:
        if not path:
            return change(document)
        holder = _at(document, path[:-1])
        if _holds(holder, path[-1]):
            holder[path[-1]] = deepcopy(change(holder[path[-1]]))
        return document

    return apply


def _removed(path: Path) -> Callable[[Any], Any]:
    def apply(document: Any) -> Any:
        holder = _at(document, path[:-1])
        if path and _holds(holder, path[-1]):
            del holder[path[-1]]
        return document

    return apply


def _exchanged(path: Path, other: Path) -> Callable[[Any], Any]:
    return lambda document: _put(path, lambda _: _at(document, other))(document)


def _at(document: Any, path: Path) -> Any:
    """Return the value at a place, or None where an earlier change took it away."""
    for key in path:
        if not _holds(document, key):
            return None
        document = document[key]
    return document


def _holds(holder: Any, key: str | int) -> bool:
    if isinstance(holder, dict):
        return key in holder
    return isinstance(holder, list) and isinstance(key, int) and key < len(holder)
