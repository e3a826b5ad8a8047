"""Whether a compressed encoder is still good enough.

Baseline and candidate answer the same labelled examples, each on its own engine. The gate passes
only if the examples prove that every limit of the policy holds; see `noninferiority` for the test
of the accuracy.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompress.artifact import Manifest, is_artifact
from tcompress.console import Console
from tcompress.data import Examples
from tcompress.encoder import label_indices
from tcompress.errors import ModelError, RequestError
from tcompress.machine import cpu_features
from tcompress.tasks import Task
from tcompress.workspace import source_of

from ..accuracy import Predictions, predict
from ..answers import AnswerBook, Question
from ..engine_process import EngineProcess
from ..label_order import check_label_order
from ..noninferiority import (
    PairedCounts,
    Verdict,
    damage_bounds,
    mcnemar_exact,
    provable_margin,
    required_examples,
)
from ..subjects import saturation_notes
from ..task_quality import taken
from .baseline import Baseline, is_recorded
from .guards import (
    check_guards,
    check_ids,
    first_of_each,
    repeated_inputs_notes,
    too_few_words,
)
from .independence import check_independent
from .planning import POWER, advice
from .policy import MARGINS, Policy
from .quality import (
    check_agreement,
    check_classes,
    check_divergence,
    check_flips,
    check_metric,
    check_slices,
)
from .resources import Bench, check_measurable, check_resources
from .sides import Sides
from .task_gate import check_answerable, check_policy, judge_task
from .verdict import Check, GateReport, Unit


def gate(
    baseline: Path,
    candidate: Path,
    examples: Examples,
    *,
    policy: Policy,
    console: Console,
    device: str = "cpu",
    book: AnswerBook | None = None,
    seed: int = 0,
) -> GateReport:
    """Ask a baseline and a candidate, each on its own engine, and judge the candidate.

    Args:
        baseline: A model directory or an artifact, or the file of a recorded baseline.
        candidate: A model directory or an artifact; what is judged.
        examples: Labelled examples that neither was fitted or selected on.
        policy: What the candidate has to keep to.
        console: Where to show the progress.
        device: `cpu` or `cuda`.
        book: Kept answers to use where they are those of the same files, examples, engine and
            CPU; None asks in any case.
        seed: Seed of what is drawn at random.

    Returns:
        The report, with the names of the two and notes.

    Raises:
        ArtifactError: If an artifact is damaged.
        DataError: If the examples have no labels, or one that the models do not know, or if the
            candidate was made on them.
        InputError: If a recorded baseline is damaged or cannot be compared with.
        ModelError: If the two models cannot be compared.
        MeasurementError: If an engine fails.
        RequestError: If a limit needs what is not there.
    """
    recorded = Baseline.read(baseline) if is_recorded(baseline) else None
    check_measurable(policy, recorded or baseline)
    _check_examples(examples, candidate, policy, console)
    expected, found = (
        _answers((baseline, candidate), examples, policy, device, book, console)
        if recorded is None
        else recorded.ask_beside(candidate, examples, device=device, console=console)
    )
    check_label_order(expected, examples)
    once = first_of_each(examples)
    report = _judge_answers(expected, found, examples, once, policy)
    bench = Bench(recorded or baseline, candidate, device, seed, console)
    source = source_of(baseline).digest if recorded is None else recorded.source
    notes = _origin_notes(source, candidate) + _machine_notes(candidate)
    notes += repeated_inputs_notes(examples) + (() if recorded is None else recorded.notes())
    if found.truncated:
        notes += (f"{found.truncated:,} examples were cut off at the longest input of the model",)
    resources = check_resources(policy, bench)
    return replace(
        report,
        checks=(*report.checks, *resources),
        advice=report.advice + _timing_advice(resources),
        baseline=str(baseline),
        candidate=str(candidate),
        notes=notes,
    )


def _judge_answers(
    expected: Predictions,
    found: Predictions,
    examples: Examples,
    once: npt.NDArray[np.int64],
    policy: Policy,
) -> GateReport:
    """Judge by the examples at the positions `once`."""
    kept = examples.take(once)
    if expected.task is Task.CLASSIFICATION:
        truth = label_indices(expected.labels, examples).numpy()
        sides = Sides(expected.logits[once], found.logits[once], truth[once], expected.labels)
        return judge(sides, policy, kept.slices)
    before, after = (taken(side, once, len(examples)) for side in (expected, found))
    report = judge_task(before, after, kept, policy)
    return replace(report, checks=(*report.checks, *_check_count(len(kept), policy)))


def _check_examples(examples: Examples, candidate: Path, policy: Policy, console: Console) -> None:
    """Raise unless the examples can judge the candidate; warn if they can prove nothing."""
    check_ids(examples)
    check_independent(examples, candidate)
    if policy.max_slice_drop is not None and not examples.slices:
        msg = "max_slice_drop is about slices, and there are none; name some by --slice-column"
        raise RequestError(msg)
    if policy.max_drop is not None and (
        warning := too_few_words(len(first_of_each(examples)), policy.max_drop, policy.alpha)
    ):
        console.warn(warning)


def _answers(
    sides: tuple[Path, Path],
    examples: Examples,
    policy: Policy,
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
        labels, tasks = [], []
        for engine, known in zip(engines, kept, strict=True):
            told = known if engine is None else engine.info
            assert told is not None, "what has no kept answers has an engine"
            labels.append(told.labels)
            tasks.append(told.task)
        check_answerable(tasks[0], labels[0], examples)
        check_policy(tasks[0], policy)
        check_labels(*labels)
        check_tasks(*tasks)
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
    """Judge a candidate by its answers, on its drop in accuracy alone.

    Args:
        sides: The answers of both.
        max_drop: Smallest drop in accuracy that is not acceptable, a fraction in (0, 1).
        alpha: Error probability of a wrong pass and of a wrong regression, below 0.5.
    """
    return judge(sides, Policy(max_drop=max_drop, alpha=alpha))


def judge(
    sides: Sides, policy: Policy, slices: Mapping[str, Sequence[str]] | None = None
) -> GateReport:
    """Judge a candidate by its answers.

    Args:
        sides: The answers of both.
        policy: What the candidate has to keep to; limits on what it takes are left to
            `check_resources`.
        slices: Per slice column the value of each example.

    Returns:
        The report: a check per limit, and guards against broken candidates.
    """
    checks = [*_check_quality(sides, policy, slices or {}), *_check_count(len(sides), policy)]
    return GateReport(
        checks=(*checks, *check_guards(sides, policy.alpha)),
        examples=len(sides),
        alpha=policy.alpha,
        facts={"policy": policy.to_json()} | _facts(sides.counts, policy),
        advice=_advice(checks, sides.counts, policy),
        on_inconclusive=policy.on_inconclusive,
    )


def _check_quality(
    sides: Sides, policy: Policy, slices: Mapping[str, Sequence[str]]
) -> list[Check]:
    """Check every limit on the answers; the one on the task's metric comes first."""
    limits, alpha = policy.limits, policy.alpha
    checks = []
    if limits.keys() & set(MARGINS):
        drop, retained = policy.max_drop, policy.min_retained
        checks.append(
            check_metric(sides, policy.metric, max_drop=drop, retained=retained, alpha=alpha)
        )
    if policy.max_class_drop is not None:
        checks += check_classes(sides, policy.max_class_drop, alpha)
    if policy.max_slice_drop is not None:
        checks += check_slices(sides, slices, policy.max_slice_drop, alpha)
    if policy.max_flip_rate is not None:
        checks.append(check_flips(sides, policy.max_flip_rate, alpha))
    if policy.min_agreement is not None:
        checks.append(check_agreement(sides, policy.min_agreement, alpha))
    if policy.max_divergence is not None:
        checks.append(check_divergence(sides, policy.max_divergence, alpha))
    return checks


