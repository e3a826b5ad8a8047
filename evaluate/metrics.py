"""Metrics of a classifier; all are better when higher.

They are functions of its confusion counts and take a stack of them, so that a bootstrap computes
them for all of its samples at once. Those of other tasks are in `scored`.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = NDArray[np.float64]
"""Confusion counts, `(..., classes, answers)`: true classes by answers, the classes first.

A column behind those of the classes holds answers that are none. Counts may be fractions.
"""
Values = NDArray[np.float64]

Metric = Callable[[Counts], Values]


def confusion(truth: ArrayLike, found: ArrayLike, classes: int) -> Counts:
    """Count answers.

    Args:
        truth: Right classes, `(examples,)`.
        found: Answers, `(examples,)`; below 0 stands for none.
        classes: Number of classes.

    Returns:
        `(classes, classes + 1)`, the last column for the answers that are none.
    """
    answers = np.asarray(found)
    columns = np.where(answers < 0, classes, answers)
    cells = np.asarray(truth) * (classes + 1) + columns
    counted = np.bincount(cells, minlength=classes * (classes + 1))
    return counted.reshape(classes, classes + 1).astype(np.float64)


def accuracy(counts: Counts) -> Values:
    """Return the fraction of right answers, `(...)`.

    Args:
        counts: Confusion counts, `(..., classes, answers)`.
    """
    found: Values = _hits(counts).sum(-1) / counts.sum((-2, -1))
    return found


def recalls(counts: Counts) -> Values:
    """Return the fraction of right answers within each class, `(..., classes)`; NaN of no example.

    Args:
        counts: Confusion counts, `(..., classes, answers)`.
    """
    return _ratio(_hits(counts), counts.sum(-1), np.nan)


def balanced_accuracy(counts: Counts) -> Values:
    """Return the mean recall of the classes that have examples, `(...)`.

    Args:
        counts: Confusion counts, `(..., classes, answers)`.
    """
    return _mean(recalls(counts), counts.sum(-1) > 0)


def macro_f1(counts: Counts) -> Values:
    """Return the mean F1 of the classes that have examples or answers, `(...)`.

    Args:
        counts: Confusion counts, `(..., classes, answers)`.
    """
    scores, sizes = _f1(counts)
    return _mean(scores, sizes > 0)


def weighted_f1(counts: Counts) -> Values:
    """Return the mean F1 of the classes, weighted by their examples, `(...)`.

    Args:
        counts: Confusion counts, `(..., classes, answers)`.
    """
    scores, _ = _f1(counts)
    support = counts.sum(-1)
    found: Values = (scores * support).sum(-1) / support.sum(-1)
    return found


def mcc(counts: Counts) -> Values:
    """Return the correlation of Matthews in its form for many classes (Gorodkin 2004), `(...)`.

    It is 0 where truth or answers are all of one class.

    Args:
        counts: Confusion counts, `(..., classes, answers)`.
    """
    total = counts.sum((-2, -1))
    truth, answers = counts.sum(-1), counts.sum(-2)
    classes = truth.shape[-1]
    covariance = _hits(counts).sum(-1) * total - (truth * answers[..., :classes]).sum(-1)
    spread = (total**2 - (truth**2).sum(-1)) * (total**2 - (answers**2).sum(-1))
    return _ratio(covariance, np.sqrt(spread), 0.0)


CLASSIFICATION: dict[str, Metric] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    # With one answer per example it is the accuracy.
    "micro_f1": accuracy,
    "weighted_f1": weighted_f1,
    "mcc": mcc,
}
"""Metrics of a classifier by name."""


def _hits(counts: Counts) -> Values:
    return np.diagonal(counts, axis1=-2, axis2=-1)


def _f1(counts: Counts) -> tuple[Values, Values]:
    """Return F1 of each class, and its examples and answers together."""
    classes = counts.shape[-2]
    sizes = counts.sum(-1) + counts.sum(-2)[..., :classes]
    return _ratio(2 * _hits(counts), sizes, 0.0), sizes


def _mean(scores: Values, counted: NDArray[np.bool_]) -> Values:
    found: Values = np.where(counted, scores, 0.0).sum(-1) / counted.sum(-1)
    return found


def _ratio(numerator: Values, denominator: Values, otherwise: float) -> Values:
    found: Values = np.full(np.shape(denominator), otherwise)
    np.divide(numerator, denominator, out=found, where=denominator > 0)
    return found
