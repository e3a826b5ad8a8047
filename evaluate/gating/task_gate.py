"""The gate on tasks whose answers are not one class per example; its bounds: `scored_drop`."""

from collections.abc import Sequence

import numpy as np

from tcompress.data import Examples
from tcompress.encoder import label_indices
from tcompress.errors import DataError, ModelError, RequestError
from tcompress.tasks import Task

from ..accuracy import Predictions
from ..noninferiority import Verdict, required_examples
from ..scored import TASK_METRICS
from ..scored_drop import scored_drop
from ..task_quality import ScoredPair, agreeing, is_labelled, score_beside
from .policy import Policy
from .quality import Drop, drop_check, judged, kept_check, share_check
from .verdict import Check, GateReport

_OF_CLASSES = ("max_class_drop", "max_slice_drop", "max_flip_rate", "max_divergence")
_USUAL = "accuracy"


def check_answerable(task: Task, labels: tuple[str, ...], examples: Examples) -> None:
    """Raise unless examples say what is right for a task; vectors need nothing said.

    Args:
        task: The task.
        labels: The model's class names.
        examples: The examples.

    Raises:
        DataError: If they have no right answers, or one that the model does not know.
    """
    if task is Task.CLASSIFICATION:
        label_indices(labels, examples)
    elif task is not Task.EMBEDDING and not is_labelled(task, examples):
        msg = f"{examples.origin}: no right answers for {task} in it; see `tcompress gate --help`"
        raise DataError(msg)


def check_policy(task: Task, policy: Policy) -> None:
    """Raise if a policy limits what a task does not have.

    Args:
        task: The task.
        policy: The policy.

    Raises:
        RequestError: If it does.
    """
    if task is Task.CLASSIFICATION:
        return
    unknown = [name for name in _OF_CLASSES if name in policy.limits]
    if unknown or ("min_agreement" in policy.limits and task in (Task.REGRESSION, Task.EMBEDDING)):
        name = (*unknown, "min_agreement")[0]
        msg = f"{name} is about classes, and {task} has none; limit max_drop or min_retained"
        raise RequestError(msg)


def check_of_classes(task: Task, what: str) -> None:
    """Raise unless a task has one class per example.

    Args:
        task: The task.
        what: What is only there for those.

    Raises:
        RequestError: If it has not.
    """
    if task is not Task.CLASSIFICATION:
        msg = f"{what} is there for classification only, this model does {task}; use `gate` itself"
        raise RequestError(msg)


def judge_task(
    baseline: Predictions, candidate: Predictions, examples: Examples, policy: Policy
) -> GateReport:
    """Judge a candidate by its answers.

    Args:
        baseline: The baseline's answers.
        candidate: The candidate's answers to the same examples.
        examples: The examples; those of one group are drawn together.
        policy: What the candidate has to keep to.

    Raises:
        ModelError: If there is nothing to score, or no part can be kept of the baseline's metric.
        RequestError: If the metric is not one of the task.
    """
    pairs = score_beside(baseline, candidate, examples)
    checks = [
        *_check_metric(pairs, examples, policy),
        *_check_alike(baseline, candidate, examples, policy),
    ]
    values = {
        name: {"baseline": before, "candidate": pair.after.values()[name]}
        for pair in pairs
        for name, before in pair.before.values().items()
    }
    guards = [_check_finite(candidate), _check_degenerate(baseline, candidate, examples)]
    return GateReport(
        checks=(*checks, *guards),
        examples=len(examples),
        alpha=policy.alpha,
        facts={"policy": policy.to_json(), "task": str(baseline.task), "metrics": values},
        on_inconclusive=policy.on_inconclusive,
    )


def _check_metric(pairs: Sequence[ScoredPair], examples: Examples, policy: Policy) -> list[Check]:
    if policy.max_drop is None and policy.min_retained is None:
        return []
    metric = pairs[0].main if policy.metric == _USUAL else policy.metric
    known = [name for pair in pairs for name in pair.before.metrics if name in TASK_METRICS]
    if metric not in known:
        msg = f"unknown metric {metric!r}; of this task known are: {', '.join(known)}"
        raise RequestError(msg)
    pair = next(pair for pair in pairs if metric in pair.before.metrics)
    relative = policy.max_drop is None
    margin = policy.max_drop or 1 - (policy.min_retained or 0.0)
    found = scored_drop(
        pair.before,
        pair.after,
        metric,
        relative=relative,
        alpha=policy.alpha,
        groups=_groups(examples, len(pair.before.sums)),
    )
    if not np.isfinite(found.estimate):
        msg = f"the baseline's {metric} is {found.before:.3g}; nothing can be held against that"
        raise ModelError(msg)
    enough = found.independent >= required_examples(margin, 0.0, policy.alpha)
    low, high = found.bounds.low, found.bounds.high
    verdict = judged(low >= margin, high < margin and enough)
    drop = Drop(verdict, found.estimate, low, high, margin, found.independent)
    if relative:
        return [kept_check(metric, drop, policy.alpha)]
    return [drop_check(f"{metric}_drop", metric, drop, policy.alpha)]


def _groups(examples: Examples, rows: int) -> list[str] | None:
    """Name what depends on each other: the data's groups, and the two texts of a pair."""
    times = rows // len(examples)
    if times * len(examples) != rows or (examples.groups is None and times == 1):
        return None
    return list(examples.groups or examples.ids) * times


def _check_alike(
    baseline: Predictions, candidate: Predictions, examples: Examples, policy: Policy
) -> list[Check]:
    if policy.min_agreement is None:
        return []
    same = int(agreeing(baseline, candidate, examples).sum())
    return [share_check(same, len(examples), policy.min_agreement, policy.alpha)]


def _check_finite(candidate: Predictions) -> Check:
    share = float(np.mean(~np.isfinite(candidate.logits).all(axis=1)))
    words = f"{share:.1%} of the candidate's answers are not finite" if share else ""
    verdict = Verdict.REGRESSION if share else Verdict.PASS
    return Check("finite", verdict, share, share, 0.0, len(candidate.logits), words=words)


def _check_degenerate(baseline: Predictions, candidate: Predictions, examples: Examples) -> Check:
    """Fail a candidate that stopped telling examples apart which the baseline tells apart."""
    spread = [float(np.ptp(side.logits, axis=0).max()) for side in (baseline, candidate)]
    failed = spread[0] > 0 and spread[1] == 0
    words = "the candidate gives one and the same answer to every example" if failed else ""
    verdict = Verdict.REGRESSION if failed else Verdict.PASS
    return Check(
        "degenerate", verdict, float(failed), float(failed), 1.0, len(examples), words=words
    )
