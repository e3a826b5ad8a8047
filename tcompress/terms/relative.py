"""Positions as a bias per head that depends on how far two tokens are apart."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import ScoreTerms

BUCKETS = 32
FARTHEST = 128
"""Distance from which on all tokens share a bucket."""


class RelativeBias(ScoreTerms):
    """A learned bias per head and bucket of distances, the same table for every layer.

    Half of the buckets are for tokens before, half for tokens behind; of each half, one half holds
    a distance per bucket, the other distances up to `FARTHEST` in equal steps of their logarithm.

    Args:
        table: `(buckets, heads of the source encoder)`.
        heads: The layer's heads, in the numbering of the source encoder.

    Reference:
        Raffel et al. 2020 (T5), arXiv:1910.10683, section 2.1.
    """

    reads_keys = False

    def __init__(self, table: nn.Embedding, heads: tuple[int, ...]) -> None:
        super().__init__()
        self.table = table
        self.heads = heads

    def bias(self, q: Tensor, k: Tensor) -> Tensor | None:
        """Look the bias up; see `ScoreTerms.bias`."""
        first, second = (torch.arange(x.shape[-2], device=x.device) for x in (q, k))
        farthest = FARTHEST - 1
        distance = (second - first[:, None]).clamp(-farthest, farthest)
        # (queries, tokens, heads)
        values = functional.embedding(distance + farthest, self.per_distance())
        return values.permute(2, 0, 1)[None]

    def per_distance(self) -> Tensor:
        """Return the bias of the layer's heads, `(2 * FARTHEST - 1, heads)`.

        The middle row is that of a token with itself, the last that of a query with keys behind it.
        """
        distance = torch.arange(1 - FARTHEST, FARTHEST, device=self.table.weight.device)
        return self.table.weight[bucket_of(distance)][:, list(self.heads)]


def bucket_of(distance: Tensor) -> Tensor:
    """Return the bucket of each distance.

    Args:
        distance: Place of the key less that of the query, int64, any shape.
    """
    half = BUCKETS // 2
    exact = half // 2
    size = distance.abs()
    # in this order of operations, as rounding decides at the ends of buckets
    steps = torch.log(size.clamp(min=1).float() / exact) / math.log(FARTHEST / exact)
    far = exact + (steps * (half - exact)).long()
    near = torch.where(size < exact, size, far.clamp(max=half - 1))
    return near + half * (distance > 0)
