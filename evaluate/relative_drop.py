"""The test that decides whether a candidate keeps a given part of the baseline's accuracy.

The relative drop is the part of the baseline's accuracy that is gone:

    drop = 1 - P(candidate right) / P(baseline right), estimated by (lost - gained) / right before

Its bounds do not take the observed accuracy for the true one: that would turn "keeps 99 %" into a
fixed margin of one hundredth of a number that is itself uncertain. As for the difference, they are
those of the score test, and with few flips the wider of these and exact ones.

References:
    Nam and Blackwelder (2002), Statistics in Medicine 21:689-699.
    Tang, Tang and Chan (2003), Statistics in Medicine 22:1217-1233.
"""

import math

from scipy import special
from scipy.optimize import brentq

from .noninferiority import (
    BoundMethod,
    NonInferiority,
    PairedCounts,
    check_alpha,
    few_flips,
    product_tail,
    verdict_of,
)
from .statistics import Interval, check_open_unit

# The relative drop is 1 only where the candidate answers nothing right; the score has no value
# there.
_ALMOST_ALL = 1 - 1e-12


def retained_accuracy(counts: PairedCounts, retained: float, alpha: float = 0.05) -> NonInferiority:
    """Decide whether a candidate keeps more than a part of the baseline's accuracy.

    Args:
        counts: The paired outcomes.
        retained: Largest part that is not enough, in (0, 1); MLPerf asks for 0.99 or 0.999.
        alpha: Nominal probability of a wrong `pass` and of a wrong `regression`, below 0.5.

    Returns:
        The verdict on the relative drop, with its estimate and bounds; the margin is 1 - retained.

    Raises:
        ValueError: If an argument is out of range, or the baseline is never right.
    """
    check_open_unit("retained", retained)
    bounds = relative_bounds(counts, alpha)
    margin = 1 - retained
    few = few_flips(counts.lost, counts.gained)
    return NonInferiority(
        verdict=verdict_of(bounds, margin),
        estimate=(counts.lost - counts.gained) / (counts.both_right + counts.lost),
        lower=bounds.low,
        upper=bounds.high,
        margin=margin,
        n=counts.n,
        method=BoundMethod.SCORE_AND_EXACT if few else BoundMethod.SCORE,
    )


def relative_bounds(counts: PairedCounts, alpha: float = 0.05) -> Interval:
    """Bound the relative drop from both sides, each side with confidence 1 - alpha.

    The upper bound is the drop d at which the score

        T(d) = (lost - gained - d b) / sqrt(n (1 - d) (p + q)),  b = both_right + lost

    is -z, p and q being the maximum likelihood estimates of P(lost) and P(gained) given d. With
    fewer than ten flips in a direction it is at least the d that bounds p - (1 - d) q exactly,
    among the examples that one of the two answered right. The lower bound mirrors it.

    Args:
        counts: The paired outcomes.
        alpha: Error probability of one side, below 0.5.

    Returns:
        The bounds; the lower one is minus infinity where the baseline may be right by luck only.

    Raises:
        ValueError: If `alpha` is outside (0, 0.5) or the baseline is never right.
    """
    check_alpha(alpha)
    both, lost, gained = counts.both_right, counts.lost, counts.gained
    if both + lost == 0:
        raise ValueError("the baseline is never right; no part of its accuracy can be kept")
    upper = _upper(both, lost, gained, alpha)
    lower = _mirrored(_upper(both, gained, lost, alpha)) if both + gained else 1.0
    return Interval(lower, upper, 1 - 2 * alpha)


def score_interval(counts: PairedCounts, confidence: float) -> Interval:
    """Compute the score interval alone of the relative drop.

    Args:
        counts: The paired outcomes; both models are right somewhere.
        confidence: Two-sided, between 0 and 1.
    """
    both, lost, gained = counts.both_right, counts.lost, counts.gained
    alpha = (1 - confidence) / 2
    low = _mirrored(_score_upper(both, gained, lost, alpha))
    return Interval(low, _score_upper(both, lost, gained, alpha), confidence)


def _mirrored(bound: float) -> float:
    """Turn a bound of the baseline's drop below the candidate into one of the candidate's."""
    return 1 - 1 / (1 - bound) if bound < 1 else -math.inf


def _upper(both: int, lost: int, gained: int, alpha: float) -> float:
    if both + gained == 0:
        return 1.0
    score = _score_upper(both, lost, gained, alpha)
    if not few_flips(lost, gained):
        return score
    return max(score, _exact_upper(both, lost, gained, alpha))


def _score_upper(both: int, lost: int, gained: int, alpha: float) -> float:
    # arctan maps infinite scores to finite values and keeps the zero.
    target = math.atan(float(special.ndtri(1 - alpha)))

    def excess(drop: float) -> float:
        return math.atan(_score(1 - drop, both, lost, gained)) + target

    return float(brentq(excess, (lost - gained) / (both + lost), _ALMOST_ALL, xtol=1e-13))


def _exact_upper(both: int, lost: int, gained: int, alpha: float) -> float:
    """The drop d that is the 1 - alpha quantile of F (L - (1 - d) (1 - L)); see `damage_bounds`."""
    n, flips = both + lost + gained, lost + gained
    if gained == 0:
        return float(special.betaincinv(lost + 1, n - lost, 1 - alpha))

    def excess(drop: float) -> float:
        line = (2 - drop, 1 - drop)
        return product_tail(drop, (lost + 1, gained), (flips + 1, n - flips), line) - alpha

    def excess_of_rise(rise: float) -> float:
        line = (2 + rise, 1.0)
        return product_tail(rise, (gained, lost + 1), (flips, n - flips + 1), line) - (1 - alpha)

    if special.betainc(lost + 1, gained, 0.5) < 1 - alpha:
        return float(brentq(excess, 0.0, 1.0, xtol=1e-13))
    return -float(brentq(excess_of_rise, 0.0, gained / (both + lost), xtol=1e-13))


def _score(kept: float, both: int, lost: int, gained: int) -> float:
    """T at the drop 1 - kept; see `relative_bounds`."""
    if kept > 1:
        # By symmetry, so that the root below is the one that is not negative.
        return -_score(1 / kept, both, gained, lost)
    n = both + lost + gained
    difference = kept * (both + lost) - (both + gained)
    # q, as a fraction of these n, solves a q**2 + b q + c = 0 with a < 0 <= c; the two forms of
    # its root avoid cancellation.
    a = -kept * (1 + kept) * n
    b = -both * (1 - kept**2) + lost * kept**2 + gained * (2 * kept**2 - 1)
    c = gained * kept * (1 - kept)
    root = math.sqrt(b * b - 4 * a * c)
    q = (b + root) / (-2 * a) if b >= 0 else 2 * c / (root - b)
    variance = n * kept * ((1 - kept) + (1 + kept) * q)
    if difference == 0:
        return 0.0
    return difference / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, difference)
