"""Tests that decide whether a compressed encoder is still good enough.

A candidate and its baseline answer the same `n` examples, so every example falls into one of four
cells: both right, `lost` (only the baseline was right), `gained` (only the candidate was right),
both wrong. A flip is an example in `lost` or `gained`. The damage is the drop in accuracy:

    damage = P(lost) - P(gained), estimated by (lost - gained) / n

Positive damage is worse. All rates, margins and bounds are fractions: 0.01 is one point of
accuracy.

`damage_bounds` starts from the score interval of Tango (1998). That interval leans on a normal
approximation, which promises too much when flips are few: without a single flip it proves a margin
of 0.01 from 268 examples, although a candidate at the margin gets through such a set with a
probability of 0.99**268 = 6.8 %. With fewer than ten flips in either direction, each bound is
therefore the wider of Tango's and the exact one of Fay and Lumbard (2021), which asks for 299.

References:
    Tango (1998), Statistics in Medicine 17:891-908.
    Fay and Lumbard (2021), Statistics in Medicine 40:1147-1159, doi:10.1002/sim.8829.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats
from scipy.optimize import brentq

from .statistics import Interval, check_open_unit

# The usual least count for a normal approximation. Summed over all tables with n from 50 to 1200,
# margins from 0.005 to 0.05 and flip rates up to 20 %, tests at 5 % then err in at most 5.2 % of
# the cases, be it towards pass or regression; with the score alone in up to 6.8 % and 8.9 %.
_FEW_FLIPS = 10

# Chance of the tables that a sum over all of them leaves out, at each end.
_NEGLIGIBLE = 5e-9

_legendre_nodes, _legendre_weights = np.polynomial.legendre.leggauss(64)
# Quadrature on (0, 1).
_NODES: NDArray[np.float64] = (_legendre_nodes + 1) / 2
_WEIGHTS: NDArray[np.float64] = _legendre_weights / 2


class Verdict(StrEnum):
    """What the examples prove about the damage."""

    PASS = "pass"
    REGRESSION = "regression"
    INCONCLUSIVE = "inconclusive"


class BoundMethod(StrEnum):
    """How the bounds of the damage were found."""

    SCORE = "score"
    SCORE_AND_EXACT = "score+exact"


@dataclass(frozen=True)
class PairedCounts:
    """How many examples a baseline and a candidate answered right or wrong, in pairs."""

    both_right: int
    lost: int
    gained: int
    both_wrong: int

    def __post_init__(self) -> None:
        cells = (self.both_right, self.lost, self.gained, self.both_wrong)
        if min(cells) < 0 or sum(cells) == 0:
            raise ValueError(
                "(both_right, lost, gained, both_wrong) must be non-negative with a positive "
                f"sum, got {cells}"
            )

    @classmethod
    def from_correct(
        cls,
        baseline_correct: Sequence[bool] | NDArray[np.bool_],
        candidate_correct: Sequence[bool] | NDArray[np.bool_],
    ) -> Self:
        """Count the four cells.

        Args:
            baseline_correct: Whether the baseline was right, `(n,)`, bool.
            candidate_correct: The same for the candidate, on the same examples in the same order.

        Returns:
            The counts.

        Raises:
            ValueError: If the two are not bool vectors of one length, or are empty.
        """
        base, cand = np.asarray(baseline_correct), np.asarray(candidate_correct)
        if base.dtype != np.bool_ or cand.dtype != np.bool_:
            raise ValueError(
                "baseline_correct and candidate_correct must be bool, "
                f"got {base.dtype} and {cand.dtype}"
            )
        if base.ndim != 1 or base.shape != cand.shape:
            raise ValueError(
                "baseline_correct and candidate_correct must have one shape (n,), "
                f"got {base.shape} and {cand.shape}"
            )
        return cls(
            both_right=int(np.sum(base & cand)),
            lost=int(np.sum(base & ~cand)),
            gained=int(np.sum(~base & cand)),
            both_wrong=int(np.sum(~base & ~cand)),
        )

    @property
    def n(self) -> int:
        """Number of examples."""
        return self.both_right + self.lost + self.gained + self.both_wrong

    @property
    def damage(self) -> float:
        """Observed drop in accuracy, (lost - gained) / n; higher is worse."""
        return (self.lost - self.gained) / self.n

    @property
    def flip_rate(self) -> float:
        """Fraction of the examples that turned from right to wrong or back."""
        return (self.lost + self.gained) / self.n


@dataclass(frozen=True)
class NonInferiority:
    """A verdict on the damage, with the numbers that it rests on.

    `lower` and `upper` are one-sided bounds: each alone holds with confidence 1 - alpha.
    """

    verdict: Verdict
    estimate: float
    lower: float
    upper: float
    margin: float
    n: int
    method: BoundMethod


def tango_interval(lost: int, gained: int, n: int, confidence: float) -> Interval:
    """Compute Tango's score interval of the damage.

    The interval holds every d with |T(d)| <= z, z the two-sided normal quantile, where

        T(d) = (lost - gained - n d) / sqrt(n (2 q + d (1 - d)))

    and q is the maximum likelihood estimate of P(gained) given damage d. T(0)**2 is McNemar's
    (lost - gained)**2 / (lost + gained).

    Args:
        lost: Examples that only the baseline answered right.
        gained: Examples that only the candidate answered right.
        n: All examples, flipped or not.
        confidence: Two-sided, between 0 and 1.

    Returns:
        The interval, within [-1, 1].

    Raises:
        ValueError: If the counts do not fit in `n`, or `confidence` is outside (0, 1).

    Reference:
        Tango (1998), Statistics in Medicine 17:891-908, section 3. Name mapping: b = lost,
        c = gained, Delta = d, p21 = q.
    """
    _check_counts(lost, gained, n)
    check_open_unit("confidence", confidence)
    alpha = (1 - confidence) / 2
    low = -_score_upper(gained, lost, n, alpha)
    return Interval(low, _score_upper(lost, gained, n, alpha), confidence)


def damage_bounds(counts: PairedCounts, alpha: float = 0.05) -> Interval:
    """Bound the damage from both sides, each side with confidence 1 - alpha.

    With at least ten flips in each direction this is Tango's interval. With fewer, each bound is
    the wider of Tango's and the melded exact one: the 1 - alpha quantile of F (2 L - 1), where F
    and L follow the Clopper-Pearson confidence distributions of the flip rate and of the fraction
    of losses among the flips. Without gains, its upper bound is Clopper and Pearson's bound of
    P(lost); without any flip, 1 - alpha**(1 / n).

    Args:
        counts: The paired outcomes.
        alpha: Error probability of one side, below 0.5.

    Returns:
        The bounds; as a two-sided interval they have the confidence 1 - 2 alpha.

    Raises:
        ValueError: If `alpha` is outside (0, 0.5).

    Reference:
        Fay and Lumbard (2021), doi:10.1002/sim.8829. Name mapping: theta = F, beta = L.
    """
    check_alpha(alpha)
    lost, gained, n = counts.lost, counts.gained, counts.n
    upper = _damage_upper(lost, gained, n, alpha)
    return Interval(-_damage_upper(gained, lost, n, alpha), upper, 1 - 2 * alpha)


def verdict_of(bounds: Interval, margin: float) -> Verdict:
    """Return what bounds of a loss prove about a margin.

    Args:
        bounds: One-sided bounds of the loss.
        margin: Smallest loss that is not acceptable.
    """
    if bounds.high < margin:
        return Verdict.PASS
    return Verdict.REGRESSION if bounds.low >= margin else Verdict.INCONCLUSIVE


def non_inferiority(counts: PairedCounts, margin: float, alpha: float = 0.05) -> NonInferiority:
    """Decide whether the damage is below a margin.

    `pass` is returned if the upper bound of the damage is below the margin, `regression` if the
    lower bound reaches it, `inconclusive` if the examples prove neither.

    Args:
        counts: The paired outcomes.
        margin: Smallest drop in accuracy that is not acceptable, a fraction in (0, 1).
        alpha: Nominal probability of a wrong `pass` and of a wrong `regression`, below 0.5.

    Returns:
        The verdict, the estimate, the bounds of `damage_bounds` and their method.

    Raises:
        ValueError: If `margin` or `alpha` is out of range.
    """
    check_open_unit("margin", margin)
    bounds = damage_bounds(counts, alpha)
    few = few_flips(counts.lost, counts.gained)
    return NonInferiority(
        verdict=verdict_of(bounds, margin),
        estimate=counts.damage,
        lower=bounds.low,
        upper=bounds.high,
        margin=margin,
        n=counts.n,
        method=BoundMethod.SCORE_AND_EXACT if few else BoundMethod.SCORE,
    )


def provable_margin(
    n: int, flip_rate: float, alpha: float = 0.05, power: float | None = None
) -> float:
    """Say how small a margin a set can prove for a candidate that does no damage.

    The margin is the upper bound of `damage_bounds` in the table where n flip_rate flips split
    evenly; with a power, in the table that is worse by z_power sqrt(n flip_rate), the quantile of
    lost - gained. With many flips this is (z_alpha + z_power) sqrt(flip_rate / n).

    Args:
        n: Number of examples.
        flip_rate: Fraction of the examples that flip, in [0, 1].
        alpha: Nominal probability of a wrong `pass`, below 0.5.
        power: Probability, at least 0.5, with which the set shall prove the margin; None for the
            margin that an even split proves.

    Returns:
        The margin, a fraction; without flips 1 - alpha**(1 / n).

    Raises:
        ValueError: If an argument is out of range.
    """
    _check_plan(flip_rate, alpha, power)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    flips = n * flip_rate
    shift = 0.0 if power is None else float(special.ndtri(power)) * math.sqrt(flips)
    gained = max(0.0, (flips - shift) / 2)
    lost = min((flips + shift) / 2, n - gained)
    return _damage_upper(lost, gained, n, alpha)


def required_examples(
    margin: float, flip_rate: float, alpha: float = 0.05, power: float = 0.8
) -> int:
    """Plan the number of examples that proves a margin for a candidate that does no damage.

    It is about (z_alpha + z_power)**2 flip_rate / margin**2, which is 6.18 flip_rate / margin**2 by
    default, and never less than the log(alpha) / log(1 - margin) that a set without flips needs.

    Args:
        margin: Smallest drop in accuracy that is not acceptable, a fraction in (0, 1).
        flip_rate: Expected fraction of the examples that flip, in [0, 1].
        alpha: Nominal probability of a wrong `pass`, below 0.5.
        power: Probability of a `pass`, at least 0.5.

    Returns:
        Number of examples with a `pass_probability` of at least `power`, while one example less
        has not. As tables are discrete, a little more of them can fall short of it again, by less
        than 0.01.

    Raises:
        ValueError: If an argument is out of range.
    """
    check_open_unit("margin", margin)
    _check_plan(flip_rate, alpha, power)
    enough = 1
    while pass_probability(enough, margin, flip_rate, alpha) < power:
        enough *= 2
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if pass_probability(middle, margin, flip_rate, alpha) < power:
            too_few = middle
        else:
            enough = middle
    return enough


def pass_probability(
    n: int, margin: float, flip_rate: float, alpha: float = 0.05, damage: float = 0.0
) -> float:
    """Compute how often a candidate passes: its power without damage, an error at the margin.

    Sums over the tables of n examples that flip independently; exact but for 1e-8.

    Args:
        n: Number of examples.
        margin: Smallest drop in accuracy that is not acceptable, a fraction in (0, 1).
        flip_rate: Fraction of the examples that flip, in [0, 1].
        alpha: Nominal probability of a wrong `pass`, below 0.5.
        damage: True drop in accuracy, at most `flip_rate` either way.

    Raises:
        ValueError: If an argument is out of range.
    """
    check_open_unit("margin", margin)
    _check_plan(flip_rate, alpha, None)
    if abs(damage) > flip_rate:
        raise ValueError(f"damage must be within the flip rate {flip_rate}, got {damage}")
    p_lost, p_gained = (flip_rate + damage) / 2, (flip_rate - damage) / 2
    first, last = (int(stats.binom.ppf(q, n, p_gained)) for q in (_NEGLIGIBLE, 1 - _NEGLIGIBLE))
    gained = np.arange(max(first, 0), last + 1)
    most_lost = _most_lost(gained, n, margin, alpha)
    # The more is gained, the fewer examples are left to be lost.
    allowed = stats.binom.cdf(most_lost, n - gained, min(p_lost / (1 - p_gained), 1.0))
    return float(stats.binom.pmf(gained, n, p_gained) @ allowed)


def mcnemar_exact(lost: int, gained: int) -> float:
    """Test whether losses and gains are equally likely, by the exact McNemar (sign) test.

    For information only: a large p-value does not show that the damage is small.

    Args:
        lost: Examples that only the baseline answered right.
        gained: Examples that only the candidate answered right.

    Returns:
        Two-sided p-value; 1 without any flip.

    Raises:
        ValueError: If a count is negative.
    """
    _check_counts(lost, gained, lost + gained or 1)
    if lost + gained == 0:
        return 1.0
    return float(stats.binomtest(lost, lost + gained, 0.5).pvalue)


# The functions below take fractional counts too: the planner asks about expected tables.


def few_flips(lost: float, gained: float) -> bool:
    """Say whether a normal approximation promises too much.

    Args:
        lost: Examples that only the baseline answered right.
        gained: Examples that only the candidate answered right.
    """
    return min(lost, gained) < _FEW_FLIPS


def _damage_upper(lost: float, gained: float, n: int, alpha: float) -> float:
    score = _score_upper(lost, gained, n, alpha)
    if not few_flips(lost, gained):
        return score
    return max(score, _melded_upper(lost, gained, n, alpha))


def _score(damage: float, lost: float, gained: float, n: int) -> float:
    """Tango's T(damage); see `tango_interval`."""
    if damage < 0:
        # By symmetry, so that q below is P(gained) >= 0 and not only >= -damage.
        return -_score(-damage, gained, lost, n)
    difference = lost - gained - n * damage
    if difference == 0:
        return 0.0
    # q solves 2 n q**2 + b q + c = 0; of the two forms of its root, take the one that does not
    # cancel.
    b = 2 * n * damage - (lost + gained) - damage * (lost - gained)
    c = -gained * damage * (1 - damage)
    root = math.sqrt(b * b - 8 * n * c)
    q = (root - b) / (4 * n) if b <= 0 else -2 * c / (b + root)
    variance = n * (2 * q + damage * (1 - damage))
    return difference / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, difference)


