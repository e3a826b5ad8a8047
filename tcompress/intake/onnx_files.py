"""ONNX files, before any library reads them: their structure is walked here, their numbers skipped.

A file is a protobuf: fields of a number and a value each, values of messages fields again. What a
walk over them needs is a few kilobytes of even a large model, so the file is mapped, not read.

Reference:
    https://protobuf.dev/programming-guides/encoding and `onnx.proto` of ONNX, IR version 13.
"""

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..errors import ArtifactError

_LIMIT_BYTES = (1 << 31) - 1
"""No protobuf may be larger."""
_MOST_NODES, _MOST_TENSORS, _MOST_DEPTH = 100_000, 50_000, 8
_MOST_FIELDS = 250_000
"""In all messages together; a model of six layers has five thousand."""
_MOST_DIMS, _NAME_BYTES = 16, 4096
_IR_VERSIONS = range(3, 15)
_OPSETS = {"": range(7, 31), "com.microsoft": range(1, 2)}
_DOMAINS = {"": "", "ai.onnx": "", "com.microsoft": "com.microsoft"}
_CONTRIBUTED = frozenset(
    {"Attention", "BiasGelu", "DynamicQuantizeMatMul", "EmbedLayerNormalization", "FastGelu"}
    | {"FusedMatMul", "Gelu", "MatMulIntegerToFloat", "MatMulNBits", "MultiHeadAttention"}
    | {"QAttention", "QuickGelu", "SkipLayerNormalization"}
)
"""Of `com.microsoft`: what tcompress writes or wrote, and ONNX Runtime's tools for transformers."""
_BITS = {
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    **dict.fromkeys((21, 22, 23), 4),
    15: 128,
}
"""Bits of a number, by `TensorProto.DataType`."""
_TEXT = 8
_FIXED = {4: 4, 10: 8}
"""Bytes of a number in the fields of a tensor that hold floats, by the field's number."""
_VARINTS, _STRINGS, _RAW, _EXTERNAL, _LOCATION = (5, 7, 11), 6, 9, 13, 14
_CONTINUED = bytes(range(0x80, 0x100))
"""Bytes of a packed number that are not its last."""
_FLOATS = frozenset({2, 4, 7, 10})
"""Numbers of all fields that may be of a fixed width: those of floats."""
_VARINT, _LONG, _BYTES, _SHORT = 0, 1, 2, 5


class _FormatError(ValueError):
    """What is wrong with a file; `check_onnx` names the file."""


class _Span(NamedTuple):
    """Where a value lies in the file."""

    start: int
    end: int


@dataclass
class _Seen:
    """What was counted so far."""

    nodes: int = 0
    tensors: int = 0
    fields: int = 0


@dataclass(frozen=True)
class _Scope:
    """Names that a node may read: those of its graph so far, and those around it."""

    outer: "_Scope | None" = None
    names: set[str] = field(default_factory=set)

    def knows(self, name: str) -> bool:
        return name in self.names or (self.outer is not None and self.outer.knows(name))

    def add(self, name: str) -> None:
        if name in self.names:
            msg = f"the name {name[:60]!r} is given twice"
            raise _FormatError(msg)
        self.names.add(name)


def check_onnx(path: Path) -> None:
    """Raise unless a file is an ONNX model that keeps to itself and to what the format allows.

    Known versions and domains of operators; no data outside of the file; no functions, training or
    sparse parts, which tcompress never writes; nodes in order, so that there are no cycles; names
    that are text and given once; numbers as many as shapes and types say; sane counts and depths.

    Args:
        path: The file.

    Raises:
        ArtifactError: If it is not.
    """
    try:
        size = path.stat().st_size
        if not 0 < size <= _LIMIT_BYTES:
            msg = f"{size} bytes, where 1 to {_LIMIT_BYTES} are possible"
            raise _FormatError(msg)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Walk(data).model(_Span(0, size))
    except (_FormatError, OSError) as error:
        msg = f"{path}: not an ONNX file that is safe to open: {error}; export the model again"
        raise ArtifactError(msg) from error


