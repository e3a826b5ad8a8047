"""Positions as scores of their own: between content and place, and between place and content."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import ScoreTerms


class Places(nn.Module):
    """The learned vectors of distances, the same for every layer.

    Distances up to half of `buckets` have a row each, longer ones up to `longest` share rows in
    equal steps of their logarithm; without buckets, every distance up to `longest` has its own.

    Args:
        table: `(rows, hidden)`, two rows per bucket or distance.
        norm: Norm of the vectors, or None.
        buckets: Buckets on either side; None for none.
        longest: Longest distance that is told apart.
        limit: Longest input.
    """

    def __init__(
        self,
        table: nn.Embedding,
        norm: nn.LayerNorm | None,
        buckets: int | None,
        longest: int,
        limit: int,
    ) -> None:
        super().__init__()
        self.table, self.norm = table, norm
        # an even number of buckets ends at `longest`, an odd one far behind
        self.farthest = max(2 * longest, limit)
        distances = torch.arange(-self.farthest, self.farthest + 1, device=table.weight.device)
        if buckets is not None:
            distances = bucket_of(distances, buckets, longest)
        span = buckets or longest
        # of the distances from -farthest to farthest, (2 * farthest + 1,)
        self.row_of = nn.Buffer((distances + span).clamp(0, 2 * span - 1), persistent=False)

    def vectors(self) -> Tensor:
        """Return what the projections of positions read, `(rows, hidden)`."""
        vectors = self.table.weight
        return vectors if self.norm is None else self.norm(vectors)


def bucket_of(distance: Tensor, buckets: int, longest: int) -> Tensor:
    """Return the bucket of each distance, negative for negative ones.

    Args:
        distance: Place of the query less that of the key, int64, any shape.
        buckets: Buckets on either side.
        longest: Distance of the last one.
    """
    half = buckets // 2
    # in this order of operations, as rounding decides at the ends of buckets
    steps = torch.log(distance.abs().clamp(min=1) / half)
    steps = steps / torch.log(torch.tensor((longest - 1) / half))
    far = (torch.ceil(steps * (half - 1)) + half) * distance.sign()
    return torch.where(distance.abs() <= half, distance, far.long())


class Disentangled(ScoreTerms):
    """Disentangled attention: s (q_i . k_j + q_i . K_r(i-j) + k_j . Q_r(i-j)).

    K and Q are keys and queries of distances, r(d) the row of distance d, and s is one over the
    root of the head size times the number of summands. Either of the last two may be missing.

    Args:
        row_of: Row of each distance from -F to F, that of farther ones is the same, `(2 F + 1,)`.
        scale: s.
        keys: K, `(heads, rows, head_size)`, or None.
        queries: Q, likewise.

    Reference:
        He et al. 2021 (DeBERTa), arXiv:2006.03654, equations 2 to 4. Name mapping: delta = r.
    """

    def __init__(
        self,
        row_of: Tensor,
        scale: float,
        keys: Tensor | None = None,
        queries: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.row_of = nn.Buffer(row_of, persistent=False)
        self.farthest = len(row_of) // 2
        self._scale = scale
        self.pair_products = _pair_products(keys, queries)
        self.register_buffer("keys", keys, persistent=False)
        self.register_buffer("queries", queries, persistent=False)

    @property
    def scale(self) -> float:
        """Factor of the products."""
        return self._scale

    def projected(self) -> tuple[Tensor | None, Tensor | None]:
        """Return keys and queries of distances, each `(heads, rows, head_size)` or None."""
        return cast("Tensor | None", self.keys), cast("Tensor | None", self.queries)

    def bias(self, q: Tensor, k: Tensor) -> Tensor | None:
        """Score content against places and places against content; see `ScoreTerms.bias`."""
        keys, queries = self.projected()
        rows = self._rows(q.shape[-2], k.shape[-2])
        found = []
        if keys is not None:
            scores = q @ keys.to(q.dtype).mT  # (batch, heads, queries, rows)
            found.append(scores.gather(-1, rows.expand(*scores.shape[:-1], -1)))
        if queries is not None:
            scores = k @ queries.to(k.dtype).mT  # (batch, heads, tokens, rows)
            found.append(scores.gather(-1, rows.mT.expand(*scores.shape[:-1], -1)).mT)
        return self.scale * sum(found[1:], found[0]) if found else None

    def _rows(self, queries: int, tokens: int) -> Tensor:
        """Return the row of each pair of tokens, `(queries, tokens)`."""
        first, second = (
            torch.arange(count, device=self.row_of.device) for count in (queries, tokens)
        )
        distance = (first[:, None] - second).clamp(-self.farthest, self.farthest)
        return functional.embedding(distance + self.farthest, self.row_of[:, None])[..., 0]


class LiveDisentangled(Disentangled):
    """Disentangled attention whose keys and queries of distances are projected in every call.

    Args:
        places: The vectors of distances.
        head_size: Width of a head.
        products: Summands of a score, content included.
        key: Projection to keys of distances, or None.
        query: Projection to queries of distances, or None.
        shared: Whether these are the projections of the content.
    """

    def __init__(
        self,
        places: Places,
        head_size: int,
        products: int,
        key: nn.Linear | None,
        query: nn.Linear | None,
        *,
        shared: bool,
    ) -> None:
        super().__init__(places.row_of, 1 / math.sqrt(head_size * products))
        self.places, self.head_size = places, head_size
        self.key, self.query = key, query
        self.shares_projections = shared
        self.pair_products = _pair_products(key, query)

    def projected(self) -> tuple[Tensor | None, Tensor | None]:
        """Project the vectors of distances; see `Disentangled.projected`."""
        vectors = self.places.vectors()
        return self._heads_of(self.key, vectors), self._heads_of(self.query, vectors)

    def folded(self) -> Disentangled:
        """Project once; see `ScoreTerms.folded`."""
        with torch.no_grad():
            # contiguous, as PyTorch saves programs with whole tensors only
            tables = [None if table is None else table.contiguous() for table in self.projected()]
        return Disentangled(self.row_of, self.scale, *tables)

    def _heads_of(self, linear: nn.Linear | None, vectors: Tensor) -> Tensor | None:
        if linear is None:
            return None
        flat: Tensor = linear(vectors.to(linear.weight.dtype))
        return flat.view(flat.shape[0], -1, self.head_size).transpose(0, 1)


def _pair_products(*factors: object) -> int:
    """T tokens are multiplied with at most 2 T distances."""
    return 2 * sum(factor is not None for factor in factors)