def _score_upper(lost: float, gained: float, n: int, alpha: float) -> float:
    """The damage above the estimate with T = -z, z the upper alpha quantile."""
    if lost == n:
        return 1.0
    # arctan maps T's infinite values at the ends to finite ones and keeps its zero.
    target = math.atan(float(special.ndtri(1 - alpha)))

    def excess(damage: float) -> float:
        return math.atan(_score(damage, lost, gained, n)) + target

    return float(brentq(excess, (lost - gained) / n, 1.0, xtol=1e-13))


def _proves(lost: int, gained: int, n: int, margin: float, alpha: float) -> bool:
    """Whether `_damage_upper` is below a positive margin, found without computing it."""
    if lost == n or _score(margin, lost, gained, n) >= -float(special.ndtri(1 - alpha)):
        return False
    if not few_flips(lost, gained):
        return True
    if gained == 0:
        return bool(special.betainc(lost + 1, n - lost, margin) > 1 - alpha)
    rate = (lost + gained + 1, n - lost - gained)
    return product_tail(margin, (lost + 1, gained), rate) < alpha


def _most_lost(gained: NDArray[np.int64], n: int, margin: float, alpha: float) -> NDArray[np.int64]:
    """Return for each number of gains, rising by 1, the most losses with a pass; -1 for none."""
    found = np.empty_like(gained)
    most = _most_lost_beside(int(gained[0]), n, margin, alpha)
    for i, more in enumerate(gained):
        # A gain never makes a pass harder: go on from the one before.
        while most + more < n and _proves(most + 1, int(more), n, margin, alpha):
            most += 1
        found[i] = most
    return found


