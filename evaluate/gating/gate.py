"""Whether a compressed encoder is still good enough.

Baseline and candidate answer the same labelled examples, each on its own engine. The gate passes
only if the examples prove that the task's metric dropped by less than the limit; see
`noninferiority` for the test.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from tcompress.console import Console
from tcompress.data import Examples
from tcompress.encoder import label_indices
from tcompress.errors import ModelError
from tcompress.workspace import source_of

from ..accuracy import Predictions, predict
from ..answers import AnswerBook, Question
from ..engine_process import EngineProcess
from ..noninferiority import Verdict
from ..subjects import saturation_notes
from .baseline import Baseline, is_recorded
from .guards import check_guards, check_ids, repeated_inputs_notes, too_few_words
from .quality import accuracy_advice, accuracy_facts, check_accuracy
from .sides import Sides
from .verdict import GateReport


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
        baseline: A model directory or an artifact, or the file of a recorded baseline.
        candidate: A model directory or an artifact; what is judged.
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
        InputError: If a recorded baseline is damaged or cannot be compared with.
        ModelError: If the two models cannot be compared.
        MeasurementError: If an engine fails.
    """
    if examples.labels is None:
        label_indices((), examples)  # raises, before any engine is started

    check_ids(examples)
    if warning := too_few_words(len(examples), max_drop, alpha):
        console.warn(warning)

    recorded = Baseline.read(baseline) if is_recorded(baseline) else None
    expected, found = (
        _answers((baseline, candidate), examples, device, book, console)
        if recorded is None
        else recorded.ask_beside(candidate, examples, device=device, console=console)
    )
    truth = label_indices(expected.labels, examples).numpy()
    sides = Sides(expected.logits, found.logits, truth, expected.labels)
    report = judge_sides(sides, max_drop, alpha)
    source = source_of(baseline).digest if recorded is None else recorded.source
    notes = _origin_notes(source, candidate) + saturation_notes([candidate])
    notes += repeated_inputs_notes(examples) + (() if recorded is None else recorded.notes())
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


def judge_sides(sides: Sides, max_drop: float, alpha: float = 0.05) -> GateReport:
    """Judge a candidate by its answers.

    Args:
        sides: The answers of both.
        max_drop: Smallest drop in accuracy that is not acceptable, a fraction in (0, 1).
        alpha: Error probability of a wrong pass and of a wrong regression, below 0.5.

    Returns:
        The report: the paired non-inferiority test, and guards against broken candidates.
    """
    accuracy = check_accuracy(sides, max_drop, alpha)
    unsettled = accuracy.verdict is Verdict.INCONCLUSIVE
    return GateReport(
        checks=(accuracy, *check_guards(sides, alpha)),
        examples=len(sides),
        alpha=alpha,
        facts=accuracy_facts(sides, max_drop, alpha),
        advice=(accuracy_advice(sides, max_drop, alpha),) if unsettled else (),
    )


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


def _origin_notes(source: str, candidate: Path) -> tuple[str, ...]:
    if source == source_of(candidate).digest:
        return ()
    return ("the candidate was not made from the model that the baseline was made from",)
