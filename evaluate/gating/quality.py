"""Checks on what the candidate answers, in pairs with the baseline's answers.

An answer that is not finite counts as wrong and as changed; a candidate that gives one passes none
of these checks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from tcompress.errors import ModelError, RequestError

from ..bootstrap import mean_bounds
from ..metrics import CLASSIFICATION
from ..noninferiority import (
    PairedCounts,
    Verdict,
    non_inferiority,
    required_examples,
)
from ..relative_drop import retained_accuracy
from .paired import metric_drop
from .sides import NO_ANSWER, Sides
from .verdict import Check, Unit

_AS_ACCURACY = ("accuracy", "micro_f1")
"""Metrics that are the fraction of right answers, whose tests need no bootstrap."""
_MOST_DIVERGENCE = -float(np.log(np.finfo(np.float32).tiny))
"""What the smallest probability of a class that is told from 0 can cause, in nats."""
_LEAST_SEEN = 0.05
"""Part of all examples that may be unlike those seen where a mean divergence is judged."""


def check_accuracy(sides: Sides, max_drop: float, alpha: float) -> Check:
    """Hold the drop in accuracy against a margin, by the paired non-inferiority test.

    Args:
        sides: The answers.
        max_drop: Smallest drop that is not acceptable, a fraction in (0, 1).
        alpha: Error probability of a wrong pass and of a wrong regression, below 0.5.
    """
    return check_metric(sides, "accuracy", max_drop=max_drop, alpha=alpha)


def check_metric(
    sides: Sides,
    metric: str,
    *,
    max_drop: float | None = None,
    retained: float | None = None,
    alpha: float = 0.05,
    groups: Sequence[str] | None = None,
) -> Check:
    """Hold the drop in a metric against a limit.

    The accuracy is tested by scores and exact bounds, other metrics and grouped examples by a
    bootstrap, which passes nothing on fewer examples than the exact bound needs without a flip.

    Args:
        sides: The answers.
        metric: Name of a metric of a classifier, see `CLASSIFICATION`.
        max_drop: Smallest drop that is not acceptable, a fraction in (0, 1); or
        retained: Largest part of the baseline's metric that is not enough, a fraction in (0, 1).
        alpha: Error probability of a wrong pass and of a wrong regression, below 0.5.
        groups: Name of the group of each example, where examples of a group depend on each other.

    Raises:
        ModelError: If a part is to be kept of a metric of the baseline that is not above 0.
        RequestError: If the metric is not known, or not just one limit is given.
    """
    if metric not in CLASSIFICATION:
        msg = f"unknown metric {metric!r}; known are: {', '.join(CLASSIFICATION)}"
        raise RequestError(msg)
    margin, relative = _margin(max_drop, retained), retained is not None
    found = (
        _tested(sides.counts, margin, relative, alpha)
        if metric in _AS_ACCURACY and groups is None
        else _bootstrapped(sides, metric, margin, relative, alpha, groups)
    )
    if not relative:
        return _failing_broken(drop_check(f"{metric}_drop", metric, found, alpha), sides)
    return _failing_broken(kept_check(metric, found, alpha), sides)


def check_classes(sides: Sides, max_drop: float, alpha: float) -> list[Check]:
    """Hold the drop in the recall of every class that has examples against a margin.

    All have to pass, so that each is tested at alpha: a candidate that is too bad in some class
    passes with alpha at most. What shows a regression is corrected for their number, by Holm.

    Args:
        sides: The answers.
        max_drop: Smallest drop in a class's recall that is not acceptable, a fraction in (0, 1).
        alpha: Error probability of a wrong pass, and of any wrong regression among the classes.
    """
    members = {
        f"recall_drop[{name}]": sides.truth == label for label, name in enumerate(sides.labels)
    }
    return _check_parts(sides, members, max_drop, alpha)


def check_slices(
    sides: Sides, slices: Mapping[str, Sequence[str]], max_drop: float, alpha: float
) -> list[Check]:
    """Hold the drop in accuracy within every slice against a margin.

    Errors are as for `check_classes`, over the slices of all columns together.

    Args:
        sides: The answers.
        slices: Per column the value of each example; examples of one value are a slice.
        max_drop: Smallest drop in a slice's accuracy that is not acceptable, a fraction in (0, 1).
        alpha: Error probability of a wrong pass, and of any wrong regression among the slices.
    """
    members = {
        f"accuracy_drop[{column}={value}]": np.asarray(values) == value
        for column, values in slices.items()
        for value in sorted(set(values))
    }
    return _check_parts(sides, members, max_drop, alpha)


def check_flips(sides: Sides, max_flip_rate: float, alpha: float) -> Check:
    """Limit the fraction of the examples that turned from right to wrong or back.

    Args:
        sides: The answers.
        max_flip_rate: Largest fraction.
        alpha: Error probability of the bound by Clopper and Pearson.
    """
    n, flipped = len(sides), sides.counts.lost + sides.counts.gained
    low, high = _proportion(flipped, n, alpha)
    verdict = judged(low > max_flip_rate, high <= max_flip_rate)
    bound = f"at least {_percent(low)}" if low > max_flip_rate else f"at most {_percent(high)}"
    words = (
        f"{_percent(flipped / n)} of the answers flipped, {bound} {_confidence(alpha)}, "
        f"limit {_percent(max_flip_rate)}, n = {n:,}"
    )
    check = Check("flip_rate", verdict, flipped / n, high, max_flip_rate, n, words=words)
    return _failing_broken(check, sides)


def check_agreement(sides: Sides, min_agreement: float, alpha: float) -> Check:
    """Limit from below the fraction of the candidate's answers that are the baseline's.

    Args:
        sides: The answers.
        min_agreement: Smallest fraction.
        alpha: Error probability of the bound by Clopper and Pearson.
    """
    same = int(np.sum(sides.expected == sides.found))
    return _failing_broken(share_check(same, len(sides), min_agreement, alpha), sides)


def share_check(same: int, n: int, min_agreement: float, alpha: float) -> Check:
    """Limit from below the fraction of answers that are the baseline's.

    Args:
        same: How many are.
        n: How many there are.
        min_agreement: Smallest fraction.
        alpha: Error probability of the bound by Clopper and Pearson.
    """
    low, high = _proportion(same, n, alpha)
    verdict = judged(high < min_agreement, low >= min_agreement)
    bound = f"at most {_percent(high)}" if high < min_agreement else f"at least {_percent(low)}"
    words = (
        f"{_percent(same / n)} of the answers are the baseline's, {bound} {_confidence(alpha)}, "
        f"limit {_percent(min_agreement)}, n = {n:,}"
    )
    return Check("agreement", verdict, same / n, low, min_agreement, n, words=words)


def check_divergence(sides: Sides, max_divergence: float, alpha: float) -> Check:
    """Limit the mean divergence of the candidate's answers from the baseline's.

    It is KL(baseline || candidate) of the softmax of the logits, in nats, bounded by a bootstrap.
    A divergence has no upper end, so rare large ones can be missed by any sample: a pass takes at
    least as many examples as show that at most 5 % of them are unlike those seen.

    Args:
        sides: The answers.
        max_divergence: Largest mean, in nats.
        alpha: Error probability of the bound.
    """
    values = divergences(sides)
    bounds = mean_bounds(values, alpha)
    mean, n = float(values.mean()), len(sides)
    # Where the bootstrap has no answer, the bounds are those of any divergence.
    low, high = np.clip([bounds.low, bounds.high], 0.0, _MOST_DIVERGENCE)
    enough = n >= required_examples(_LEAST_SEEN, 0.0, alpha)
    verdict = judged(low > max_divergence, high <= max_divergence and enough)
    bound = f"at least {low:.2g}" if low > max_divergence else f"at most {high:.2g}"
    words = (
        f"the answers diverge by {mean:.2g} nats, {bound} {_confidence(alpha)}, "
        f"limit {max_divergence:.2g}, n = {n:,}"
    )
    check = Check(
        "divergence", verdict, mean, float(high), max_divergence, n, Unit.NATS, words=words
    )
    return _failing_broken(check, sides)


def divergences(sides: Sides) -> npt.NDArray[np.float64]:
    """Return KL(baseline || candidate) of each example in nats, `(examples,)`.

    Of an answer that is not finite it is the largest that is told apart, 87.3.

    Args:
        sides: The answers.
    """
    found = np.full(len(sides), _MOST_DIVERGENCE)
    answered = sides.found != NO_ANSWER
    expected = special.log_softmax(sides.baseline[answered].astype(np.float64), axis=1)
    given = special.log_softmax(sides.candidate[answered].astype(np.float64), axis=1)
    gap = expected - np.maximum(given, -_MOST_DIVERGENCE)
    # Rounding can leave equal distributions a little below 0.
    found[answered] = np.maximum((np.exp(expected) * gap).sum(axis=1), 0.0)
    return found


def holm(shows: Callable[[str, float], bool], names: Iterable[str], alpha: float) -> set[str]:
    """Find which of several tests hold together, by the step-down procedure of Holm (1979).

    With m tests, what holds at alpha / m holds; then what holds at alpha / (m - those), and so on.

    Args:
        shows: Whether the test of this name holds at an error probability.
        names: The tests.
        alpha: Probability that any of them holds wrongly.
    """
    open_ones, held = set(names), set[str]()
    while open_ones:
        level = alpha / len(open_ones)
        found = {name for name in open_ones if shows(name, level)}
        if not found:
            break
        held |= found
        open_ones -= found
    return held


@dataclass(frozen=True)
class Drop:
    """A drop held against a margin; absolute, or as a part of the baseline's value.

    Attributes:
        verdict: What it came to.
        estimate: The drop found.
        lower: Its lower bound.
        upper: Its upper bound.
        margin: What it is held against.
        n: Number of examples.
    """

    verdict: Verdict
    estimate: float
    lower: float
    upper: float
    margin: float
    n: int


def _margin(max_drop: float | None, retained: float | None) -> float:
    if max_drop is not None and retained is None:
        return max_drop
    if max_drop is None and retained is not None:
        return 1 - retained
    msg = f"expected max_drop or retained, got max_drop={max_drop} and retained={retained}"
    raise RequestError(msg)


def _tested(counts: PairedCounts, margin: float, relative: bool, alpha: float) -> Drop:
    if not relative:
        found = non_inferiority(counts, margin, alpha)
    elif counts.both_right + counts.lost:
        found = retained_accuracy(counts, 1 - margin, alpha)
    else:
        msg = "the baseline answers nothing right, no part of that can be kept; limit the drop"
        raise ModelError(msg)
    return Drop(found.verdict, found.estimate, found.lower, found.upper, found.margin, found.n)


def _bootstrapped(
    sides: Sides,
    metric: str,
    margin: float,
    relative: bool,
    alpha: float,
    groups: Sequence[str] | None,
) -> Drop:
    found = metric_drop(
        sides, CLASSIFICATION[metric], relative=relative, alpha=alpha, groups=groups
    )
    if not np.isfinite(found.estimate):
        msg = (
            f"the baseline's {metric} is {found.before:.3g}, no part of that can be kept; limit "
            "the drop"
        )
        raise ModelError(msg)
    enough = found.independent >= required_examples(margin, 0.0, alpha)
    low, high = found.bounds.low, found.bounds.high
    verdict = judged(low >= margin, high < margin and enough)
    return Drop(verdict, found.estimate, low, high, margin, len(sides))


def judged(regression: bool, passes: bool) -> Verdict:
    """Return the verdict of two tests.

    Args:
        regression: Whether a regression is shown.
        passes: Whether it is shown that there is none.
    """
    if regression:
        return Verdict.REGRESSION
    return Verdict.PASS if passes else Verdict.INCONCLUSIVE


def _check_parts(
    sides: Sides, members: Mapping[str, npt.NDArray[np.bool_]], max_drop: float, alpha: float
) -> list[Check]:
    right = sides.expected == sides.truth, sides.found == sides.truth
    tables = {
        name: PairedCounts.from_correct(*(side[inside] for side in right))
        for name, inside in members.items()
        if inside.any()
    }

    def shows(name: str, level: float) -> bool:
        return non_inferiority(tables[name], max_drop, level).verdict is Verdict.REGRESSION

    worse = holm(shows, tables, alpha)
    empty = [_empty_check(name, max_drop) for name in members if name not in tables]
    return [
        _failing_broken(_part_check(name, counts, max_drop, alpha, name in worse), sides)
        for name, counts in tables.items()
    ] + empty


def _empty_check(name: str, max_drop: float) -> Check:
    """Say that nothing is known of a part without examples."""
    words = f"{name}: there are no examples of it"
    return Check(name, Verdict.INCONCLUSIVE, 0.0, 1.0, max_drop, 0, words=words)


def _part_check(
    name: str, counts: PairedCounts, max_drop: float, alpha: float, worse: bool
) -> Check:
    found = _tested(counts, max_drop, False, alpha)
    verdict = judged(worse, found.verdict is Verdict.PASS)
    what = name.replace("_drop", "")
    return drop_check(name, what, replace(found, verdict=verdict), alpha)


def drop_check(name: str, what: str, found: Drop, alpha: float) -> Check:
    """Tell a drop that was held against a margin.

    Args:
        name: Name of the check.
        what: What dropped.
        found: The drop.
        alpha: Error probability of its bounds.
    """
    if found.verdict is Verdict.REGRESSION:
        bound = f"at least {100 * found.lower:.2f}"
    else:
        bound = f"at most {100 * found.upper:.2f}"
    words = (
        f"{what} {_movement(found.estimate)}, a drop of {bound} {_confidence(alpha)}, "
        f"limit {100 * found.margin:.2f}, n = {found.n:,}"
    )
    return Check(
        name, found.verdict, found.estimate, found.upper, found.margin, found.n, words=words
    )


def kept_check(metric: str, found: Drop, alpha: float) -> Check:
    """Tell a relative drop as what is kept.

    Args:
        metric: What dropped.
        found: The drop.
        alpha: Error probability of its bounds.
    """
    kept, least, limit = (1 - x for x in (found.estimate, found.upper, found.margin))
    if found.verdict is Verdict.REGRESSION:
        bound = f"at most {_percent(1 - found.lower)}"
    else:
        bound = f"at least {_percent(least)}"
    words = (
        f"{metric} kept {_percent(kept)} of the baseline's, {bound} {_confidence(alpha)}, "
        f"limit {_percent(limit)}, n = {found.n:,}"
    )
    return Check(
        f"{metric}_retained", found.verdict, kept, least, limit, found.n, Unit.RATIO, words
    )


def _proportion(count: int, n: int, alpha: float) -> tuple[float, float]:
    found = stats.binomtest(count, n).proportion_ci(1 - 2 * alpha, method="exact")
    return float(found.low), float(found.high)


def _failing_broken(check: Check, sides: Sides) -> Check:
    """Fail a check that a candidate with answers that are not finite would pass."""
    broken = int(np.sum(sides.found == NO_ANSWER))
    if not broken or check.verdict is Verdict.REGRESSION:
        return check
    words = f"{check.words}; {broken:,} of the candidate's answers are not finite"
    return replace(check, verdict=Verdict.REGRESSION, words=words)


def _movement(drop: float) -> str:
    if drop == 0:
        return "stayed the same"
    return f"{'dropped' if drop > 0 else 'rose'} {100 * abs(drop):.2f} points"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _confidence(alpha: float) -> str:
    return f"({100 * (1 - alpha):g} %)"
