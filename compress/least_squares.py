"""Linear layers and norms fitted in closed form, from sums that do not grow with the rows."""

import torch
from torch import Tensor, nn

from tcompress.errors import CalibrationError

from .elimination import damped
from .moments import Moments

RIDGES = (1e-3, 1e-2, 1e-1)
"""Candidates, as fractions of the mean variance; held-out batches decide."""
_HELD_OUT = 5
"""Every fifth batch is held out to choose the ridge; the solution itself uses all."""


class Fitting:
    """Least squares for one linear layer; weights and bias that turn rows x into rows y.

    Args:
        linear: The layer; `solve_` changes it.
    """

    def __init__(self, linear: nn.Linear) -> None:
        self._linear = linear
        widths = (linear.in_features, linear.out_features)
        self._fit, self._held = Moments(*widths), Moments(*widths)

    def add(self, place: int, x: Tensor, y: Tensor) -> None:
        """Add rows of one batch.

        Args:
            place: Number of the batch.
            x: What the layer reads, `(rows, in)`.
            y: What it should give, `(rows, out)`.
        """
        held_out = place % _HELD_OUT == _HELD_OUT - 1
        (self._held if held_out else self._fit).add(x, y)

    def solve_(self) -> tuple[float, float, float]:
        """Set weights and bias.

        Returns:
            The error before and after, as fractions of the targets' variance, and the ridge.

        Raises:
            CalibrationError: If what the layer reads or should give is not finite.
        """
        linear = self._linear
        whole = self._fit.merged(self._held)
        old = linear.weight.detach().T.double().cpu()
        if not all(torch.isfinite(m).all() for m in (whole.covariance, whole.cross_covariance)):
            msg = "reconstruction met values that are not finite; check the weights and inputs"
            raise CalibrationError(msg)
        centred = linear.bias is not None
        parts = [
            m if centred or not m.weight else m.without_centre() for m in (self._fit, self._held)
        ]
        ridge = RIDGES[1]
        if all(part.weight for part in parts):
            solved = {r: _solve(parts[0], old, r) for r in RIDGES}
            ridge = min(RIDGES, key=lambda r: _error(parts[1], solved[r]))
        moments = whole if centred else whole.without_centre()
        new = _solve(moments, old, ridge)
        linear.weight.copy_(new.T)
        if centred:
            x, y = whole.means
            linear.bias.copy_(y - x @ new)
        return _error(moments, old), _error(moments, new), ridge


def _solve(moments: Moments, old: Tensor, ridge: float) -> Tensor:
    """Return W with (C + ridge) (W - W_0) = T - C W_0, `(in, out)`."""
    if len(old) == 0:
        return old
    covariance = moments.covariance
    wanted = moments.cross_covariance - covariance @ old
    factor = torch.linalg.cholesky(damped(covariance, ridge))
    return old + torch.cholesky_solve(wanted, factor)


def _error(moments: Moments, weights: Tensor) -> float:
    """Return the mean squared error as a fraction of the targets' variance."""
    explained = 2 * moments.cross_covariance - moments.covariance @ weights
    total = float(moments.target_variance.sum())
    left = total - float((explained * weights).sum())
    return max(0.0, left) / total if total > 0 else 0.0


class NormFit:
    """Sums to fit the scale and shift of a norm, channel by channel.

    Args:
        width: Channels.
    """

    def __init__(self, width: int) -> None:
        self._count = 0
        # of x, y, x^2 and x y, over rows
        self._sums = torch.zeros(4, width, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows.

        Args:
            x: The student's stream, normalised, `(rows, width)`.
            y: What the teacher's norm gives, `(rows, width)`.
        """
        x, y = x.double(), y.double()
        self._count += len(x)
        self._sums += torch.stack([x.sum(0), y.sum(0), (x * x).sum(0), (x * y).sum(0)]).cpu()

    def apply_(self, norm: nn.LayerNorm) -> None:
        """Set scale and shift; a channel that never varies keeps its scale.

        Args:
            norm: The norm.
        """
        if norm.weight is None:
            return
        x, y, xx, xy = self._sums / max(1, self._count)
        if norm.bias is None:
            x = y = torch.zeros_like(x)
        variance = xx - x * x
        scale = torch.where(
            variance > 1e-8, (xy - x * y) / variance.clamp(min=1e-8), norm.weight.double().cpu()
        )
        norm.weight.copy_(scale)
        if norm.bias is not None:
            norm.bias.copy_(y - scale * x)
