"""Relative biases in ONNX: computed once for all heads, of which each layer takes its own."""

import numpy as np
import torch
from onnx import TensorProto

from tcompress.plain import PlainLayer
from tcompress.plan import Precision
from tcompress.terms.relative import FARTHEST, RelativeBias

from .onnx_terms import term_bias
from .onnx_writer import GraphWriter


@term_bias.register
def relative_bias(
    terms: RelativeBias, writer: GraphWriter, layer: PlainLayer, q: str, k: str
) -> str | None:
    """Look the bias up; see `onnx_terms.term_bias`.

    Args:
        terms: The layer's terms.
        writer: Collects the operators.
        layer: The layer.
        q: Queries.
        k: Keys.
    """
    whole = RelativeBias(terms.table, tuple(range(terms.table.embedding_dim)))
    bias = writer.shared("relative_bias", lambda: _of_all_heads(whole, writer, k))
    if layer.first_only:
        everything = bias
        bias = writer.shared("relative_bias.first", lambda: _first_query(writer, everything))
    if terms.heads != whole.heads:
        heads = writer.weight("heads", np.array(terms.heads, np.int64))
        bias = writer.node("Gather", bias, heads, axis=1)
    half = layer.attention_precision is Precision.FP16
    return writer.cast(bias, TensorProto.FLOAT16) if half else bias


def _of_all_heads(terms: RelativeBias, writer: GraphWriter, k: str) -> str:
    """Write the bias of every head, `(1, heads, tokens, tokens)`."""
    zero, one = (writer.weight(f"{n}", np.array(n)) for n in (0, 1))
    tokens = writer.node("Gather", writer.node("Shape", k), one)
    places = writer.node("Range", zero, tokens, one)
    column = writer.node("Unsqueeze", places, writer.weight("column_axis", np.array([1])))
    farthest = FARTHEST - 1
    low, high = (writer.weight(f"{n}", np.array(n)) for n in (-farthest, farthest))
    distance = writer.node("Clip", writer.node("Sub", places, column), low, high)
    row = writer.node("Add", distance, high)
    with torch.no_grad():
        table = writer.weight("per_distance", terms.per_distance().T)
    found = writer.node("Gather", table, row, axis=1)
    return writer.node("Unsqueeze", found, writer.weight("batch_axis", np.array([0])))


def _first_query(writer: GraphWriter, x: str) -> str:
    start, stop, axes = (
        writer.weight(name, np.array([n])) for name, n in (("0", 0), ("1", 1), ("axis", 2))
    )
    return writer.node("Slice", x, start, stop, axes)
