"""Metrics of a task; all are better when higher.

Those of a classifier are functions of its confusion counts and take a stack of them, so that a
bootstrap computes them for all of its samples at once. Those of other tasks take the values.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

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


def pearson(truth: ArrayLike, found: ArrayLike) -> float:
    """Return the linear correlation of two series, `(examples,)`; NaN if one is constant.

    Args:
        truth: Right values.
        found: Answers.
    """
    pair = np.asarray(truth, dtype=np.float64), np.asarray(found, dtype=np.float64)
    if any(np.ptp(series) == 0 for series in pair):
        return float("nan")
    return float(stats.pearsonr(*pair).statistic)


def spearman(truth: ArrayLike, found: ArrayLike) -> float:
    """Return the correlation of the ranks of two series, `(examples,)`; NaN if one is constant.

    Args:
        truth: Right values.
        found: Answers.
    """
    return pearson(*(stats.rankdata(np.asarray(series)) for series in (truth, found)))


def ndcg(relevance: ArrayLike, scores: ArrayLike, k: int | None = None) -> Values:
    """Return the normalised discounted cumulative gain of each query, `(queries,)`.

    A query without a relevant document has 0.

    Args:
        relevance: How relevant each document is, `(queries, documents)`, not negative.
        scores: How the model scored it, `(queries, documents)`.
        k: Ranks that count; None for all.
    """
    from sklearn.metrics import ndcg_score

    pairs = zip(np.asarray(relevance), np.asarray(scores), strict=True)
    return np.array([ndcg_score([right], [given], k=k) for right, given in pairs])


def exact_match(truth: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> Values:
    """Return for each example 1 if all of its answers are right, else 0, `(examples,)`.

    Args:
        truth: Right answers of each example, such as the tags of its tokens.
        found: Answers.
    """
    pairs = zip(truth, found, strict=True)
    return np.array([float(list(right) == list(given)) for right, given in pairs])


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
