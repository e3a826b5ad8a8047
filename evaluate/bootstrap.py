"""Bounds of a statistic by the bootstrap, and how far a metric dropped."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import special

from .metrics import Values
from .statistics import Interval

RESAMPLES = 5000
LEAST_ALPHA = 0.01
"""Below, so few samples lie beyond a bound that it would be off."""
_AT_ONCE = 250  # samples that are held in memory together

Statistic = Callable[[Values], Values]
"""Takes counts of the units, `(samples, units)`, to values, `(samples,)`."""


@dataclass(frozen=True)
class MetricDrop:
    """How much a metric dropped.

    Attributes:
        before: The baseline's value.
        after: The candidate's value.
        estimate: Drop, absolute or as a part of the baseline's value; above 0 is worse.
        bounds: One-sided bounds of it, each holding with confidence 1 - alpha.
        independent: How many examples, or groups of them, were drawn independently.
    """

    before: float
    after: float
    estimate: float
    bounds: Interval
    independent: int


def mean_bounds(values: Values, alpha: float) -> Interval:
    """Bound a mean from both sides, each side with confidence 1 - alpha.

    Args:
        values: One per example, `(examples,)`.
        alpha: Error probability of each bound, below 0.5.

    Returns:
        The bounds; infinite where the bootstrap has no answer.
    """
    return bca_bounds(lambda counts: counts @ values / counts.sum(-1), np.ones(len(values)), alpha)


def bca_bounds(
    statistic: Statistic, counts: Values, alpha: float, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Bound a statistic by the bias-corrected and accelerated bootstrap.

    Args:
        statistic: Takes counts of the units to values.
        counts: How often each unit was seen, `(units,)`; equal observations make one unit.
        alpha: Error probability of each bound, below 0.5.
        resamples: Number of bootstrap samples.
        seed: Seed; equal input gives equal output.

    Returns:
        The bounds; both the estimate where no sample differs from it, infinite where they are not
        defined.

    Reference:
        Efron (1987), JASA 82:171-185. Name mapping: z0 = bias.
    """
    estimate = float(statistic(counts[None])[0])
    drawn = np.concatenate([statistic(some) for some in _resampled(counts, resamples, seed)])
    if np.all(drawn == estimate):
        return Interval(estimate, estimate, 1 - 2 * alpha)
    undefined = Interval(-np.inf, np.inf, 1 - 2 * alpha)
    if alpha < LEAST_ALPHA:
        return undefined
    if not np.isfinite(drawn).all():
        return undefined
    # Half of what equals the estimate counts as below it.
    bias = float(special.ndtri((np.mean(drawn < estimate) + np.mean(drawn <= estimate)) / 2))
    z = bias + special.ndtri([alpha, 1 - alpha])
    stretch = 1 - _acceleration(statistic, counts) * z
    if not np.isfinite(z).all() or not (stretch > 0).all():
        return undefined
    low, high = np.quantile(drawn, special.ndtr(bias + z / stretch))
    return Interval(float(low), float(high), 1 - 2 * alpha)


def _resampled(counts: Values, resamples: int, seed: int) -> Iterator[Values]:
    rng = np.random.default_rng(seed)
    total = int(counts.sum())
    for start in range(0, resamples, _AT_ONCE):
        size = min(_AT_ONCE, resamples - start)
        yield rng.multinomial(total, counts / total, size=size).astype(np.float64)


def _acceleration(statistic: Statistic, counts: Values) -> float:
    """Return the acceleration by leaving out one observation of each unit in turn; NaN of none."""
    units = np.arange(len(counts))
    left = []
    for some in np.array_split(units, -(-len(units) // _AT_ONCE)):
        fewer = np.repeat(counts[None], len(some), axis=0)
        fewer[np.arange(len(some)), some] -= 1
        left.append(statistic(fewer))
    values = np.concatenate(left)
    away = np.average(values, weights=counts) - values
    spread = float(np.sum(counts * away**2))
    return float(np.sum(counts * away**3)) / (6 * spread**1.5) if spread > 0 else np.nan


def drop_between(before: Values, after: Values, relative: bool) -> Values:
    """Return how far a metric dropped, `(...)`.

    Args:
        before: The baseline's values, `(...)`.
        after: The candidate's values, `(...)`.
        relative: Whether as a part of the baseline's; NaN where that is not above 0.
    """
    if not relative:
        return before - after
    # A baseline without merit has no part that could be kept.
    return np.where(before > 0, 1 - after / np.where(before > 0, before, 1.0), np.nan)
