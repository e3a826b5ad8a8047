"""Answers to other tasks than classification, scored beside the baseline's."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompress.data import Examples, label_index
from tcompress.encoder import label_indices
from tcompress.tasks import Task

from .accuracy import Predictions, correctness
from .decoding import decoded, decoded_label_sets, decoded_tags
from .engine_info import Layout
from .scored import (
    Entity,
    Scored,
    entities_of,
    matches_answer,
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
    if task is Task.EMBEDDING:
        return None not in (examples.labels, examples.texts, examples.text_pairs)
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


def wholly_right(predictions: Predictions, examples: Examples) -> npt.NDArray[np.bool_] | None:
    """Say which examples were answered right in all their parts, `(examples,)`.

    That is the class, exactly the labels, every tag, or one of the answers to a question.

    Args:
        predictions: Answers to these examples.
        examples: The examples.

    Returns:
        None without right answers, and of numbers and vectors, which are never quite right.

    Raises:
        DataError: If a label is not known to the model.
    """
    task = predictions.task
    if task in (Task.REGRESSION, Task.EMBEDDING) or not is_labelled(task, examples):
        return None
    if task is Task.CLASSIFICATION:
        return correctness(predictions, examples)
    found = decoded(predictions, examples)
    if task is Task.MULTI_LABEL:
        pairs = zip(examples.label_sets or (), found, strict=True)
        return np.array([set(right) == set(given) for right, given in pairs])
    if task is Task.TOKEN_CLASSIFICATION:
        words = zip(examples.tags or (), found, strict=True)
        return np.array([right == given for right, given in words])
    texts = [[answer.text for answer in right] for right in examples.answers or ()]
    return np.array([matches_answer(*pair) for pair in zip(texts, found, strict=True)])


def found_by_class(
    predictions: Predictions, examples: Examples
) -> dict[str, npt.NDArray[np.bool_]]:
    """Say of each class which of its occurrences were found, `(occurrences,)` by class.

    Occurrences are examples with that label or, of words, entities of that kind.

    Args:
        predictions: Answers to these examples.
        examples: The examples.

    Returns:
        Nothing where there are no classes or no right answers.
    """
    task = predictions.task
    pairs: Iterable[tuple[Iterable[Any], Iterable[Any]]] = ()
    names = list(predictions.labels)
    if task is Task.CLASSIFICATION and examples.labels is not None:
        truth = label_indices(predictions.labels, examples)
        pairs = (([names[i]], [y]) for i, y in zip(truth, predictions.names, strict=True))
    elif task is Task.MULTI_LABEL and examples.label_sets is not None:
        pairs = zip(examples.label_sets, decoded_label_sets(predictions), strict=True)
    elif task is Task.TOKEN_CLASSIFICATION and examples.tags is not None:
        sides = examples.tags, decoded_tags(predictions, examples)
        pairs = list(zip(*(map(entities_of, side) for side in sides), strict=True))
        names = sorted({entity.kind for right, _ in pairs for entity in right})
    else:
        return {}
    hits: dict[str, list[bool]] = {name: [] for name in names}
    for right, given in pairs:
        there = set(given)
        for part in right:
            hits[part.kind if isinstance(part, Entity) else part].append(part in there)
    return {name: np.array(found, dtype=bool) for name, found in hits.items()}


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
