"""Disentangled attention in ONNX: scores of all distances at once, then each row shifted in place.

T tokens are up to T - 1 apart. What a token scores against the keys of all distances, in order, is
a row of 2T columns, of which token i needs T from column T - 1 - i on. Read as rows that are one
column shorter, the same numbers have them in front. No operator gathers single scores.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tcompress.plain import PlainLayer
from tcompress.plan import Precision
from tcompress.terms.disentangled import Disentangled

from .onnx_terms import term_bias
from .onnx_writer import GraphWriter


@term_bias.register
def disentangled_bias(
    terms: Disentangled, writer: GraphWriter, layer: PlainLayer, q: str, k: str
) -> str | None:
    """Score content against places and places against content; see `onnx_terms.term_bias`.

    Args:
        terms: The layer's terms.
        writer: Collects the operators.
        layer: The layer.
        q: Queries.
        k: Keys.
    """
    keys, queries = terms.projected()
    distances = _Distances(writer, terms.row_of.numpy(), k, first=layer.first_only)
    found = []
    if keys is not None:
        with writer.scope("content_to_place"):
            table = _table(writer, layer, terms.scale * keys)
            found.append(_content_to_place(distances, _heads(writer, layer, q), table))
    if queries is not None:
        with writer.scope("place_to_content"):
            table = _table(writer, layer, terms.scale * queries)
            found.append(_place_to_content(distances, _heads(writer, layer, k), table))
    return writer.node("Add", *found) if len(found) == 2 else next(iter(found), None)


@dataclass(frozen=True)
class _Distances:
    """The distances between tokens, and the rows of tables that they read; shared by all layers.

    Attributes:
        writer: Collects the operators.
        row_of: See `Disentangled`.
        k: Any tensor `(batch, tokens, channels)`.
        first: Whether the first token alone asks.
    """

    writer: GraphWriter
    row_of: np.ndarray
    k: str
    first: bool

    def rows(self, sign: int) -> str:
        """Return the rows of distances T - 1 to -T, or 0 to 1 - T, `(2 T,)` or `(T,)`.

        Args:
            sign: 1, or -1 for those of the negative distances.
        """
        name = f"distances.{'first' if self.first else 'all'}.{sign}"
        return self.writer.shared(name, lambda: self._rows(sign))

    def shifted(self, scores: str) -> str:
        """Bring what token i needs, from column T - 1 - i on, to the front.

        Args:
            scores: `(batch, heads, T, 2 T)`.

        Returns:
            `(batch, heads, T, T)`.
        """
        writer = self.writer
        tokens, before = self._tokens(0), self._tokens(-1)
        shape = writer.shared("distances.shifted_shape", self._shifted_shape)
        flat = writer.node("Reshape", scores, _numbers(writer, 0, 0, -1))
        axis, end = (_numbers(writer, n) for n in (2, -1))
        flat = writer.node("Slice", flat, before, end, axis)
        start, axis = (_numbers(writer, n) for n in (0, 3))
        return writer.node("Slice", writer.node("Reshape", flat, shape), start, tokens, axis)

    def _tokens(self, more: int) -> str:
        """T and some more, `(1,)`."""
        return self.writer.shared(f"distances.tokens.{more}", lambda: self._counted(more))

    def _counted(self, more: int) -> str:
        tokens = self.writer.node("Shape", self.k, start=1, end=2)
        return self.writer.node("Add", tokens, _numbers(self.writer, more))

    def _shifted_shape(self) -> str:
        writer = self.writer
        same, rest = _numbers(writer, 0, 0), _numbers(writer, -1)
        return writer.node("Concat", same, self._tokens(0), rest, axis=0)

    def _rows(self, sign: int) -> str:
        writer = self.writer
        tokens = writer.node("Squeeze", self._tokens(0))
        minus = writer.weight("-1", np.array(-1))
        end = writer.node("Neg", tokens)  # left out itself
        if self.first:
            start = writer.weight("0", np.array(0))
        else:
            start, end = writer.node("Add", tokens, minus), writer.node("Add", end, minus)
        distances = writer.node("Range", start, end, minus)
        if sign < 0:
            distances = writer.node("Neg", distances)
        farthest = len(self.row_of) // 2
        low, high = (writer.weight(f"{n}", np.array(n)) for n in (-farthest, farthest))
        places = writer.node("Add", writer.node("Clip", distances, low, high), high)
        return writer.node("Gather", writer.weight("row_of", self.row_of), places)


def _content_to_place(distances: _Distances, content: str, table: str) -> str:
    """Score queries against keys of distances, `(batch, heads, queries, tokens)`.

    Args:
        distances: Between the tokens.
        content: Queries, `(batch, heads, queries, head_size)`.
        table: Keys of distances, `(heads, rows, head_size)`.
    """
    scores = _products(distances, content, table, 1)
    return scores if distances.first else distances.shifted(scores)


def _place_to_content(distances: _Distances, content: str, table: str) -> str:
    """Score keys against queries of distances, `(batch, heads, queries, tokens)`.

    Args:
        distances: Between the tokens.
        content: Keys, `(batch, heads, tokens, head_size)`.
        table: Queries of distances, `(heads, rows, head_size)`.
    """
    writer = distances.writer
    if distances.first:  # each key is at one distance only
        places = writer.node("Gather", table, distances.rows(1), axis=1)
        products = writer.node("Mul", content, places)
        summed = writer.node("ReduceSum", products, _numbers(writer, -1), keepdims=0)
        return writer.node("Unsqueeze", summed, _numbers(writer, 2))
    scores = distances.shifted(_products(distances, content, table, -1))
    return writer.node("Transpose", scores, perm=[0, 1, 3, 2])


def _products(distances: _Distances, content: str, table: str, sign: int) -> str:
    writer = distances.writer
    places = writer.node("Gather", table, distances.rows(sign), axis=1)
    columns = writer.node("Transpose", places, perm=[0, 2, 1])
    return writer.node("MatMul", content, columns)


def _table(writer: GraphWriter, layer: PlainLayer, values: Tensor) -> str:
    half = layer.attention_precision is Precision.FP16
    return writer.weight("places", values.to(torch.float16 if half else torch.float32))


def _heads(writer: GraphWriter, layer: PlainLayer, x: str) -> str:
    """Split channels into heads, `(batch, heads, tokens, head_size)`."""
    shape = _numbers(writer, 0, 0, layer.num_heads, layer.head_size)
    return writer.node("Transpose", writer.node("Reshape", x, shape), perm=[0, 2, 1, 3])


def _numbers(writer: GraphWriter, *values: int) -> str:
    return writer.weight("_".join(map(str, values)), np.array(values))
