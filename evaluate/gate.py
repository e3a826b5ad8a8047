"""Whether a compressed encoder is still good enough: three verdicts, and an exit code.

Baseline and candidate answer the same labelled examples. The gate passes only if the examples prove
that accuracy dropped by less than the limit; see `statistics` for the test. A candidate that is
broken in a way that an accuracy can hide fails whatever its accuracy is.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompress.console import Console
from tcompress.data import Examples
from tcompress.encoder import label_indices
from tcompress.errors import ModelError
from tcompress.workspace import source_of

from .accuracy import Predictions, predict
from .answers import AnswerBook, Question
from .engine_process import EngineProcess
from .statistics import (
    PairedCounts,
    Verdict,
    mcnemar_exact,
    non_inferiority,
    provable_margin,
    required_examples,
)
from .subjects import saturation_notes

SCHEMA_VERSION = 1
POWER = 0.8
"""Chance of a pass, for a candidate that does no damage, that `required_examples` plans for."""

_EXIT_CODES = {Verdict.PASS: 0, Verdict.REGRESSION: 3, Verdict.INCONCLUSIVE: 4}
_NO_ANSWER = -1

Logits = npt.NDArray[np.floating[Any]]
Classes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Check:
    """One thing that the gate looked at.

    Attributes:
        name: `accuracy_drop`, `finite` or `degenerate`.
        verdict: What it came to.
        estimate: The observed value.
        bound: What is held against the limit: for `accuracy_drop` the upper confidence bound.
        limit: The limit.
        n: Number of examples.
    """

    name: str
    verdict: Verdict
    estimate: float
    bound: float
    limit: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """Return the check as it stands in the report."""
        return {
            "name": self.name,
            "verdict": self.verdict.value,
            "estimate": self.estimate,
            "bound": self.bound,
            "limit": self.limit,
            "n": self.n,
        }


@dataclass(frozen=True)
class GateReport:
    """Verdict of the gate, and all that it rests on.

    Attributes:
        checks: What was looked at; the accuracy comes first.
        counts: Right and wrong answers in pairs.
        drop_low: Lower confidence bound of the drop in accuracy.
        max_drop: Smallest drop that is not acceptable, a fraction.
        alpha: Error probability of each bound.
        baseline: Directory of the baseline.
        candidate: Directory of the candidate.
        notes: What else a reader should know.
    """

    checks: tuple[Check, ...]
    counts: PairedCounts
    drop_low: float
    max_drop: float
    alpha: float
    baseline: str = ""
    candidate: str = ""
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Regression if any check shows one, else inconclusive if any check is, else pass."""
        found = {check.verdict for check in self.checks}
        for verdict in (Verdict.REGRESSION, Verdict.INCONCLUSIVE):
            if verdict in found:
                return verdict
        return Verdict.PASS

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 0 pass, 3 regression, 4 inconclusive."""
        return _EXIT_CODES[self.verdict]

    @property
    def provable_margin(self) -> float:
        """Smallest drop that these examples exclude for a candidate that flips as many evenly."""
        return provable_margin(self.counts.n, self.counts.flip_rate, self.alpha)

    @property
    def required_examples(self) -> int:
        """Examples that prove the limit, with the flip rate seen, if the candidate is as good."""
        return required_examples(self.max_drop, self.counts.flip_rate, self.alpha, POWER)

    def headline(self) -> str:
        """Return the verdict as one line."""
        drop, *guards = self.checks
        if drop.verdict is Verdict.REGRESSION:
            bound = f"at least {100 * self.drop_low:.2f}"
        else:
            bound = f"at most {100 * drop.bound:.2f}"
        broken = [
            _GUARD_WORDS[guard.name].format(share=guard.estimate)
            for guard in guards
            if guard.verdict is Verdict.REGRESSION
        ]
        accuracy = (
            f"accuracy {_movement(drop.estimate)}, a drop of {bound} "
            f"({100 * (1 - self.alpha):g} %), limit {100 * self.max_drop:.2f}, n = {drop.n:,}"
        )
        return f"{self.verdict.value.upper()}: {'; '.join([*broken, accuracy])}"

    def advice(self) -> str | None:
        """Say what would settle an inconclusive verdict; None for the others."""
        if self.verdict is not Verdict.INCONCLUSIVE:
            return None
        n, needed = self.counts.n, self.required_examples
        can = f"These {n:,} examples can prove a limit of {100 * self.provable_margin:.2f} points"
        if n >= needed:
            return f"{can}, if nothing is lost: the drop seen is too close to the limit."
        return (
            f"{can}, if nothing is lost. For {100 * self.max_drop:.2f} points it takes about "
            f"{needed:,} examples (chance of a pass {100 * POWER:g} %)."
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON document; rates and drops are fractions."""
        counts = self.counts
        return {
            "schema_version": SCHEMA_VERSION,
            "verdict": self.verdict.value,
            "checks": [check.to_json() for check in self.checks],
            "baseline": self.baseline,
            "candidate": self.candidate,
            "max_drop": self.max_drop,
            "alpha": self.alpha,
            "examples": counts.n,
            "accuracy": {
                "baseline": (counts.both_right + counts.lost) / counts.n,
                "candidate": (counts.both_right + counts.gained) / counts.n,
            },
            "drop_interval": {"low": self.drop_low, "high": self.checks[0].bound},
            "counts": {
                "both_right": counts.both_right,
                "lost": counts.lost,
                "gained": counts.gained,
                "both_wrong": counts.both_wrong,
            },
            "flip_rate": counts.flip_rate,
            "mcnemar_p": mcnemar_exact(counts.lost, counts.gained),
            "provable_margin": self.provable_margin,
            "required_examples": self.required_examples,
            "notes": list(self.notes),
        }


