"""What the gate compares: the answers of a baseline and of a candidate to the same examples."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompress.errors import ModelError

from ..noninferiority import PairedCounts

NO_ANSWER = -1
"""Class of an example without finite logits."""

Logits = npt.NDArray[np.floating[Any]]
Classes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Sides:
    """Answers of baseline and candidate, in pairs.

    Attributes:
        baseline: Logits, `(examples, classes)`, finite.
        candidate: Logits of the same examples in the same order, `(examples, classes)`.
        truth: Right classes, `(examples,)`: indices into `labels`.
        labels: Class names.

    Raises:
        ModelError: If the shapes differ, a right class is none of the classes, or the baseline's
            logits are not finite.
    """

    baseline: Logits
    candidate: Logits
    truth: Classes
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        shapes = self.baseline.shape, self.candidate.shape
        if len(shapes[0]) != 2 or shapes[0] != shapes[1] or len(self.truth) != shapes[0][0]:
            msg = (
                "logits must have one shape (examples, classes) and one label per example, got "
                f"{shapes[0]}, {shapes[1]} and {len(self.truth)} labels"
            )
            raise ModelError(msg)
        if not np.issubdtype(self.truth.dtype, np.integer) or (
            len(self.truth) and not 0 <= self.truth.min() <= self.truth.max() < shapes[0][1]
        ):
            msg = f"labels must be whole numbers from 0 to {shapes[0][1] - 1}, one per class"
            raise ModelError(msg)
        if not np.isfinite(self.baseline).all():
            msg = "the baseline's logits are not finite; nothing can be held against it"
            raise ModelError(msg)

    def __len__(self) -> int:
        return len(self.truth)

    @cached_property
    def expected(self) -> Classes:
        """Classes that the baseline predicts, `(examples,)`."""
        return _classes(self.baseline)

    @cached_property
    def found(self) -> Classes:
        """Classes that the candidate predicts, `(examples,)`; `NO_ANSWER` where not finite."""
        return _classes(self.candidate)

    @cached_property
    def counts(self) -> PairedCounts:
        """Right and wrong answers in pairs."""
        return PairedCounts.from_correct(self.expected == self.truth, self.found == self.truth)


def _classes(logits: Logits) -> Classes:
    finite = np.isfinite(logits).all(axis=1)
    return np.where(finite, np.argmax(logits, axis=1), NO_ANSWER)
