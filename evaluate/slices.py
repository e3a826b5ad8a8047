"""Parts of the examples: by class, by the values of a column, by length.

An accuracy that holds on the whole can hide that a part pays for it. The bounds here hold for one
part at a time: among many, the worst looks bad by chance.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from tcompress.data import Examples

from .noninferiority import PairedCounts, damage_bounds
from .statistics import accuracy_interval

FEWEST = 10
"""Examples from which on a slice is compared; a smaller one is shown with its size only."""

MOST_VALUES = 20
"""Values of a column that become slices: the most frequent ones."""

_BUCKETS = 4

Right = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Slice:
    """The examples with one value in one column.

    Attributes:
        column: The column.
        value: The value; empty where the examples have none.
        members: Which examples these are, `(examples,)` bool.
    """

    column: str
    value: str
    members: Right


@dataclass(frozen=True, eq=False)
class LengthBucket:
    """The examples of similar length.

    Attributes:
        tokens_from: Fewest tokens among them.
        tokens_to: Most tokens among them.
        members: Which examples these are, `(examples,)` bool.
    """

    tokens_from: int
    tokens_to: int
    members: Right


@dataclass(frozen=True)
class PartQuality:
    """Accuracy on a part of the examples, beside the baseline's; None where the part is small.

    Attributes:
        n: Number of examples.
        accuracy: Of the candidate.
        accuracy_baseline: Of the baseline on the same examples.
        drop: The baseline's minus the candidate's; positive is worse.
        low: Lower bound of the drop by `damage_bounds`.
        high: Upper bound of the drop, likewise.
    """

    n: int
    accuracy: float | None = None
    accuracy_baseline: float | None = None
    drop: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, baseline: Right, candidate: Right, alpha: float = 0.05) -> Self:
        """Compare right and wrong answers in pairs.

        Args:
            baseline: Whether the baseline was right, `(n,)` bool.
            candidate: The same for the candidate.
            alpha: Error probability of each bound.
        """
        n = len(candidate)
        if n < FEWEST:
            return cls(n)
        pairs = PairedCounts.from_correct(baseline, candidate)
        bounds = damage_bounds(pairs, alpha)
        accuracies = float(candidate.mean()), float(baseline.mean())
        return cls(n, *accuracies, pairs.damage, bounds.low, bounds.high)


@dataclass(frozen=True)
class ClassRecall:
    """How many examples of one class were found; None where there are none.

    Attributes:
        label: The class.
        n: Number of its examples.
        recall: Fraction that the candidate answered right.
        recall_baseline: The same for the baseline.
        low: Lower end of the 95 % Wilson interval of `recall`.
        high: Upper end of it.
    """

    label: str
    n: int
    recall: float | None = None
    recall_baseline: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, label: str, baseline: Right, candidate: Right) -> Self:
        """Compute the recall of one class.

        Args:
            label: The class.
            baseline: Whether the baseline was right on its examples, `(n,)` bool.
            candidate: The same for the candidate.
        """
        if len(candidate) == 0:
            return cls(label, 0)
        found = accuracy_interval(int(candidate.sum()), len(candidate))
        recalls = float(candidate.mean()), float(baseline.mean())
        return cls(label, len(candidate), *recalls, found.low, found.high)


def slices_of(examples: Examples) -> list[Slice]:
    """Return the slices of every slice column, the biggest of a column first.

    Args:
        examples: The examples.
    """
    return [
        Slice(column, value, np.asarray(values) == value)
        for column, values in examples.slices.items()
        for value, _ in Counter(values).most_common(MOST_VALUES)
    ]


def slice_notes(examples: Examples) -> list[str]:
    """Name the columns that have more values than become slices.

    Args:
        examples: The examples.
    """
    counts = {column: len(set(values)) for column, values in examples.slices.items()}
    return [
        f"column {column!r} has {count:,} values; the {MOST_VALUES} most frequent are its slices"
        for column, count in counts.items()
        if count > MOST_VALUES
    ]


def length_buckets(tokens: NDArray[np.int64]) -> list[LengthBucket]:
    """Cut the examples at the quartiles of their lengths, the shortest first.

    Equal lengths stay together, so there can be fewer than four parts, and none at all where all
    lengths are equal.

    Args:
        tokens: Tokens per example, `(examples,)`.
    """
    # The middle of equal lengths decides, so that many of one length do not swallow the others.
    number = np.floor(_BUCKETS * (rankdata(tokens) - 0.5) / len(tokens))
    members = [number == bucket for bucket in np.unique(number)]
    if len(members) < 2:
        return []
    return [LengthBucket(int(tokens[m].min()), int(tokens[m].max()), m) for m in members]
