"""Structured optimal brain surgeon: which units to remove when the others make up for them.

A unit is a block of input channels of a projection: a head's of the output projection, or a
neuron's one channel of the second FFN projection. When some go, the projection's other rows are
solved for again by least squares; what that cannot make up for is the loss.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_STEPS = 64
"""A sublayer of many units loses several at a time, so that it is through in so many steps."""
_MOST_EXCHANGES = 20


@dataclass(frozen=True)
class Elimination:
    """The order in which units go.

    Attributes:
        order: Positions of the units, the first to go first.
        losses: Loss once the units up to there are gone, non-decreasing; `(units,)`.
    """

    order: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Regression:
    """A projection as a least-squares problem, in row-vector convention y = x W.

    Attributes:
        covariance: C of the features x, `(channels, channels)` float64, positive definite.
        weights: W, `(channels, outputs)` float64; outputs are scaled so that the sum of squared
            errors is the loss.
        width: Channels of one unit.
    """

    covariance: Tensor
    weights: Tensor
    width: int

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.covariance) // self.width

    @cached_property
    def cross_covariance(self) -> Tensor:
        """T = C W, the covariance of features and outputs, `(channels, outputs)`."""
        return self.covariance @ self.weights


def damped(covariance: Tensor, ridge: float) -> Tensor:
    """Add a ridge to a covariance.

    Args:
        covariance: `(channels, channels)`.
        ridge: As a fraction of the mean variance.
    """
    scale = float(covariance.diagonal().mean()) if len(covariance) else 0.0
    # features that never vary: any positive number makes the matrix invertible
    added = ridge * scale or 1.0
    return covariance + added * torch.eye(len(covariance), dtype=covariance.dtype)


def eliminate(problem: Regression) -> Elimination:
    """Remove unit after unit, always the one that the others make up for best.

    With H = C^-1, the loss of removing unit M is tr(W_M^T (H_MM)^-1 W_M); afterwards
    W -= H_:M (H_MM)^-1 W_M and H -= H_:M (H_MM)^-1 H_M: on what is left.

    Args:
        problem: The projection.

    Reference:
        ZipLM, Kurtic et al. 2023, arXiv:2302.04089, equations 2 and 3; the single-weight form is
        Hassibi and Stork 1993. Theirs W = our W^T.
    """
    left = torch.arange(problem.units)
    inverse = torch.linalg.inv(problem.covariance)
    weights = problem.weights
    batch = math.ceil(problem.units / _STEPS)
    order: list[int] = []
    losses: list[float] = []
    while len(left):
        price = _prices(inverse, weights, problem.width)
        gone = torch.topk(price, min(batch, len(left)), largest=False).indices
        loss, inverse, weights = _without(inverse, weights, _channels(gone, problem.width))
        before = losses[-1] if losses else 0.0
        losses += [before + max(loss, 0.0) * (i + 1) / len(gone) for i in range(len(gone))]
        order += left[gone].tolist()
        keep = torch.ones(len(left), dtype=torch.bool)
        keep[gone] = False
        left = left[keep]
    return Elimination(tuple(order), tuple(losses))


def exchange(problem: Regression, kept: tuple[int, ...]) -> tuple[int, ...]:
    """Improve a choice of units by exchanges between those kept and those removed.

    Some of the cheapest kept units leave and as many of the most useful removed ones come back;
    the exchange stands if the loss falls, else fewer are tried.

    Args:
        problem: The projection.
        kept: Positions of the units kept.

    Returns:
        Positions of as many units, ascending; their loss is at most that of `kept`.

    Reference:
        OSSCAR, Meng et al. 2024, arXiv:2403.12983, section 4 (local search).
    """
    best = torch.tensor(sorted(kept), dtype=torch.int64)
    if not 0 < len(best) < problem.units:
        return tuple(best.tolist())
    explained = _explained(problem, best)
    size = max(1, min(len(best), problem.units - len(best)) // 8)
    for _ in range(_MOST_EXCHANGES):
        candidate = _exchanged(problem, best, size)
        if (found := _explained(problem, candidate)) > explained * (1 + 1e-9):
            best, explained = candidate, found
        elif size > 1:
            size //= 2
        else:
            break
    return tuple(best.tolist())


def loss_of(problem: Regression, kept: tuple[int, ...]) -> float:
    """Return the loss of keeping some units, the others made up for by least squares.

    Args:
        problem: The projection.
        kept: Positions of the units kept.
    """
    everything = (problem.cross_covariance * problem.weights).sum()
    chosen = torch.tensor(sorted(kept), dtype=torch.int64)
    return max(0.0, float(everything) - _explained(problem, chosen))


def _explained(problem: Regression, units: Tensor) -> float:
    """Return tr(T_K^T C_KK^-1 T_K) with T = C W: what the kept units K can give."""
    channels = _channels(units, problem.width)
    target = problem.cross_covariance[channels]
    factor = torch.linalg.cholesky(problem.covariance[channels][:, channels])
    return float((torch.cholesky_solve(target, factor) * target).sum())


def _exchanged(problem: Regression, kept: Tensor, size: int) -> Tensor:
    """Drop the `size` cheapest units and take in the `size` most useful others."""
    cov, width = problem.covariance, problem.width
    target = problem.cross_covariance
    channels = _channels(kept, width)
    inverse = torch.linalg.inv(cov[channels][:, channels])
    price = _prices(inverse, inverse @ target[channels], width)
    stay = torch.ones(len(kept), dtype=torch.bool)
    stay[torch.topk(price, size, largest=False).indices] = False
    rest = kept[stay]
    outside = torch.tensor(
        sorted(set(range(problem.units)) - set(rest.tolist())), dtype=torch.int64
    )
    gain = _gains(problem, target, rest, outside)
    return torch.cat([rest, outside[torch.topk(gain, size).indices]]).sort().values


def _gains(problem: Regression, target: Tensor, kept: Tensor, outside: Tensor) -> Tensor:
    """Return what each outside unit would add to what the kept ones explain, `(outside,)`.

    With g = T_j - C_jK C_KK^-1 T_K and S = C_jj - C_jK C_KK^-1 C_Kj it is tr(g^T S^-1 g).
    """
    cov, width = problem.covariance, problem.width
    inner, outer = _channels(kept, width), _channels(outside, width)
    factor = torch.linalg.cholesky(cov[inner][:, inner])
    between = cov[outer][:, inner]
    solved = torch.cholesky_solve(between.T, factor)
    g = (target[outer] - solved.T @ target[inner]).unflatten(0, (-1, width))
    # the diagonal blocks of the Schur complement
    own = _diagonal_blocks(cov[outer][:, outer], width)
    explained = torch.einsum(
        "uak,kub->uab", between.unflatten(0, (-1, width)), solved.unflatten(1, (-1, width))
    )
    return torch.einsum("uad,uad->u", g, torch.linalg.solve(own - explained, g))


def _prices(inverse: Tensor, weights: Tensor, width: int) -> Tensor:
    """Return the loss of removing each unit alone, `(units,)`."""
    blocks = _diagonal_blocks(inverse, width)
    rows = weights.unflatten(0, (-1, width))
    return torch.einsum("uad,uad->u", rows, torch.linalg.solve(blocks, rows))


def _without(inverse: Tensor, weights: Tensor, gone: Tensor) -> tuple[float, Tensor, Tensor]:
    """Remove channels; return the loss, and inverse and weights of what is left."""
    keep = torch.ones(len(inverse), dtype=torch.bool)
    keep[gone] = False
    block, rows = inverse[gone][:, gone], weights[gone]
    solved = torch.linalg.solve(block, torch.cat([rows, inverse[gone][:, keep]], dim=1))
    by_rows, by_columns = solved.split([rows.shape[1], int(keep.sum())], dim=1)
    side = inverse[keep][:, gone]
    loss = float((by_rows * rows).sum())
    return loss, inverse[keep][:, keep] - side @ by_columns, weights[keep] - side @ by_rows


def _diagonal_blocks(matrix: Tensor, width: int) -> Tensor:
    """Return the blocks on the diagonal, `(units, width, width)`."""
    units = len(matrix) // width
    blocks = matrix.reshape(units, width, units, width)
    return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _channels(units: Tensor, width: int) -> Tensor:
    """Return the channels of some units, `(units * width,)`."""
    return (units[:, None] * width + torch.arange(width)).flatten()
