"""ONNX operators for what positions add to attention scores; a module per kind registers here.

Queries and keys are `(batch, tokens, heads * head_size)`, as the projections give them.
"""

from functools import singledispatch
from typing import Any

from tcompress.plain import PlainLayer
from tcompress.terms import ScoreTerms

from .onnx_writer import GraphWriter

HIDDEN = -30_000.0
"""What hides a token: far below any score, and within fp16, also when it is added twice."""


def scaled(terms: ScoreTerms) -> dict[str, Any]:
    """Return the attribute of an Attention operator that sets the factor of the products.

    Args:
        terms: The layer's terms.
    """
    return {} if terms.scale is None else {"scale": terms.scale}


@singledispatch
def term_bias(
    terms: ScoreTerms, writer: GraphWriter, layer: PlainLayer, q: str, k: str
) -> str | None:
    """Write what is added to the scores, `(batch or 1, heads or 1, queries, tokens)`.

    Args:
        terms: The layer's terms.
        writer: Collects the operators.
        layer: The layer.
        q: Queries before rotation.
        k: Keys before rotation.
    """
    return None


@singledispatch
def rotated(
    terms: ScoreTerms, writer: GraphWriter, layer: PlainLayer, q: str, k: str
) -> tuple[str, str]:
    """Write queries and keys as their positions turn them.

    Args:
        terms: The layer's terms.
        writer: Collects the operators.
        layer: The layer.
        q: Queries.
        k: Keys.
    """
    return q, k
