"""Rotary positions and windows in ONNX; layers share the tables and what windows hide."""

import numpy as np
import torch
from onnx import TensorProto

from tcompress.plain import PlainLayer
from tcompress.plan import Precision
from tcompress.terms.rotary import Rotary

from .onnx_terms import HIDDEN, rotated, term_bias
from .onnx_writer import GraphWriter


@rotated.register
def rotate(
    terms: Rotary, writer: GraphWriter, layer: PlainLayer, q: str, k: str
) -> tuple[str, str]:
    """Turn queries and keys; see `onnx_terms.rotated`.

    Args:
        terms: The layer's terms.
        writer: Collects the operators.
        layer: The layer.
        q: Queries.
        k: Keys.
    """
    positions = writer.shared("positions", lambda: _positions(writer, k))
    first = positions
    if layer.first_only:
        first = writer.shared("first_position", lambda: _first(writer, positions, axis=1))
    return _turned(terms, writer, layer, q, first), _turned(terms, writer, layer, k, positions)


@term_bias.register
def hide(terms: Rotary, writer: GraphWriter, layer: PlainLayer, q: str, k: str) -> str | None:
    """Hide what lies outside the window; see `onnx_terms.term_bias`.

    Args:
        terms: The layer's terms.
        writer: Collects the operators.
        layer: The layer.
        q: Queries before rotation.
        k: Keys before rotation.
    """
    if terms.window is None:
        return None
    name, window = f"window.{terms.window}", terms.window
    bias = writer.shared(name, lambda: _outside(writer, window, k))
    if layer.first_only:
        whole = bias
        bias = writer.shared(f"{name}.first", lambda: _first(writer, whole, axis=2))
    return writer.cast(bias, TensorProto.FLOAT16) if _half(layer) else bias


def _turned(terms: Rotary, writer: GraphWriter, layer: PlainLayer, x: str, positions: str) -> str:
    tables = [_table(terms, writer, name, half=_half(layer)) for name in ("cos", "sin")]
    return writer.node("RotaryEmbedding", x, *tables, positions, num_heads=layer.num_heads)


def _table(terms: Rotary, writer: GraphWriter, name: str, *, half: bool) -> str:
    """The operator reads one half of the channels, that whose signs are as they are."""
    values = terms.get_buffer(name).chunk(2, dim=-1)[1]
    name, kind = f"rotary.{terms.theta:g}.{name}", torch.float16 if half else torch.float32
    return writer.shared(f"{name}.{kind}", lambda: writer.weight("table", values.to(kind)))


def _positions(writer: GraphWriter, k: str) -> str:
    """The place of each token, `(batch, tokens)`."""
    shape = writer.node("Shape", k, start=0, end=2)
    zero, one = (writer.weight(f"{n}", np.array(n)) for n in (0, 1))
    counted = writer.node("Range", zero, writer.node("Gather", shape, one), one)
    return writer.node("Expand", counted, shape)


def _outside(writer: GraphWriter, window: int, k: str) -> str:
    """Hide tokens that are further apart than the window, `(1, 1, tokens, tokens)`."""
    zero, one = (writer.weight(f"{n}", np.array(n)) for n in (0, 1))
    tokens = writer.node("Gather", writer.node("Shape", k), one)
    places = writer.node("Range", zero, tokens, one)
    column = writer.node("Unsqueeze", places, writer.weight("column_axis", np.array([1])))
    distance = writer.node("Abs", writer.node("Sub", column, places))
    outside = writer.node("Greater", distance, writer.weight("window", np.array(window)))
    hidden = writer.weight("hidden", np.array(HIDDEN, np.float32))
    bias = writer.node("Mul", writer.cast(outside, TensorProto.FLOAT), hidden)
    return writer.node("Unsqueeze", bias, writer.weight("batch_axes", np.array([0, 1])))


def _first(writer: GraphWriter, x: str, axis: int) -> str:
    start, stop, axes = (
        writer.weight(name, np.array([n])) for name, n in (("0", 0), ("1", 1), ("axis", axis))
    )
    return writer.node("Slice", x, start, stop, axes)


def _half(layer: PlainLayer) -> bool:
    return layer.attention_precision is Precision.FP16
