"""How steady measured calls were: their spread, those far outside, and a drift of the machine."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
from scipy import stats

_NS_PER_MS = 1e6
_SECONDS_PER_MINUTE = 60
# Scaled, a median absolute deviation is the standard deviation of normal noise.
_OUTLYING_DEVIATIONS = 5 * 1.4826
_CONFIDENCE = 0.99
# With fewer turns, even chance alone puts them into order more often than one time in a hundred.
_FEWEST_TURNS = 6
_DRIFT_OF_NOTE = 0.03


@dataclass(frozen=True)
class Drift:
    """A change of the latency in the course of measuring.

    Attributes:
        slope_per_minute: Change per minute, as a fraction of the median; above 0 calls took ever
            longer. None where there are too few turns to tell.
        flagged: Whether it is neither chance nor small.
    """

    slope_per_minute: float | None
    flagged: bool


@dataclass(frozen=True)
class Stability:
    """How steady measured calls were.

    Attributes:
        mad_ms: Median absolute deviation from the median.
        cv: Coefficient of variation, a fraction; None for a single call.
        outliers: Calls that took far longer than the others.
        drift: How the latency changed in the course of measuring.
    """

    mad_ms: float
    cv: float | None
    outliers: int
    drift: Drift

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, in milliseconds where they have a unit."""
        return {
            "mad": round(self.mad_ms, 5),
            "cv": self.cv,
            "outliers": self.outliers,
            "drift": asdict(self.drift),
        }


def describe(turns: Sequence[tuple[float, Sequence[int]]]) -> Stability:
    """Describe calls that were measured in turns, with pauses in between.

    Args:
        turns: For each turn, in their order, when it began in seconds, and the duration of each
            of its calls in ns; at least one call in all.

    Raises:
        ValueError: If there is no call.
    """
    samples = np.asarray(list(chain.from_iterable(taken for _, taken in turns)), dtype=np.float64)
    if not samples.size:
        raise ValueError("stability needs at least one measured call, got none")
    mad = float(stats.median_abs_deviation(samples))
    far = float(np.median(samples)) + _OUTLYING_DEVIATIONS * mad
    return Stability(
        mad_ms=mad / _NS_PER_MS,
        cv=float(stats.variation(samples, ddof=1)) if samples.size > 1 else None,
        outliers=int(np.count_nonzero(samples > far)),
        drift=_drift(turns),
    )


def _drift(turns: Sequence[tuple[float, Sequence[int]]]) -> Drift:
    """Estimate a linear drift by Theil and Sen's slope, over the medians of the turns.

    It is flagged where its 99 % interval leaves out 0, and it changed the latency by more than 3 %
    from the first turn to the last: what is smaller, turns in a mirrored order cancel.
    """
    taken = [(start_s, float(np.median(samples))) for start_s, samples in turns if len(samples)]
    starts, medians = (np.asarray(values) for values in zip(*taken, strict=True))
    span_s = float(np.ptp(starts))
    if len(taken) < _FEWEST_TURNS or not span_s:
        return Drift(None, flagged=False)
    middle = float(np.median(medians))
    slope, _, low, high = stats.theilslopes(medians / middle, starts, alpha=_CONFIDENCE)
    flagged = (low > 0 or high < 0) and abs(slope) * span_s > _DRIFT_OF_NOTE
    return Drift(float(slope) * _SECONDS_PER_MINUTE, bool(flagged))