_GUARD_WORDS = {
    "finite": "{share:.1%} of the candidate's answers are not finite",
    "degenerate": "the candidate gives one and the same answer to every example",
}


def gate(
    baseline: Path,
    candidate: Path,
    examples: Examples,
    *,
    max_drop: float,
    console: Console,
    alpha: float = 0.05,
    device: str = "cpu",
    book: AnswerBook | None = None,
) -> GateReport:
    """Ask a baseline and a candidate, each on its own engine, and judge the candidate.

    Args:
        baseline: A model directory or an artifact.
        candidate: The same; what is judged.
        examples: Labelled examples that neither was fitted or selected on.
        max_drop: Smallest drop in accuracy that is not acceptable, a fraction in (0, 1).
        console: Where to show the progress.
        alpha: Error probability of a wrong pass and of a wrong regression, below 0.5.
        device: `cpu` or `cuda`.
        book: Kept answers to use where they are those of the same files, examples, engine and
            CPU; None asks in any case.

    Returns:
        The report, with the names of the two and notes.

    Raises:
        ArtifactError: If an artifact is damaged.
        DataError: If the examples have no labels, or one that the models do not know.
        ModelError: If the two models cannot be compared.
        MeasurementError: If an engine fails.
    """
    if examples.labels is None:
        label_indices((), examples)  # raises, before any engine is started

    expected, found = _answers((baseline, candidate), examples, device, book, console)
    truth = label_indices(expected.labels, examples).numpy()
    report = gate_accuracy(expected.logits, found.logits, truth, max_drop, alpha)
    notes = _origin_notes(baseline, candidate) + saturation_notes([candidate])
    if found.truncated:
        notes += (f"{found.truncated:,} examples were cut off at the longest input of the model",)
    return replace(report, baseline=str(baseline), candidate=str(candidate), notes=notes)


def _answers(
    sides: tuple[Path, Path],
    examples: Examples,
    device: str,
    book: AnswerBook | None,
    console: Console,
) -> list[Predictions]:
    """Return the answers of baseline and candidate: kept ones, or else asked for now."""
    names = ("baseline", "candidate")
    kept: list[Predictions | None] = [None, None]
    if book is not None:
        questions = [Question.about(side, examples, device=device) for side in sides]
        kept = [book.find(question, examples) for question in questions]
    answers: list[Predictions] = []
    with ExitStack() as stack:
        # All are opened before one is asked, so that a bad candidate is found out at once.
        engines = [
            stack.enter_context(EngineProcess(side, device=device)) if known is None else None
            for side, known in zip(sides, kept, strict=True)
        ]
        labels = []
        for engine, known in zip(engines, kept, strict=True):
            if known is not None:
                labels.append(known.labels)
            elif engine is not None:
                labels.append(engine.info.labels)
        label_indices(labels[0], examples)
        check_labels(*labels)
        for name, engine, known in zip(names, engines, kept, strict=True):
            if engine is None and known is not None:
                console.say(f"gate: the {name}'s answers were kept by evaluate; not asked again")
                answers.append(known)
            elif engine is not None:
                watch = partial(console.track, what=f"asking the {name}")
                # A candidate whose answers are not finite gets a verdict, not an error.
                finite = name == "baseline"
                answers.append(predict(engine, examples, watch=watch, require_finite=finite))
    return answers


