"""Checks on what the candidate answers: the task's metric, in pairs with the baseline."""

from typing import Any

from ..noninferiority import (
    NonInferiority,
    Verdict,
    mcnemar_exact,
    non_inferiority,
    provable_margin,
    required_examples,
)
from .sides import Sides
from .verdict import Check

POWER = 0.8
"""Chance of a pass, for a candidate that does no damage, that is planned for."""


def check_accuracy(sides: Sides, max_drop: float, alpha: float) -> Check:
    """Hold the drop in accuracy against a margin, by the paired non-inferiority test.

    Args:
        sides: The answers.
        max_drop: Smallest drop that is not acceptable, a fraction in (0, 1).
        alpha: Error probability of a wrong pass and of a wrong regression, below 0.5.
    """
    result = non_inferiority(sides.counts, max_drop, alpha)
    return Check(
        name="accuracy_drop",
        verdict=result.verdict,
        estimate=result.estimate,
        bound=result.upper,
        limit=max_drop,
        n=result.n,
        words=_accuracy_words(result, alpha),
    )


def accuracy_facts(sides: Sides, max_drop: float, alpha: float) -> dict[str, Any]:
    """Return the paired table behind the verdict, for the JSON document.

    Args:
        sides: The answers.
        max_drop: As for `check_accuracy`.
        alpha: As for `check_accuracy`.
    """
    counts = sides.counts
    bounds = non_inferiority(counts, max_drop, alpha)
    return {
        "max_drop": max_drop,
        "accuracy": {
            "baseline": (counts.both_right + counts.lost) / counts.n,
            "candidate": (counts.both_right + counts.gained) / counts.n,
        },
        "drop_interval": {"low": bounds.lower, "high": bounds.upper},
        "counts": {
            "both_right": counts.both_right,
            "lost": counts.lost,
            "gained": counts.gained,
            "both_wrong": counts.both_wrong,
        },
        "flip_rate": counts.flip_rate,
        "mcnemar_p": mcnemar_exact(counts.lost, counts.gained),
        "provable_margin": provable_margin(counts.n, counts.flip_rate, alpha),
        "required_examples": required_examples(max_drop, counts.flip_rate, alpha, POWER),
    }


def accuracy_advice(sides: Sides, max_drop: float, alpha: float) -> str:
    """Say what would settle an inconclusive verdict on the accuracy.

    Args:
        sides: The answers.
        max_drop: As for `check_accuracy`.
        alpha: As for `check_accuracy`.
    """
    n, flip_rate = sides.counts.n, sides.counts.flip_rate
    needed = required_examples(max_drop, flip_rate, alpha, POWER)
    provable = provable_margin(n, flip_rate, alpha)
    can = f"These {n:,} examples can prove a limit of {100 * provable:.2f} points"
    if n >= needed:
        return f"{can}, if nothing is lost: the drop seen is too close to the limit."
    return (
        f"{can}, if nothing is lost. For {100 * max_drop:.2f} points it takes about "
        f"{needed:,} examples (chance of a pass {100 * POWER:g} %)."
    )


def _accuracy_words(result: NonInferiority, alpha: float) -> str:
    if result.verdict is Verdict.REGRESSION:
        bound = f"at least {100 * result.lower:.2f}"
    else:
        bound = f"at most {100 * result.upper:.2f}"
    return (
        f"accuracy {_movement(result.estimate)}, a drop of {bound} ({100 * (1 - alpha):g} %), "
        f"limit {100 * result.margin:.2f}, n = {result.n:,}"
    )


def _movement(drop: float) -> str:
    if drop == 0:
        return "stayed the same"
    return f"{'dropped' if drop > 0 else 'rose'} {100 * abs(drop):.2f} points"