def _advice(checks: Sequence[Check], counts: PairedCounts, policy: Policy) -> tuple[str, ...]:
    """Say what would settle an inconclusive verdict on the accuracy."""
    unsettled = [check.name for check in checks if check.verdict is Verdict.INCONCLUSIVE]
    if policy.max_drop is None or "accuracy_drop" not in unsettled:
        return ()
    return (advice(counts, policy.max_drop, policy.alpha),)


def _timing_advice(resources: Sequence[Check]) -> tuple[str, ...]:
    unsettled = [check.name for check in resources if check.verdict is Verdict.INCONCLUSIVE]
    if not unsettled:
        return ()
    return (f"A larger --budget-s or a quieter machine tells more about: {', '.join(unsettled)}.",)


def _facts(counts: PairedCounts, policy: Policy) -> dict[str, Any]:
    """Return the paired table behind the verdict, for the JSON document."""
    bounds = damage_bounds(counts, policy.alpha)
    facts = {
        "accuracy": {
            "baseline": (counts.both_right + counts.lost) / counts.n,
            "candidate": (counts.both_right + counts.gained) / counts.n,
        },
        "drop_interval": {"low": bounds.low, "high": bounds.high},
        "counts": asdict(counts),
        "flip_rate": counts.flip_rate,
        "mcnemar_p": mcnemar_exact(counts.lost, counts.gained),
        "provable_margin": provable_margin(counts.n, counts.flip_rate, policy.alpha),
    }
    if policy.max_drop is None:
        return facts
    needed = required_examples(policy.max_drop, counts.flip_rate, policy.alpha, POWER)
    return facts | {"max_drop": policy.max_drop, "required_examples": needed}


def _check_count(n: int, policy: Policy) -> list[Check]:
    """Check that there are as many examples as the policy wants, if it does."""
    if policy.min_examples is None:
        return []
    wanted = policy.min_examples
    verdict = Verdict.PASS if n >= wanted else Verdict.INCONCLUSIVE
    words = f"{n:,} examples, {wanted:,} are asked for"
    return [Check("examples", verdict, n, n, wanted, n, Unit.COUNT, words)]


def check_tasks(baseline: Task, candidate: Task) -> None:
    """Raise unless two models do the same task.

    Args:
        baseline: Task of the baseline.
        candidate: Task of the candidate.

    Raises:
        ModelError: If they differ.
    """
    if baseline is not candidate:
        msg = f"the candidate does {candidate}, the baseline {baseline}; compare like with like"
        raise ModelError(msg)


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


def _machine_notes(candidate: Path) -> tuple[str, ...]:
    """Say how this CPU differs from the one that the candidate was written on."""
    notes = saturation_notes([candidate])
    if not is_artifact(candidate):
        return notes
    there, here = Manifest.read(candidate).cpu_features, cpu_features()
    others = [n for n in sorted(there.keys() | here.keys()) if there.get(n) != here.get(n)]
    if not others:
        return notes
    named = ", ".join(f"{'no ' if there.get(n) else ''}{n}" for n in others)
    return (
        *notes,
        f"the candidate was written on a CPU of another kind (here: {named}); "
        "the verdict is about this one",
    )


def _origin_notes(source: str, candidate: Path) -> tuple[str, ...]:
    if source == source_of(candidate).digest:
        return ()
    return ("the candidate was not made from the model that the baseline was made from",)
