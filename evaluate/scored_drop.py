"""How far a metric dropped that follows from sums over examples; see `scored`.

Whole examples, or whole groups of them, are drawn again. Where few answers changed, a bootstrap
promises too much: what the exact bound of the changed part has beyond it is taken to be as wrong as
can be (for the upper bound), or to have been so before (for the lower one).
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from .bootstrap import MetricDrop, bca_bounds, drop_between
from .metrics import Metric, Values
from .scored import Scored
from .statistics import Interval


def scored_drop(
    before: Scored,
    after: Scored,
    metric: str,
    *,
    relative: bool = False,
    alpha: float = 0.05,
    groups: Sequence[str] | None = None,
) -> MetricDrop:
    """Estimate and bound the drop in a metric.

    Args:
        before: The baseline's answers.
        after: The candidate's answers to the same examples.
        metric: Name of a metric that is better when higher.
        relative: Whether the drop is a part of the baseline's value, and not the difference.
        alpha: Error probability of each bound, below 0.5.
        groups: Name of the group of each example, where examples depend on each other.

    Returns:
        The drop; its bounds are infinite where the bootstrap has no answer.
    """
    function = before.metrics[metric]
    tables = [_grouped(scored.sums, groups) for scored in (before, after)]
    drop = partial(drop_between, relative=relative)

    def statistic(counts: Values) -> Values:
        return drop(*(function(counts @ table) for table in tables))

    units = len(tables[0])
    bounds = bca_bounds(statistic, np.ones(units), alpha)
    changed = np.abs(tables[0] - tables[1]).sum(1) > 0
    share = _unseen_share(int(changed.sum()), units, alpha)
    lost, gained = (
        drop(*(function(total) for total in totals))
        for totals in (
            (before.sums.sum(0), _mixed(after, share)),
            (_mixed(before, share), after.sums.sum(0)),
        )
    )
    values = [float(function(scored.sums.sum(0))) for scored in (before, after)]
    estimate = float(drop(*map(np.asarray, values)))
    low = bounds.low + min(0.0, float(gained) - estimate)
    high = bounds.high + max(0.0, float(lost) - estimate)
    return MetricDrop(values[0], values[1], estimate, Interval(low, high, 1 - 2 * alpha), units)


def metric_interval(scored: Scored, metric: Metric, alpha: float = 0.025) -> Interval:
    """Bound a metric by drawing examples again.

    Args:
        scored: The answers.
        metric: One of its metrics.
        alpha: Error probability of each bound.
    """
    return bca_bounds(lambda counts: metric(counts @ scored.sums), np.ones(len(scored.sums)), alpha)


def _grouped(sums: Values, groups: Sequence[str] | None) -> Values:
    if groups is None:
        return sums
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    total: Values = np.zeros((int(member.max()) + 1, sums.shape[1]))
    np.add.at(total, member, sums)
    return total


def _unseen_share(changed: int, n: int, alpha: float) -> float:
    """Return what the exact bound of the changed part has beyond what a bootstrap finds."""
    exact = float(stats.beta.ppf(1 - alpha, changed + 1, n - changed)) if changed < n else 1.0
    share = changed / n
    reach = float(special.ndtri(1 - alpha)) * np.sqrt(share * (1 - share) / n)
    return float(max(0.0, exact - share - reach))


def _mixed(scored: Scored, share: float) -> NDArray[np.float64]:
    """Return the sums if a share of all answers were as wrong as can be."""
    mixed: Values = (1 - share) * scored.sums.sum(0) + share * scored.worst.sum(0)
    return mixed
