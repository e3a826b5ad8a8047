"""Whether the gate can fail: defects are seeded into an artifact, and each should be caught.

The artifact's own answers are the baseline, so that it alone is needed. Identity has to pass; a
defect is caught where the same gate does not pass it.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from tcompress.console import Console
from tcompress.data import Examples
from tcompress.encoder import label_indices
from tcompress.errors import MachineError, TcompressError

from ..accuracy import Predictions, predict
from ..engine_process import EngineProcess
from ..noninferiority import Verdict
from .defective_worker import DefectiveEngine
from .defects import (
    DEFECTS,
    Defect,
    Place,
    can_damage_file,
    damage_answers,
    write_damaged,
)
from .sides import Logits, Sides
from .task_gate import check_of_classes
from .verdict import EXIT_CODES, GateReport

SCHEMA_VERSION = 1
HARM = 0.05
"""Loss of accuracy from which on a defect must not pass, whatever the margin."""

Judge = Callable[[Sides], GateReport]
"""The gate that is tested."""


class Outcome(StrEnum):
    """What became of a seeded defect."""

    CAUGHT = "caught"
    HARMLESS = "harmless here"
    MISSED = "missed"
    NOT_SEEDED = "not seeded"


@dataclass(frozen=True)
class Trial:
    """One seeded defect.

    Attributes:
        defect: Its name.
        place: Where it was seeded.
        outcome: What became of it.
        verdict: The gate's; None where there was nothing to judge.
        accuracy: With the defect; None where there are no answers.
        drop: Loss of accuracy against the artifact as it is.
        words: Why, in one line.
    """

    defect: str
    place: Place
    outcome: Outcome
    verdict: Verdict | None
    accuracy: float | None
    drop: float | None
    words: str


@dataclass(frozen=True)
class SelfTest:
    """What the gate made of identity and of every defect.

    Attributes:
        artifact: What was damaged.
        identity: The gate's verdict on the artifact beside itself.
        identity_words: The same as one line.
        accuracy: Of the artifact as it is.
        examples: Number of examples.
        trials: One per defect.
    """

    artifact: str
    identity: Verdict
    identity_words: str
    accuracy: float
    examples: int
    trials: tuple[Trial, ...]

    @property
    def verdict(self) -> Verdict:
        """Regression if a harmful defect passed; else what identity came to."""
        missed = any(trial.outcome is Outcome.MISSED for trial in self.trials)
        return Verdict.REGRESSION if missed else self.identity

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 0, 3 or 4."""
        return EXIT_CODES[self.verdict]

    def headline(self) -> str:
        """Return the result as one line."""
        counts = dict.fromkeys(Outcome, 0)
        for trial in self.trials:
            counts[trial.outcome] += 1
        told = ", ".join(f"{count} {outcome.value}" for outcome, count in counts.items() if count)
        if self.identity is Verdict.INCONCLUSIVE:
            return f"INCONCLUSIVE: identity itself cannot pass ({told}); {self.identity_words}"
        word = {Verdict.PASS: "PASS", Verdict.REGRESSION: "FAIL"}[self.verdict]
        return f"{word}: identity is {self.identity.value}; of {len(self.trials)} defects {told}"

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON document."""
        return {
            "schema_version": SCHEMA_VERSION,
            "verdict": self.verdict.value,
            "headline": self.headline(),
            "exit_code": self.exit_code,
            **asdict(self),
        }


def self_test(
    artifact: Path,
    examples: Examples,
    judge: Judge,
    console: Console,
    defects: Sequence[Defect] = DEFECTS,
) -> SelfTest:
    """Seed every defect into an artifact and let a gate judge each.

    Args:
        artifact: A model directory or an artifact, which stays as it is.
        examples: Labelled examples.
        judge: The gate.
        console: Where to show the progress.
        defects: What to seed.

    Raises:
        DataError: If the examples have no labels, or one that the model does not know.
        MeasurementError: If the artifact's own engine fails.
        ModelError: If its answers are not finite.
    """
    with console.step("selftest: asking the artifact as it is"), EngineProcess(artifact) as engine:
        check_of_classes(engine.info.task, "`gate selftest`")
        clean = predict(engine, examples)
    truth = label_indices(clean.labels, examples).numpy()

    def sides(logits: Logits) -> Sides:
        return Sides(clean.logits, logits, truth, clean.labels)

    same = judge(sides(clean.logits))
    trials = []
    for defect in console.track(defects, "selftest: seeding defects"):
        console.say(f"selftest: {defect.name} ({defect.story})")
        trials.append(_try(defect, artifact, examples, clean, lambda logits: judge(sides(logits))))
    return SelfTest(
        artifact=str(artifact),
        identity=same.verdict,
        identity_words=same.checks[0].words,
        accuracy=float(np.mean(clean.classes == truth)),
        examples=len(examples),
        trials=tuple(trials),
    )


def _try(
    defect: Defect,
    artifact: Path,
    examples: Examples,
    clean: Predictions,
    judge: Callable[[Logits], GateReport],
) -> Trial:
    def without_answers(outcome: Outcome, words: str) -> Trial:
        return Trial(defect.name, defect.place, outcome, None, None, None, words)

    if defect.place is Place.FILE and not can_damage_file(artifact):
        words = "files of this kind cannot be damaged part by part"
        return without_answers(Outcome.NOT_SEEDED, words)
    try:
        logits = _answers(defect, artifact, examples, clean)
    except MachineError:
        raise  # it says nothing about the candidate
    except TcompressError as error:
        return without_answers(Outcome.CAUGHT, f"refused: {error}")
    if logits is None:
        return without_answers(Outcome.NOT_SEEDED, "the model has nothing of that kind")
    report = judge(logits)
    truth = label_indices(clean.labels, examples).numpy()
    finite = np.isfinite(logits).all(axis=1)
    accuracy = float(np.mean(finite & (np.argmax(logits, axis=1) == truth)))
    drop = float(np.mean(clean.classes == truth)) - accuracy
    outcome = Outcome.CAUGHT
    if report.verdict is Verdict.PASS:
        harmful = drop >= HARM or not finite.all()
        outcome = Outcome.MISSED if harmful else Outcome.HARMLESS
    words = report.headline()
    return Trial(defect.name, defect.place, outcome, report.verdict, accuracy, drop, words)


def _answers(
    defect: Defect, artifact: Path, examples: Examples, clean: Predictions
) -> Logits | None:
    """Return the logits that the damaged artifact gives; None where there was nothing to damage."""
    if defect.place is Place.ANSWERS:
        return damage_answers(defect.name, clean.logits)
    if defect.place is Place.INPUTS:
        with DefectiveEngine(artifact) as engine:
            _ = engine.info
            if not engine.seed(defect.name):
                return None
            return predict(engine, examples, require_finite=False).logits
    with tempfile.TemporaryDirectory(prefix="tcompress-selftest-") as name:
        target = Path(name) / "damaged"
        if not write_damaged(defect.name, artifact, target):
            return None
        with EngineProcess(target) as engine:
            return predict(engine, examples, require_finite=False).logits
