"""Whether the data's labels are the model's under other names."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest

from tcompress.data import Examples, label_index
from tcompress.errors import DataError
from tcompress.tasks import Task

from .accuracy import Predictions
from .metrics import confusion

LEAST_GAIN = 0.2
"""Accuracy that other names have to win, as a fraction, before they are what is wrong."""
_ALPHA = 0.01


def check_label_order(answers: Predictions, examples: Examples) -> None:
    """Raise where a source model is wrong only because its labels have each other's names.

    That is so if it is worse than the most frequent label or than chance, and a permutation of the
    names makes it better by more than `LEAST_GAIN`, and better than the most frequent label by
    more than luck: a model that always says the rarer label knows nothing under any name.

    Args:
        answers: The source model's answers.
        examples: What it was asked; where they have no labels nothing is checked.

    Raises:
        DataError: If it is so, with the `--label-map` to pass.
    """
    if answers.task is not Task.CLASSIFICATION or examples.labels is None:
        return
    classes, n = len(answers.labels), len(examples)
    index = label_index(answers.labels, examples.labels, examples.origin)
    truth = [index[name] for name in examples.labels]
    counts = confusion(truth, answers.classes, classes)[:, :classes]
    renamed = linear_sum_assignment(counts, maximize=True)[1]
    right, best = int(np.trace(counts)), int(counts[np.arange(classes), renamed].sum())
    largest = int(counts.sum(axis=1).max())
    if right >= max(largest, n / classes) or best - right <= LEAST_GAIN * n or best <= largest:
        return
    if binomtest(best, n, largest / n, alternative="greater").pvalue >= _ALPHA:
        return
    names = {name: answers.labels[renamed[index[name]]] for name in sorted(examples.label_names)}
    proposal = ",".join(f"{name}={other}" for name, other in names.items() if name != other)
    msg = (
        f"{examples.origin}: the source model has {right / n:.1%} accuracy, and {best / n:.1%} "
        f"with its labels under other names; pass --label-map {proposal}"
    )
    raise DataError(msg)
