"""How many examples a limit takes, and what a set of examples can prove."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..noninferiority import (
    PairedCounts,
    pass_probability,
    provable_margin,
    required_examples,
)
from .verdict import SCHEMA_VERSION

POWER = 0.8
"""Chance of a pass, for a candidate that does no damage, that is planned for."""
USUAL_FLIP_RATES = (0.02, 0.05, 0.10)
"""What is planned for where nothing is known of the candidate."""


@dataclass(frozen=True)
class Reach:
    """What a set of examples can prove.

    Attributes:
        provable_margin: Smallest limit that it proves with the power planned for, a fraction.
        best_margin: The same where as much is gained as lost.
        power: Chance that it proves the limit planned for.
    """

    provable_margin: float
    best_margin: float
    power: float


@dataclass(frozen=True)
class PlanRow:
    """What a limit takes at one flip rate.

    Attributes:
        flip_rate: Fraction of the examples that turn from right to wrong or back.
        required_examples: How many examples prove the limit, with the power planned for.
        reach: What the examples that there are can prove; None without any.
    """

    flip_rate: float
    required_examples: int
    reach: Reach | None = None


@dataclass(frozen=True)
class Plan:
    """What a limit on the drop in accuracy takes, for a candidate that does no damage.

    Attributes:
        max_drop: The limit, a fraction.
        alpha: Error probability of a wrong pass.
        power: Chance of a pass that is planned for.
        examples: Number of examples that there are, or None.
        rows: One per flip rate.
    """

    max_drop: float
    alpha: float
    power: float
    examples: int | None
    rows: tuple[PlanRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON document; rates, margins and chances are fractions."""
        document = asdict(self)
        return {"schema_version": SCHEMA_VERSION} | document | {"rows": list(document["rows"])}


def make_plan(
    max_drop: float,
    *,
    flip_rates: Sequence[float] = USUAL_FLIP_RATES,
    examples: int | None = None,
    alpha: float = 0.05,
    power: float = POWER,
) -> Plan:
    """Plan a gate.

    Args:
        max_drop: Smallest drop in accuracy that is not acceptable, a fraction in (0, 1).
        flip_rates: Fractions of the examples that flip.
        examples: Number of examples that there are, or None.
        alpha: Error probability of a wrong pass, below 0.5.
        power: Chance of a pass, at least 0.5 and below 1.

    Raises:
        ValueError: If an argument is out of range.
    """
    rows = tuple(_row(max_drop, rate, examples, alpha, power) for rate in flip_rates)
    return Plan(max_drop, alpha, power, examples, rows)


def advice(counts: PairedCounts, max_drop: float, alpha: float) -> str:
    """Say what would settle an inconclusive verdict on the accuracy, as one line.

    Args:
        counts: What was answered.
        max_drop: As for `make_plan`.
        alpha: As for `make_plan`.
    """
    needed = required_examples(max_drop, counts.flip_rate, alpha, POWER)
    provable = provable_margin(counts.n, counts.flip_rate, alpha)
    can = f"These {counts.n:,} examples can prove a limit of {100 * provable:.2f} points"
    if counts.n >= needed:
        return f"{can}, if nothing is lost: the drop seen is too close to the limit."
    return (
        f"{can}, if nothing is lost. For {100 * max_drop:.2f} points it takes about "
        f"{needed:,} examples (chance of a pass {100 * POWER:g} %)."
    )


def _row(max_drop: float, flip_rate: float, n: int | None, alpha: float, power: float) -> PlanRow:
    needed = required_examples(max_drop, flip_rate, alpha, power)
    if n is None:
        return PlanRow(flip_rate, needed)
    reach = Reach(
        provable_margin(n, flip_rate, alpha, power),
        provable_margin(n, flip_rate, alpha),
        pass_probability(n, max_drop, flip_rate, alpha),
    )
    return PlanRow(flip_rate, needed, reach)
