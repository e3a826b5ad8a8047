"""The nouns of the gate: a check, and the report that owns the exit code."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ..noninferiority import Verdict

SCHEMA_VERSION = 1

EXIT_CODES = {Verdict.PASS: 0, Verdict.REGRESSION: 3, Verdict.INCONCLUSIVE: 4}


class Unit(StrEnum):
    """What the numbers of a check are."""

    FRACTION = "fraction"
    RATIO = "ratio"
    NATS = "nats"
    MS = "ms"
    BYTES = "bytes"
    PER_S = "per_s"
    COUNT = "count"

    def text(self, value: float) -> str:
        """Return a value as a reader wants it.

        Args:
            value: In this unit.
        """
        match self:
            case Unit.FRACTION:
                return f"{100 * value:.2f} %"
            case Unit.NATS:
                return f"{value:.4f} nats"
            case Unit.MS:
                return f"{value:.0f} ms"
            case Unit.BYTES:
                return f"{value / 1e6:.1f} MB"
            case Unit.COUNT:
                return f"{value:,.0f}"
            case _:
                return f"{value:.3g}"


class OnInconclusive(StrEnum):
    """What becomes of a verdict that the examples do not settle."""

    FAIL = "fail"
    WARN = "warn"


@dataclass(frozen=True)
class Check:
    """One thing that the gate looked at.

    Attributes:
        name: What it is called in every output, such as `accuracy_drop` or `recall_drop[fresh]`.
        verdict: What it came to.
        estimate: The observed value.
        bound: What is held against the limit: where there is a confidence bound, that one.
        limit: The limit.
        n: Number of examples, or of other samples, that it rests on.
        unit: What estimate, bound and limit are.
        words: The outcome as one clause, without the verdict.
    """

    name: str
    verdict: Verdict
    estimate: float
    bound: float
    limit: float
    n: int
    unit: Unit = Unit.FRACTION
    words: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the check as it stands in the report."""
        return {
            "name": self.name,
            "verdict": self.verdict.value,
            "estimate": self.estimate,
            "bound": self.bound,
            "limit": self.limit,
            "n": self.n,
            "unit": self.unit.value,
            "words": self.words,
        }


@dataclass(frozen=True)
class GateReport:
    """Verdict of the gate, and all that it rests on.

    Attributes:
        checks: What was looked at; the one on the task's metric comes first.
        examples: Number of examples that both answered.
        alpha: Error probability of each bound.
        baseline: What was compared with.
        candidate: What was judged.
        facts: Further keys of the JSON document.
        advice: What would settle an inconclusive verdict, one line each.
        notes: What else a reader should know.
        on_inconclusive: Whether an inconclusive verdict fails.
    """

    checks: tuple[Check, ...]
    examples: int
    alpha: float
    baseline: str = ""
    candidate: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    advice: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    on_inconclusive: OnInconclusive = OnInconclusive.FAIL

    @property
    def verdict(self) -> Verdict:
        """Regression if any check shows one, else inconclusive if any check is, else pass."""
        return worst(check.verdict for check in self.checks)

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 0 pass, 3 regression, 4 inconclusive."""
        if self.verdict is Verdict.INCONCLUSIVE and self.on_inconclusive is OnInconclusive.WARN:
            return 0
        return EXIT_CODES[self.verdict]

    def headline(self) -> str:
        """Return the verdict as one line: what decided it first, then the task's metric."""
        first, *others = [check for check in self.checks if check.words]
        decisive = [c for c in others if c.verdict is self.verdict is not Verdict.PASS]
        clauses = [check.words for check in (*decisive, first)]
        return f"{self.verdict.value.upper()}: {'; '.join(clauses)}"

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON document; rates and drops are fractions."""
        return {
            "schema_version": SCHEMA_VERSION,
            "verdict": self.verdict.value,
            "headline": self.headline(),
            "exit_code": self.exit_code,
            "on_inconclusive": self.on_inconclusive.value,
            "checks": [check.to_json() for check in self.checks],
            "baseline": self.baseline,
            "candidate": self.candidate,
            "alpha": self.alpha,
            "examples": self.examples,
            **self.facts,
            "advice": list(self.advice),
            "notes": list(self.notes),
        }


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return regression if it is among the verdicts, else inconclusive if that is, else pass.

    Args:
        verdicts: The verdicts.
    """
    found = set(verdicts)
    for verdict in (Verdict.REGRESSION, Verdict.INCONCLUSIVE):
        if verdict in found:
            return verdict
    return Verdict.PASS
