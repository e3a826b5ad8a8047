"""How much a metric dropped, by a bootstrap that resamples what both models answered in pairs.

An example belongs to a cell (right class, baseline's answer, candidate's answer), and the metrics
depend on nothing but the counts of the cells. So whole samples are drawn as multinomial counts, and
leaving one example out has one outcome per cell. Of grouped examples, whole groups are drawn.

A bootstrap knows only what happened. Where flips are few it promises too much: without any, it
takes a drop of 0 for certain. Each bound is therefore widened by what an exact bound of a class's
losses has beyond the bootstrap, put where it hurts the metric most; see `_unseen`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import special

from ..bootstrap import MetricDrop, bca_bounds, drop_between
from ..metrics import Counts, Metric, Values
from ..noninferiority import PairedCounts, damage_bounds, few_flips
from ..statistics import Interval
from .sides import Sides


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