class _Walk:
    """A walk over a file's structure.

    Args:
        data: The file.
    """

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._seen = _Seen()

    def model(self, span: _Span) -> None:
        """Check a `ModelProto`."""
        graphs, version, opsets = [], 0, {}
        for number, value in self._fields(span):
            if number == 1:
                version = _number(value)
            elif number == 7:
                graphs.append(_span(value))
            elif number == 8:
                domain, opset = self._opset(_span(value))
                opsets[domain] = opset
            elif number in (20, 25):
                raise _FormatError("functions" if number == 25 else "training information")
        if version not in _IR_VERSIONS:
            msg = f"IR version {version}"
            raise _FormatError(msg)
        if "" not in opsets or len(graphs) != 1:
            msg = f"{len(graphs)} graphs, operator sets {sorted(opsets)}"
            raise _FormatError(msg)
        self._graph(graphs[0], None, 0)

    def _opset(self, span: _Span) -> tuple[str, int]:
        found = dict(self._fields(span))
        domain = self._domain(found.get(1))
        version = _number(found.get(2, 0))
        if version not in _OPSETS[domain]:
            msg = f"operator set {version} of {domain or 'ai.onnx'!r}"
            raise _FormatError(msg)
        return domain, version

    def _domain(self, value: "int | _Span | None") -> str:
        name = "" if value is None else self._text(value)
        if name not in _DOMAINS:
            msg = f"operators of {name!r}"
            raise _FormatError(msg)
        return _DOMAINS[name]

    def _graph(self, span: _Span, outer: _Scope | None, depth: int) -> None:
        """Check a `GraphProto`: what it is given first, then its nodes in their order."""
        if depth > _MOST_DEPTH:
            msg = f"graphs within graphs, more than {_MOST_DEPTH} deep"
            raise _FormatError(msg)
        scope, inputs, nodes, outputs = _Scope(outer), _Scope(), [], []
        for number, value in self._fields(span):
            if number == 1:
                self._count_node()
                nodes.append(_span(value))
            elif number == 5:
                scope.add(self._tensor(_span(value)))
            elif number == 11:
                inputs.add(self._value(_span(value), typed=depth == 0))
            elif number == 12:
                outputs.append(self._value(_span(value), typed=False))
            elif number == 13:
                self._value(_span(value), typed=False)
            elif number == 15:
                raise _FormatError("sparse tensors")
        scope.names.update(inputs.names)  # an input may have a default among the tensors
        for node in nodes:
            self._node(node, scope, depth)
        for name in outputs:
            if not scope.knows(name):
                msg = f"no node computes its output {name[:60]!r}"
                raise _FormatError(msg)

    def _count_node(self) -> None:
        self._seen.nodes += 1
        if self._seen.nodes > _MOST_NODES:
            msg = f"more than {_MOST_NODES} nodes"
            raise _FormatError(msg)

    def _count_field(self) -> None:
        self._seen.fields += 1
        if self._seen.fields > _MOST_FIELDS:
            msg = f"more than {_MOST_FIELDS} fields"
            raise _FormatError(msg)

    def _node(self, span: _Span, scope: _Scope, depth: int) -> None:
        """Check a `NodeProto`."""
        made, named, kind, domain = [], _Scope(), "", ""
        for number, value in self._fields(span):
            if number == 1:
                name = self._text(value)
                if name and not scope.knows(name):
                    msg = f"a node reads {name[:60]!r}, which nothing before it computes"
                    raise _FormatError(msg)
            elif number == 2:
                made.append(self._text(value))
            elif number == 3:
                self._text(value)
            elif number == 4:
                kind = self._text(value)
            elif number == 5:
                named.add(self._attribute(_span(value), scope, depth))
            elif number == 7:
                domain = self._domain(value)
        if domain and kind not in _CONTRIBUTED:
            msg = f"the operator {kind[:60]!r} of {domain!r}"
            raise _FormatError(msg)
        for name in filter(None, made):
            scope.add(name)

    def _attribute(self, span: _Span, scope: _Scope, depth: int) -> str:
        """Check an `AttributeProto`; returns its name."""
        name, single = "", set[int]()
        for number, value in self._fields(span):
            if number == 1:
                name = self._text(value)
            elif number in (5, 10):
                self._tensor(_span(value))
            elif number in (6, 11):
                self._graph(_span(value), scope, depth + 1)
            elif number in (22, 23):
                raise _FormatError("sparse tensors")
            if number in single:  # a parser would make one message of the two
                raise _FormatError("an attribute with two values")
            single |= {number} & {5, 6}
        return name

    def _value(self, span: _Span, *, typed: bool) -> str:
        """Check a `ValueInfoProto`; returns its name."""
        found = dict(self._fields(span))
        name = self._text(found.get(1, _Span(0, 0)))
        if typed and 2 not in found:
            msg = f"the input {name[:60]!r} has no type"
            raise _FormatError(msg)
        if 2 in found:
            self._type(_span(found[2]))
        return name

    def _type(self, span: _Span) -> None:
        """Check a `TypeProto` of tensors; other types have no sizes."""
        for number, value in self._fields(span):
            if number != 1:
                continue
            for part, shape in self._fields(_span(value)):
                if part != 2:
                    continue
                for _, dim in self._fields(_span(shape)):
                    sizes = [_number(v) for n, v in self._fields(_span(dim)) if n == 1]
                    if any(_signed(size) < 0 for size in sizes):
                        raise _FormatError("a negative dimension")

    def _tensor(self, span: _Span) -> str:
        """Check a `TensorProto`; returns its name."""
        self._seen.tensors += 1
        if self._seen.tensors > _MOST_TENSORS:
            msg = f"more than {_MOST_TENSORS} tensors"
            raise _FormatError(msg)
        name, kind, dims, stored = "", 0, list[int](), 0
        raw: _Span | None = None
        for number, value in self._fields(span):
            if number == 1:
                dims += [_signed(dim) for dim in self._varints(value)]
            elif number == 2:
                kind = _number(value)
            elif number == 8:
                name = self._text(value)
            elif number == _RAW:
                raw = _span(value)
            elif number == _EXTERNAL or (number == _LOCATION and value != 0):
                raise _FormatError("data outside of the file")
            else:
                stored += self._stored(number, value)
        _check_numbers(name, kind, dims, stored, None if raw is None else raw.end - raw.start)
        return name

    def _stored(self, number: int, value: "int | _Span") -> int:
        """Count the numbers in a field of a tensor that holds some."""
        if number in _FIXED:
            return 1 if isinstance(value, int) else (value.end - value.start) // _FIXED[number]
        if number in _VARINTS:
            if isinstance(value, int):
                return 1
            return len(self._data[value.start : value.end].translate(None, _CONTINUED))
        return int(number == _STRINGS)

    def _varints(self, value: "int | _Span") -> Iterator[int]:
        """Yield the numbers of a field that may be packed."""
        if isinstance(value, int):
            yield value
            return
        if value.end - value.start > _MOST_DIMS * 10:
            msg = f"a tensor of more than {_MOST_DIMS} dimensions"
            raise _FormatError(msg)
        position = value.start
        while position < value.end:
            found, position = self._varint(position, value.end)
            yield found

    def _text(self, value: "int | _Span") -> str:
        start, end = _span(value)
        if end - start > _NAME_BYTES:
            msg = f"a name of {end - start} bytes"
            raise _FormatError(msg)
        try:
            return self._data[start:end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise _FormatError("a name that is not UTF-8") from error

    def _fields(self, span: _Span) -> Iterator[tuple[int, "int | _Span"]]:
        """Yield the fields of a message: their numbers, and numbers or where the bytes lie."""
        position, end = span
        while position < end:
            key, position = self._varint(position, end)
            number, kind = key >> 3, key & 7
            self._count_field()
            if number == 0:
                raise _FormatError("not a protobuf")
            if kind == _VARINT:
                value, position = self._varint(position, end)
                yield number, value
                continue
            if kind == _BYTES:
                length, position = self._varint(position, end)
            elif kind in (_LONG, _SHORT) and number in _FLOATS:
                length = 8 if kind == _LONG else 4
            else:
                raise _FormatError("not a protobuf")
            if length > end - position:
                raise _FormatError("it ends too early")
            yield number, _Span(position, position + length)
            position += length

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= end:
                raise _FormatError("it ends too early")
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise _FormatError("not a protobuf")


def _check_numbers(name: str, kind: int, dims: list[int], stored: int, raw: int | None) -> None:
    """Raise unless a tensor holds as many numbers as its shape and type say."""
    if kind != _TEXT and kind not in _BITS:
        msg = f"the tensor {name[:60]!r} is of type {kind}"
        raise _FormatError(msg)
    if any(dim < 0 for dim in dims) or len(dims) > _MOST_DIMS:
        msg = f"the tensor {name[:60]!r} has the shape {dims[:_MOST_DIMS]}"
        raise _FormatError(msg)
    count = math.prod(dims)
    needed = count if raw is None else math.ceil(count * _BITS.get(kind, 8) / 8)
    if kind in (14, 15) and raw is None:
        needed *= 2
    elif kind in _BITS and _BITS[kind] < 8 and raw is None:
        needed = math.ceil(count * _BITS[kind] / 8)
    if (stored if raw is None else raw) != needed or (raw is not None and stored):
        msg = f"the tensor {name[:60]!r} of shape {dims} does not hold the numbers for it"
        raise _FormatError(msg)


def _span(value: int | _Span) -> _Span:
    if isinstance(value, int):
        raise _FormatError("a number where a message belongs")
    return value


def _number(value: int | _Span) -> int:
    if not isinstance(value, int):
        raise _FormatError("a message where a number belongs")
    return value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