def gate_accuracy(
    baseline_logits: Logits,
    candidate_logits: Logits,
    labels: Classes,
    max_drop: float,
    alpha: float = 0.05,
) -> GateReport:
    """Judge a candidate by its answers.

    Args:
        baseline_logits: `(examples, classes)`, finite.
        candidate_logits: `(examples, classes)`, of the same examples in the same order.
        labels: `(examples,)` int64, the right classes.
        max_drop: Smallest drop in accuracy that is not acceptable, a fraction in (0, 1).
        alpha: Error probability of a wrong pass and of a wrong regression, below 0.5.

    Returns:
        The report: the paired non-inferiority test, and guards against broken candidates.

    Raises:
        ModelError: If the shapes differ or the baseline's logits are not finite.
    """
    _check_shapes(baseline_logits, candidate_logits, labels)
    if not np.isfinite(baseline_logits).all():
        msg = "the baseline's logits are not finite; nothing can be held against it"
        raise ModelError(msg)
    expected, found = _classes(baseline_logits), _classes(candidate_logits)
    counts = PairedCounts.from_correct(expected == labels, found == labels)
    result = non_inferiority(counts, max_drop, alpha)
    drop = Check("accuracy_drop", result.verdict, result.estimate, result.upper, max_drop, counts.n)
    guards = (_check_finite(found), _check_degenerate(expected, found, labels))
    return GateReport((drop, *guards), counts, result.lower, max_drop, alpha)


def check_labels(baseline: Sequence[str], candidate: Sequence[str]) -> None:
    """Raise unless two models have the same classes in the same order.

    A changed order turns every answer into another one for whoever reads indices.

    Args:
        baseline: Class names of the baseline.
        candidate: Class names of the candidate.

    Raises:
        ModelError: If they differ.
    """
    if tuple(baseline) != tuple(candidate):
        msg = (
            f"the candidate's labels are ({', '.join(candidate)}), the baseline's are "
            f"({', '.join(baseline)}); names and order must be the same"
        )
        raise ModelError(msg)


def _check_shapes(baseline: Logits, candidate: Logits, labels: Classes) -> None:
    if baseline.ndim != 2 or baseline.shape != candidate.shape or len(labels) != len(baseline):
        msg = (
            "logits must have one shape (examples, classes) and one label per example, got "
            f"{baseline.shape}, {candidate.shape} and {len(labels)} labels"
        )
        raise ModelError(msg)


def _classes(logits: Logits) -> Classes:
    """Return the predicted class per example; an example without finite logits has none."""
    finite = np.isfinite(logits).all(axis=1)
    return np.where(finite, np.argmax(logits, axis=1), _NO_ANSWER)


def _check_finite(found: Classes) -> Check:
    share = float(np.mean(found == _NO_ANSWER))
    return _guard("finite", share, limit=0.0, failed=share > 0, n=len(found))


def _check_degenerate(expected: Classes, found: Classes, labels: Classes) -> Check:
    """Fail a candidate that stopped telling examples apart which the baseline tells apart."""
    share = float(np.unique(found, return_counts=True)[1].max() / len(found))
    needs_several = len(np.unique(labels)) > 1 and len(np.unique(expected)) > 1
    return _guard("degenerate", share, limit=1.0, failed=share == 1 and needs_several, n=len(found))


def _guard(name: str, share: float, *, limit: float, failed: bool, n: int) -> Check:
    verdict = Verdict.REGRESSION if failed else Verdict.PASS
    return Check(name, verdict, share, share, limit, n)


def _origin_notes(baseline: Path, candidate: Path) -> tuple[str, ...]:
    if source_of(baseline).digest == source_of(candidate).digest:
        return ()
    return ("the candidate was not made from the model that the baseline was made from",)


def _movement(drop: float) -> str:
    if drop == 0:
        return "stayed the same"
    return f"{'dropped' if drop > 0 else 'rose'} {100 * abs(drop):.2f} points"