def _most_lost_beside(gained: int, n: int, margin: float, alpha: float) -> int:
    """Return the most losses with a pass beside so many gains, by bisection; -1 for none."""
    passes, fails = -1, n - gained + 1
    while fails - passes > 1:
        middle = (passes + fails) // 2
        if _proves(middle, gained, n, margin, alpha):
            passes = middle
        else:
            fails = middle
    return passes


def _melded_upper(lost: float, gained: float, n: int, alpha: float) -> float:
    """Fay and Lumbard's upper bound: the 1 - alpha quantile of F (2 L - 1)."""
    flips = lost + gained
    if lost == n:
        return 1.0
    if gained == 0:
        return float(special.betaincinv(lost + 1, n - lost, 1 - alpha))
    # L ~ Beta(lost + 1, gained). The bound has the sign of the 1 - alpha quantile of 2 L - 1:
    # where that is positive more flips are worse, so F is the upper confidence distribution of
    # the flip rate; where it is negative, F is the lower one, and the mirrored M = 1 - L is used.
    if special.betainc(lost + 1, gained, 0.5) < 1 - alpha:
        sign, tail, share, rate = 1, alpha, (lost + 1, gained), (flips + 1, n - flips)
    else:
        sign, tail, share, rate = -1, 1 - alpha, (gained, lost + 1), (flips, n - flips + 1)

    def excess(size: float) -> float:
        return product_tail(size, share, rate) - tail

    return sign * float(brentq(excess, 0.0, 1.0, xtol=1e-13))


