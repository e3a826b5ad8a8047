"""What the probabilities behind the answers are worth, and how far they moved."""

import numpy as np
from numpy.typing import NDArray

BINS = 15

Classes = NDArray[np.int64]
Floats = NDArray[np.float64]


def calibration_error(log_probabilities: Floats, truth: Classes, bins: int = BINS) -> float:
    """Compute the expected calibration error: how far confidence is from accuracy.

    The examples, sorted by the probability of the answer, are cut into bins of equal size. The
    error is the mean over the examples of |accuracy - mean confidence| of their bin; lower is
    better. With few examples per bin even a calibrated model has one: up to about
    0.8 sqrt(accuracy (1 - accuracy) bins / examples).

    Args:
        log_probabilities: `(examples, classes)`.
        truth: Class of each example, `(examples,)`.
        bins: Number of bins; not more than there are examples.

    Reference:
        Nguyen and O'Connor (2015), arXiv 1508.05154; the bins of equal size are theirs.
    """
    confidence = np.exp(log_probabilities.max(axis=1))
    excess = (log_probabilities.argmax(axis=1) == truth) - confidence
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(excess[order], min(bins, len(truth)))
    return float(sum(abs(part.sum()) for part in parts) / len(truth))


def negative_log_likelihood(log_probabilities: Floats, truth: Classes) -> float:
    """Compute the mean of -log p(true class), in nats; lower is better.

    Args:
        log_probabilities: `(examples, classes)`.
        truth: Class of each example, `(examples,)`.
    """
    return float(-np.mean(np.take_along_axis(log_probabilities, truth[:, None], axis=1)))


def divergences(baseline: Floats, candidate: Floats) -> Floats:
    """Compute KL(baseline || candidate) of every example's answer, in nats.

    Args:
        baseline: Log-probabilities, `(examples, classes)`.
        candidate: The same of the candidate, with the classes in the same order.

    Returns:
        `(examples,)`, non-negative; 0 where the two agree.
    """
    found: Floats = np.sum(np.exp(baseline) * (baseline - candidate), axis=1)
    return np.maximum(found, 0.0)  # rounding can make it negative
