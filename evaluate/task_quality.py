"""Answers to other tasks than classification, scored beside the baseline's."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tcompress.data import Examples, label_index
from tcompress.tasks import Task

from .accuracy import Predictions
from .decoding import decoded, decoded_label_sets
from .engine_info import Layout
from .scored import (
    Scored,
    scored_answers,
    scored_entities,
    scored_label_sets,
    scored_numbers,
    scored_retrieval,
    scored_vectors,
)


@dataclass(frozen=True, eq=False)
class ScoredPair:
    """Baseline and candidate, scored alike.

    Attributes:
        before: The baseline's answers.
        after: The candidate's; those that are not finite are as wrong as can be.
    """

    before: Scored
    after: Scored

    @property
    def main(self) -> str:
        """The metric that decides."""
        return self.before.main


def is_labelled(task: Task, examples: Examples) -> bool:
    """Say whether examples have the right answers to a task.

    Args:
        task: The task.
        examples: The examples.
    """
    right = {
        Task.MULTI_LABEL: examples.label_sets,
        Task.TOKEN_CLASSIFICATION: examples.tags,
        Task.QUESTION_ANSWERING: examples.answers,
    }
    return right.get(task, examples.labels) is not None


def score_beside(
    baseline: Predictions, candidate: Predictions, examples: Examples
) -> list[ScoredPair]:
    """Score a candidate's answers and the baseline's; what decides comes first.

    Vectors are held against the baseline's own in any case, and where pairs of texts have numbers
    also against those: as a ranking of all second texts where a first text occurs several times.

    Args:
        baseline: The baseline's answers.
        candidate: The candidate's answers to the same examples.
        examples: The examples.

    Returns:
        Nothing where there are no right answers to compare with.

    Raises:
        DataError: If a right answer is none that the models can give.
    """
    sides = [replace(side, logits=np.nan_to_num(side.logits)) for side in (baseline, candidate)]
    if baseline.task is Task.EMBEDDING:
        found = [_scored_similarities(side, examples) for side in sides]
        pairs = [] if None in found else [ScoredPair(*found)]  # type: ignore[arg-type]
        vectors = [scored_vectors(sides[0].logits, side.logits) for side in sides]
        pairs.append(ScoredPair(*vectors))
    elif is_labelled(baseline.task, examples):
        if baseline.task is not Task.QUESTION_ANSWERING and baseline.task is not Task.REGRESSION:
            for side in sides:
                label_index(side.labels, examples.label_names, examples.origin)
        pairs = [ScoredPair(*(_scored(side, examples) for side in sides))]
    else:
        pairs = []
    broken = _broken(candidate, len(examples))
    return [pair if not broken.any() else _failed(pair, broken) for pair in pairs]


def agreeing(
    baseline: Predictions, candidate: Predictions, examples: Examples
) -> npt.NDArray[np.bool_]:
    """Say which examples two models answer alike, `(examples,)`.

    Args:
        baseline: The answers of one.
        candidate: The answers of the other.
        examples: The examples.
    """
    answers = zip(decoded(baseline, examples), decoded(candidate, examples), strict=True)
    return np.array([bool(before == after) for before, after in answers])


def taken(predictions: Predictions, positions: npt.NDArray[np.int64], examples: int) -> Predictions:
    """Return the answers to some of the examples.

    Args:
        predictions: Answers to all.
        positions: Positions of the examples, ascending.
        examples: How many there are in all.
    """
    layout = predictions.layout
    tokens = None if predictions.tokens is None else predictions.tokens[positions]
    if layout is None:
        times = len(predictions.logits) // examples
        rows = np.concatenate([positions + examples * i for i in range(times)])
        return replace(predictions, logits=predictions.logits[rows], tokens=tokens)
    rows = np.flatnonzero(np.isin(layout.owners, positions))
    owners = np.searchsorted(positions, layout.owners[rows])
    layout = Layout(owners, layout.windows[rows], layout.spans[rows])
    return replace(predictions, logits=predictions.logits[rows], tokens=tokens, layout=layout)


def alike(baseline: Predictions, candidate: Predictions, examples: Examples) -> int | None:
    """Count the examples that two models answer alike; None of numbers and vectors.

    Args:
        baseline: The answers of one.
        candidate: The answers of the other.
        examples: The examples.
    """
    if baseline.task in (Task.REGRESSION, Task.EMBEDDING):
        return None
    return int(agreeing(baseline, candidate, examples).sum())


def _scored(side: Predictions, examples: Examples) -> Scored:
    if side.task is Task.MULTI_LABEL:
        names = np.asarray(side.labels)
        right = [np.isin(names, row) for row in examples.label_sets or ()]
        return scored_label_sets(right, [np.isin(names, row) for row in decoded_label_sets(side)])
    answers = decoded(side, examples)
    if side.task is Task.REGRESSION:
        return scored_numbers(examples.numbers, answers)
    if side.task is Task.TOKEN_CLASSIFICATION:
        return scored_entities(examples.tags or (), answers)
    texts = [[answer.text for answer in right] for right in examples.answers or ()]
    return scored_answers(texts, answers)


def _scored_similarities(side: Predictions, examples: Examples) -> Scored | None:
    if examples.labels is None or examples.text_pairs is None or examples.texts is None:
        return None
    vectors = side.logits / np.linalg.norm(side.logits, axis=1, keepdims=True).clip(1e-12)
    first, second = np.split(vectors.astype(np.float64), 2)
    queries, asked = np.unique(examples.texts, return_inverse=True)
    if len(queries) == len(examples):
        return scored_numbers(examples.numbers, (first * second).sum(1))
    documents, given = np.unique(examples.text_pairs, return_inverse=True)
    relevance = np.zeros((len(queries), len(documents)))
    np.maximum.at(relevance, (asked, given), examples.numbers)
    rows, columns = (np.unique(x, return_index=True)[1] for x in (asked, given))
    return scored_retrieval(relevance, first[rows] @ second[columns].T)


def _broken(side: Predictions, examples: int) -> npt.NDArray[np.bool_]:
    """Say of which examples an answer is not finite, `(examples,)`."""
    bad = np.flatnonzero(~np.isfinite(side.logits).all(1))
    owners = bad % examples if side.layout is None else side.layout.owners[bad]
    found = np.zeros(examples, dtype=bool)
    found[owners] = True
    return found


def _failed(pair: ScoredPair, broken: npt.NDArray[np.bool_]) -> ScoredPair:
    after = pair.after
    # of rankings, which stand for many examples, all count as broken
    fits = len(after.sums) % len(broken) == 0
    rows = np.resize(broken if fits else np.array([True]), len(after.sums))[:, None]
    sums = np.where(rows, after.worst, after.sums)
    return ScoredPair(pair.before, Scored(sums, after.worst, after.metrics, after.main))
