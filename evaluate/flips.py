"""Answers that were right before and are wrong now, or the other way."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from tcompress.data import Examples

from .accuracy import Predictions, correctness

MOST_FLIPS = 20
LONGEST_TEXT = 300


class Direction(StrEnum):
    """What became of an answer."""

    LOST = "lost"
    GAINED = "gained"


@dataclass(frozen=True)
class Flip:
    """An example that the baseline and the candidate answered differently, one of them right.

    Attributes:
        id: The example.
        label: Its label.
        before: The baseline's answer.
        after: The candidate's answer.
        direction: Whether a right answer was lost or gained.
        confidence: Probability that the candidate gives its answer.
        text: Start of the text as it stands in the data, a pair in two lines; None for tensors.
    """

    id: str
    label: str
    before: str
    after: str
    direction: Direction
    confidence: float
    text: str | None


def flipped_examples(
    candidate: Predictions, baseline: Predictions, examples: Examples, most: int = MOST_FLIPS
) -> list[Flip]:
    """Return flipped examples, those first of whose new answer the candidate is most confident.

    Args:
        candidate: The candidate's answers.
        baseline: The baseline's answers to the same examples.
        examples: The examples; without labels nothing is known to have flipped.
        most: How many at most.

    Raises:
        DataError: If a label is not known to one of the models.
    """
    if examples.labels is None:
        return []
    right = correctness(candidate, examples)
    flipped = np.flatnonzero(right != correctness(baseline, examples))
    confidence = np.exp(candidate.log_probabilities.max(axis=1))
    chosen = flipped[np.argsort(-confidence[flipped], kind="stable")][:most]
    return [
        Flip(
            id=examples.ids[i],
            label=examples.labels[i],
            before=str(baseline.names[i]),
            after=str(candidate.names[i]),
            direction=Direction.GAINED if right[i] else Direction.LOST,
            confidence=float(confidence[i]),
            text=_text(examples, i),
        )
        for i in chosen
    ]


def _text(examples: Examples, i: int) -> str | None:
    if examples.texts is None:
        return None
    if examples.text_pairs is None:
        return examples.texts[i][:LONGEST_TEXT]
    both = (examples.texts[i], examples.text_pairs[i])
    return "\n".join(text[: LONGEST_TEXT // 2] for text in both)
