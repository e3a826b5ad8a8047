"""First and second moments of what a projection reads and should give, gathered row by row."""

from typing import Self

import torch
from torch import Tensor

from .checkpoint import State


class Moments:
    """Moments of features x and targets y over weighted rows.

    Sums are taken around the first rows' mean, in float64, so that large means cost no digits.
    Memory depends on the widths only, not on the number of rows.

    Args:
        features: Width of x, k.
        targets: Width of y, d; 0 where there are none.
    """

    def __init__(self, features: int, targets: int = 0) -> None:
        self.weight = 0.0
        self._origins: tuple[Tensor, Tensor] | None = None
        self._sums = (_zeros(features), _zeros(targets))
        self._square = _zeros(features, features)
        self._cross = _zeros(features, targets)
        self._power = _zeros(targets)

    def add(self, x: Tensor, y: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Add rows.

        Args:
            x: Features, `(rows, k)`.
            y: Targets, `(rows, d)`; None where there are none.
            weights: `(rows,)`; None: 1 each.
        """
        if len(x) == 0:
            return
        y = x[:, :0] if y is None else y
        if self._origins is None:
            self._origins = (x.mean(0), y.mean(0))
        x, y = x - self._origins[0], y - self._origins[1]
        wx, wy = (x, y) if weights is None else (x * weights[:, None], y * weights[:, None])
        self.weight += len(x) if weights is None else float(weights.sum())
        self._sums[0].add_(wx.sum(0).cpu())
        self._sums[1].add_(wy.sum(0).cpu())
        self._square.add_((wx.T @ x).cpu())
        self._cross.add_((wx.T @ y).cpu())
        self._power.add_((wy * y).sum(0).cpu())

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Means of x `(k,)` and y `(d,)`."""
        assert self._origins is not None
        x, y = (
            origin.double().cpu() + sums / self.weight
            for origin, sums in zip(self._origins, self._sums, strict=True)
        )
        return x, y

    @property
    def covariance(self) -> Tensor:
        """Covariance of x, `(k, k)`."""
        mean = self._sums[0] / self.weight
        return self._square / self.weight - torch.outer(mean, mean)

    @property
    def cross_covariance(self) -> Tensor:
        """Covariance of x with y, `(k, d)`."""
        x, y = (sums / self.weight for sums in self._sums)
        return self._cross / self.weight - torch.outer(x, y)

    @property
    def target_variance(self) -> Tensor:
        """Variance of y, `(d,)`."""
        return self._power / self.weight - (self._sums[1] / self.weight).square()

    def merged(self, other: Self) -> Self:
        """Return the moments of both sets of rows together.

        Args:
            other: Moments of other rows, of the same widths.
        """
        if other._origins is None:
            return self
        if self._origins is None:
            return other
        total, moved = self._around(self._origins), other._around(self._origins)
        total.weight += moved.weight
        for mine, theirs in zip(total._all(), moved._all(), strict=True):
            mine += theirs
        return total

    def without_centre(self) -> Self:
        """Return moments that take the mean for 0: for projections without a bias."""
        assert self._origins is not None
        plain = self._around((self._origins[0] * 0, self._origins[1] * 0))
        for sums in plain._sums:
            sums.zero_()
        return plain

    def state(self) -> State:
        """Return all sums, for a checkpoint."""
        return {
            "weight": self.weight,
            "origins": None if self._origins is None else list(self._origins),
            "sums": list(self._all()),
        }

    @classmethod
    def from_state(cls, state: State) -> Self:
        """Return the moments that a state was taken from.

        Args:
            state: From `state`.
        """
        features, targets, *others = state["sums"]
        moments = cls(len(features), len(targets))
        moments.weight = state["weight"]
        moments._origins = None if state["origins"] is None else tuple(state["origins"])
        moments._sums = (features, targets)
        moments._square, moments._cross, moments._power = others
        return moments

    def _all(self) -> tuple[Tensor, ...]:
        return (*self._sums, self._square, self._cross, self._power)

    def _around(self, origins: tuple[Tensor, Tensor]) -> Self:
        """Return the same sums around other origins."""
        assert self._origins is not None
        moved = type(self)(len(self._sums[0]), len(self._sums[1]))
        moved.weight, moved._origins = self.weight, origins
        dx, dy = (
            (old.double() - new.double()).cpu()
            for old, new in zip(self._origins, origins, strict=True)
        )
        (sx, sy), w = self._sums, self.weight
        moved._sums = (sx + w * dx, sy + w * dy)
        moved._square = self._square + torch.outer(sx, dx) + torch.outer(dx, sx + w * dx)
        moved._cross = self._cross + torch.outer(sx, dy) + torch.outer(dx, sy + w * dy)
        moved._power = self._power + 2 * sy * dy + w * dy.square()
        return moved


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)
