"""From logits to what an answer says: labels, numbers, tags or pieces of a context."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from tcompress.data import Examples
from tcompress.tasks import Task

from .accuracy import Predictions
from .engine_info import Layout

NO_TAG = "O"
"""Tag of words that were cut off."""
_MOST_ANSWER_TOKENS = 30


def decoded(predictions: Predictions, examples: Examples) -> Sequence[Any]:
    """Return what each answer says, as JSON can hold it.

    Args:
        predictions: The answers.
        examples: What was asked; of questions the contexts are read.

    Returns:
        One per example: the label, the labels, the number, the tag of each word, or the text; of
        vectors nothing.
    """
    if predictions.task is Task.MULTI_LABEL:
        return decoded_label_sets(predictions)
    if predictions.task is Task.REGRESSION:
        return [float(value) for value in predictions.logits[:, 0]]
    if predictions.task is Task.TOKEN_CLASSIFICATION:
        return decoded_tags(predictions, examples)
    if predictions.task is Task.QUESTION_ANSWERING:
        return decoded_texts(predictions, examples)
    if predictions.task is Task.EMBEDDING:
        return []
    return [str(name) for name in predictions.names]


def decoded_label_sets(predictions: Predictions) -> list[tuple[str, ...]]:
    """Return the labels whose probability is above one half, per example.

    Args:
        predictions: Answers that may have several labels.
    """
    names = np.asarray(predictions.labels)
    return [tuple(map(str, names[row > 0])) for row in predictions.logits]


def decoded_tags(predictions: Predictions, examples: Examples) -> list[tuple[str, ...]]:
    """Return the tag of each word, per example.

    Args:
        predictions: Answers with a row per word that was not cut off.
        examples: The words.
    """
    layout = _layout(predictions)
    tags = [[NO_TAG] * len(words) for words in examples.words or ()]
    for owner, (word, _), found in zip(
        layout.owners, layout.spans, predictions.logits.argmax(1), strict=True
    ):
        tags[owner][word] = predictions.labels[found]
    return [tuple(row) for row in tags]


def decoded_texts(predictions: Predictions, examples: Examples) -> list[str]:
    """Return the likeliest piece of each context; empty where "no answer" is likelier.

    Args:
        predictions: Answers with a row per token of a context, logits of start and end.
        examples: Questions, whose contexts are in `text_pairs`.
    """
    layout, contexts = _layout(predictions), examples.text_pairs or ()
    edges = np.flatnonzero(np.diff(layout.windows, prepend=-1, append=-1))
    best: dict[int, tuple[float, str]] = {}
    for start, stop in pairwise(edges):
        owner = int(layout.owners[start])
        score, first, last = _best_span(predictions.logits[start:stop], layout.spans[start:stop])
        if owner not in best or score > best[owner][0]:
            low, high = int(layout.spans[start + first, 0]), int(layout.spans[start + last, 1])
            best[owner] = score, contexts[owner][low:high] if low >= 0 else ""
    return [best[owner][1] if owner in best else "" for owner in range(len(contexts))]


def _best_span(
    logits: npt.NDArray[np.float32], spans: npt.NDArray[np.int64]
) -> tuple[float, int, int]:
    """Return score, first and last row of a window's best answer."""
    real = spans[:, 0] >= 0
    starts, ends = (np.where(real, side, -np.inf) for side in logits.T)
    behind = np.concatenate([ends, np.full(_MOST_ANSWER_TOKENS - 1, -np.inf)])
    # scores: (first, last - first); "no answer" is one row
    scores = starts[:, None] + sliding_window_view(behind, _MOST_ANSWER_TOKENS)
    scores[:, 0] = logits.sum(1)
    scores = np.where(np.isfinite(scores), scores, -np.inf)
    first, further = np.unravel_index(int(scores.argmax()), scores.shape)
    return float(scores[first, further]), int(first), int(first + further)


def _layout(predictions: Predictions) -> Layout:
    assert predictions.layout is not None, "answers with several rows per example have a layout"
    return predictions.layout
