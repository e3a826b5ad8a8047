"""How much a metric dropped, by a bootstrap that resamples what both models answered in pairs.

An example belongs to a cell (right class, baseline's answer, candidate's answer), and the metrics
depend on nothing but the counts of the cells. So whole samples are drawn as multinomial counts, and
leaving one example out has one outcome per cell. Of grouped examples, whole groups are drawn.

A bootstrap knows only what happened. Where flips are few it promises too much: without any, it
takes a drop of 0 for certain. Each bound is therefore widened by what an exact bound of a class's
losses has beyond the bootstrap, put where it hurts the metric most; see `_unseen`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import special

from ..metrics import Counts, Metric, Values
from ..noninferiority import PairedCounts, damage_bounds, few_flips
from ..statistics import Interval
from .sides import Sides

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


def metric_drop(
    sides: Sides,
    metric: Metric,
    *,
    relative: bool = False,
    alpha: float = 0.05,
    groups: Sequence[str] | None = None,
) -> MetricDrop:
    """Estimate and bound the drop in a metric.

    Args:
        sides: The answers.
        metric: The metric of confusion counts.
        relative: Whether the drop is a part of the baseline's value, and not the difference.
        alpha: Error probability of each bound, below 0.5.
        groups: Name of the group of each example, where examples depend on each other.

    Returns:
        The drop; its bounds are -1 and 1 where the bootstrap has no answer.
    """
    cells = _Cells.of(sides, groups)
    before, after = (table.sum(0).reshape(cells.shape) for table in cells.scaled())
    drop = partial(drop_between, relative=relative)

    def statistic(counts: Values) -> Values:
        # counts: (samples, units), tables: (units, classes * answers)
        stacked = [(counts @ table).reshape(-1, *cells.shape) for table in cells.tables]
        return drop(*map(metric, stacked))

    found = bca_bounds(statistic, cells.counts, alpha)
    values = metric(before), metric(after)
    estimate = float(drop(*values))
    if np.isfinite([found.low, found.high]).all():
        losses, gains = _unseen(sides, alpha, len(sides) / cells.independent)
        worse = [float(drop(values[0], metric(moved)).max()) for moved in _moves(after, losses)]
        better = [float(drop(metric(moved), values[1]).min()) for moved in _moves(before, gains)]
        found = Interval(
            found.low + min([estimate, *better]) - estimate,
            found.high + max([estimate, *worse]) - estimate,
            found.confidence,
        )
    if not np.isfinite([found.low, found.high]).all():
        found = Interval(-1.0, 1.0, found.confidence)
    return MetricDrop(float(values[0]), float(values[1]), estimate, found, cells.independent)


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


@dataclass(frozen=True)
class _Cells:
    """What is drawn: cells, or groups of examples.

    Attributes:
        counts: How often each unit was seen, `(units,)`.
        tables: What a unit adds to the confusion counts of baseline and candidate,
            `(units, classes * answers)`.
        shape: Of confusion counts.
    """

    counts: Values
    tables: tuple[Values, Values]
    shape: tuple[int, int]

    @classmethod
    def of(cls, sides: Sides, groups: Sequence[str] | None) -> "_Cells":
        classes = len(sides.labels)
        pairs = np.stack([_column(sides.truth, side, classes) for side in _answers(sides)])
        cells, member, counts = np.unique(pairs, axis=1, return_inverse=True, return_counts=True)
        tables = [np.zeros((len(counts), classes * (classes + 1))) for _ in cells]
        for table, row in zip(tables, cells, strict=True):
            table[np.arange(len(counts)), row] = 1
        if groups is not None:
            _, group = np.unique(np.asarray(groups), return_inverse=True)
            held = np.zeros((group.max() + 1, len(counts)))
            np.add.at(held, (group, member.ravel()), 1)
            held, counts = np.unique(held, axis=0, return_counts=True)
            tables = [held @ table for table in tables]
        first, second = tables
        return cls(counts.astype(np.float64), (first, second), (classes, classes + 1))

    @property
    def independent(self) -> int:
        """Number of units that were seen."""
        return int(self.counts.sum())

    def scaled(self) -> tuple[Values, Values]:
        """Return what all that was seen adds, `(units, classes * answers)` each."""
        first, second = (self.counts[:, None] * table for table in self.tables)
        return first, second


def _answers(sides: Sides) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return sides.expected, sides.found


def _column(truth: NDArray[np.int64], found: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return the index of each example in flat confusion counts."""
    return truth * (classes + 1) + np.where(found < 0, classes, found)


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


def _unseen(sides: Sides, alpha: float, size: float) -> tuple[Values, Values]:
    """Return the losses and gains of each class that a bootstrap overlooks, `(classes,)` each.

    That is the exact bound beyond the estimate plus z sqrt(flips), which is what a bootstrap finds;
    nothing where flips are many. Of groups, `size` examples count as one.
    """
    found = np.zeros((2, len(sides.labels)))
    right = [answers == sides.truth for answers in _answers(sides)]
    for label in np.unique(sides.truth):
        inside = sides.truth == label
        counts = PairedCounts.from_correct(*(side[inside] for side in right))
        lost, gained = int(counts.lost / size), int(counts.gained / size)
        if few_flips(lost, gained):
            n = max(int(counts.n / size), 1)
            bounds = damage_bounds(PairedCounts(n - lost - gained, lost, gained, 0), alpha)
            reach = float(special.ndtri(1 - alpha)) * np.sqrt(lost + gained)
            net = lost - gained
            found[:, label] = n * bounds.high - net - reach, net - reach - n * bounds.low
    losses, gains = size * np.maximum(found, 0.0)
    return losses, gains


def _moves(counts: Counts, sizes: Values) -> Iterator[Counts]:
    """Yield counts with right answers of one class made wrong, `(others, classes, answers)`."""
    for label in np.flatnonzero(sizes):
        others = np.delete(np.arange(counts.shape[1]), label)
        size = min(sizes[label], counts[label, label])
        moved = np.repeat(counts[None], len(others), axis=0)
        moved[:, label, label] -= size
        moved[np.arange(len(others)), label, others] += size
        yield moved
