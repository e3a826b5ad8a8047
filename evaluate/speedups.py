"""How a speed-up is told: as precisely as its interval allows, and without one where it has none.

A speed-up is the entry's `speedup` of the document, or a noise floor, which looks the same.
"""

import math
from typing import Any

from .measurement import CONFIDENCE

Speedup = dict[str, Any]

_WIDE = 0.2


def is_sure(interval: dict[str, Any]) -> bool:
    """Tell whether an interval holds with enough confidence to conclude from it.

    Args:
        interval: Anything with a `confidence`; without one it is believed.
    """
    return bool(interval.get("confidence", 1.0) >= CONFIDENCE)


def is_of_baseline(speedup: Speedup) -> bool:
    """Tell whether it is that of the baseline over itself, which nothing was measured for.

    Args:
        speedup: The speed-up.
    """
    return not speedup.get("blocks", 1)


def is_decided(speedup: Speedup) -> bool:
    """Tell whether it was found out which of the two is faster, or that neither is.

    Args:
        speedup: The speed-up.
    """
    if is_of_baseline(speedup):
        return True
    verdict = speedup.get("verdict")
    if verdict is None:
        return is_sure(speedup) and not speedup["low"] <= 1 <= speedup["high"]
    return is_sure(speedup) and verdict != "inconclusive"


def is_wide(speedup: Speedup) -> bool:
    """Tell whether a bound is so far off that the estimate alone would mislead.

    Args:
        speedup: The speed-up.
    """
    value = speedup["value"]
    return bool(max(speedup["high"] - value, value - speedup["low"]) > _WIDE * value)


def half_width(speedup: Speedup) -> float:
    """Return half of the interval's width, as a fraction of the value.

    Args:
        speedup: The speed-up.
    """
    return float((speedup["high"] - speedup["low"]) / 2 / speedup["value"])


def estimate(value: float) -> str:
    """Return how many times as fast, in three digits.

    Args:
        value: The ratio.
    """
    return f"{value:.{places(value)}f}"


def places(value: float) -> int:
    """Return the decimals of a ratio in three digits.

    Args:
        value: The ratio.
    """
    return max(0, 2 - math.floor(math.log10(max(value, 1.0))))


def bounds(speedup: Speedup, between: str = " to ", decimals: int | None = None) -> str:
    """Return the ends of an interval, in a digit less than the estimate where that is enough.

    Args:
        speedup: The speed-up.
        between: What stands between the ends.
        decimals: How many there are; None for as many as the ends deserve.
    """
    low, high = (
        f"{end:.{_places_of_end(end) if decimals is None else decimals}f}"
        for end in (speedup["low"], speedup["high"])
    )
    return f"{low}{between}{high}"


def cell(speedup: Speedup, *, is_baseline: bool = False) -> str:
    """Return a speed-up with its interval, as it stands in a table of text.

    Args:
        speedup: The speed-up.
        is_baseline: Whether it is that of the baseline over itself.
    """
    if is_baseline or is_of_baseline(speedup):
        return "1"
    if not is_sure(speedup):
        return f"{estimate(speedup['value'])} (?)"
    return f"{estimate(speedup['value'])} ({bounds(speedup, '–')})"


def _places_of_end(end: float) -> int:
    # Near 1 a hundredth decides whether anything is faster at all.
    if end < 4:
        return 2 if end >= 0.095 else 3
    return 1 if end < 40 else 0
