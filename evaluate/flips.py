"""Answers that were right before and are wrong now, or the other way."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from tcompress.data import Examples
from tcompress.tasks import Task

from .accuracy import Predictions
from .decoding import decoded
from .scored import entities_of, entity_words
from .task_quality import wholly_right

MOST_FLIPS = 20
LONGEST_TEXT = 300
NOTHING = "nothing"
"""Answer without a label, an entity or a text."""


class Direction(StrEnum):
    """What became of an answer."""

    LOST = "lost"
    GAINED = "gained"


@dataclass(frozen=True)
class Flip:
    """An example that the baseline and the candidate answered differently, one of them right.

    Attributes:
        id: The example.
        label: Its label, its labels, its entities, or the right answers to a question.
        before: The baseline's answer.
        after: The candidate's answer.
        direction: Whether a right answer was lost or gained.
        confidence: Probability that the candidate gives its answer; None where it is in parts.
        text: Start of the text as it stands in the data, a pair in two lines; None for tensors.
    """

    id: str
    label: str
    before: str
    after: str
    direction: Direction
    confidence: float | None
    text: str | None


def flipped_examples(
    candidate: Predictions, baseline: Predictions, examples: Examples, most: int = MOST_FLIPS
) -> list[Flip]:
    """Return flipped examples, those first of whose new answer the candidate is most confident.

    Of answers that have parts the first ones in the data come first.

    Args:
        candidate: The candidate's answers.
        baseline: The baseline's answers to the same examples.
        examples: The examples; without labels nothing is known to have flipped.
        most: How many at most.

    Raises:
        DataError: If a label is not known to one of the models.
    """
    right, before = (wholly_right(side, examples) for side in (candidate, baseline))
    if right is None or before is None:
        return []
    flipped = np.flatnonzero(right != before)
    confidence = None
    if candidate.task is Task.CLASSIFICATION:
        confidence = np.exp(candidate.log_probabilities.max(axis=1))
        flipped = flipped[np.argsort(-confidence[flipped], kind="stable")]
    sides = _truth(examples), decoded(baseline, examples), decoded(candidate, examples)
    return [
        Flip(
            id=examples.ids[i],
            **{
                name: _told(side[i], examples, i)
                for name, side in zip(("label", "before", "after"), sides, strict=True)
            },
            direction=Direction.GAINED if right[i] else Direction.LOST,
            confidence=None if confidence is None else float(confidence[i]),
            text=_text(examples, i),
        )
        for i in flipped[:most]
    ]


def _truth(examples: Examples) -> Sequence[Any]:
    """Return what is right, in the form of what models answer."""
    if examples.answers is not None:
        return [" / ".join(dict.fromkeys(a.text for a in right)) for right in examples.answers]
    return examples.labels or examples.label_sets or examples.tags or ()


def _told(answer: Any, examples: Examples, i: int) -> str:
    """Return an answer in words: an entity as its kind and its words."""
    if examples.words is not None:
        entities = entities_of(answer)
        return "; ".join(entity_words(entity, examples.words[i]) for entity in entities) or NOTHING
    return (answer if isinstance(answer, str) else ", ".join(answer)) or NOTHING


def _text(examples: Examples, i: int) -> str | None:
    if examples.words is not None:
        return " ".join(examples.words[i])[:LONGEST_TEXT]
    if examples.texts is None:
        return None
    if examples.text_pairs is None:
        return examples.texts[i][:LONGEST_TEXT]
    both = (examples.texts[i], examples.text_pairs[i])
    return "\n".join(text[: LONGEST_TEXT // 2] for text in both)