def product_tail(
    size: float,
    share: tuple[float, float],
    rate: tuple[float, float],
    line: tuple[float, float] = (2.0, 1.0),
) -> float:
    """Compute P(F (a M - b) > size) for independent F and M.

    Args:
        size: Not negative.
        share: Parameters of the beta distribution of M.
        rate: Those of F, the second 0 for F = 1.
        line: a and b.
    """
    slope, offset = line
    # Only M > (b + size) / a counts: start there, where the integrand has its kink.
    start = special.betainc(*share, min((offset + size) / slope, 1.0))
    if rate[1] == 0:
        return float(1 - start)
    factor = slope * special.betaincinv(*share, start + (1 - start) * _NODES) - offset
    # Rounding can put a factor below the size that it starts from.
    reach = np.divide(size, factor, out=np.ones_like(factor), where=factor > size)
    return float((1 - start) * (_WEIGHTS @ (1 - special.betainc(*rate, reach))))


def _check_counts(lost: int, gained: int, n: int) -> None:
    if lost < 0 or gained < 0 or n < 1 or lost + gained > n:
        raise ValueError(
            "expected lost >= 0, gained >= 0 and lost + gained <= n with n >= 1, "
            f"got lost={lost}, gained={gained}, n={n}"
        )


def check_alpha(alpha: float) -> None:
    """Raise unless an error probability can be one.

    Args:
        alpha: Error probability of one side.

    Raises:
        ValueError: If it is outside (0, 0.5).
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must be between 0 and 0.5, got {alpha}")


def _check_plan(flip_rate: float, alpha: float, power: float | None) -> None:
    check_alpha(alpha)
    if not 0 <= flip_rate <= 1:
        raise ValueError(f"flip_rate must be between 0 and 1 (a fraction), got {flip_rate}")
    if power is not None and not 0.5 <= power < 1:
        raise ValueError(f"power must be at least 0.5 and below 1, got {power}")
