"""What an encoder answers, and how close that is to right or to another encoder."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tcompress.encoder import Encoder, label_indices
from tcompress.preprocessing import Batch, Encoded
from tcompress.stages import StageRun

from .prediction import divergence_for, expected_accuracy

_SELECTION_EXAMPLES = 4096
_DROP_CAUTION = 0.6
"""The expected drop may use this part of the one allowed: what comes out scatters around it."""
_DIVERGENCE_TOLERANCE = 1.02
LEAST_DIVERGENCE = 1e-9
"""What rounding makes of none."""


def predict_all(encoder: Encoder, encoded: Encoded, batch_size: int = 64) -> Tensor:
    """Return the logits of all examples, in their order.

    Args:
        encoder: The encoder.
        encoded: The examples.
        batch_size: Examples per batch.

    Returns:
        `(examples, labels)`, float32, on the CPU.
    """
    return _collect(encoder.predict, len(encoder.labels), encoded, batch_size)


def _collect(
    predict: Callable[[Batch], Any], labels: int, encoded: Encoded, batch_size: int = 64
) -> Tensor:
    logits = torch.empty(len(encoded.lengths), labels)
    for rows, batch in encoded.batches(batch_size):
        logits[rows] = torch.from_numpy(predict(batch))
    return logits


def agreement(logits: Tensor, classes: Tensor) -> float:
    """Return the fraction of examples whose highest logit is that of their class, 0 to 1.

    Args:
        logits: `(examples, classes)`.
        classes: Class indices, `(examples,)`.
    """
    return int((logits.argmax(-1) == classes).sum()) / len(classes)


def mean_divergence(logits: Tensor, changed: Tensor) -> float:
    """Return the mean KL(softmax(logits) || softmax(changed)) in nats.

    Args:
        logits: `(examples, classes)`.
        changed: Likewise.
    """
    teacher, student = (z.double().log_softmax(-1) for z in (logits, changed))
    return float(functional.kl_div(student, teacher, reduction="batchmean", log_target=True))


@dataclass(frozen=True)
class Selection:
    """Examples that a changed encoder is judged by before it leaves the stage.

    Attributes:
        encoded: The inputs.
        labels: Right classes, `(examples,)`; None where there are none: then the unchanged
            encoder's answers count as right, and the accuracy is the agreement with it.
    """

    encoded: Encoded
    labels: Tensor | None

    @classmethod
    def of(cls, run: StageRun, encoder: Encoder) -> "Selection":
        """Take the validation split of a stage's workspace.

        Args:
            run: The stage.
            encoder: The encoder that it changes.
        """
        examples = run.data.workspace_split("validation", _SELECTION_EXAMPLES, 0)
        labels = None if examples.labels is None else label_indices(encoder.labels, examples)
        return cls(run.encode(encoder, examples), labels)


@dataclass(frozen=True)
class Verdict:
    """How a changed encoder answers.

    Attributes:
        divergence: Mean KL(unchanged || changed) in nats.
        accuracy: Fraction right.
        expected: The accuracy that the divergence lets expect, which scatters less.
    """

    divergence: float
    accuracy: float
    expected: float


class Judge:
    """Holds changed forms of an encoder against itself.

    Args:
        encoder: The encoder; not changed.
        selection: The examples.
    """

    def __init__(self, encoder: Encoder, selection: Selection) -> None:
        self._encoder = encoder
        self._selection = selection

    @cached_property
    def answers(self) -> Tensor:
        """The encoder's logits, `(examples, labels)`."""
        return predict_all(self._encoder, self._selection.encoded)

    @cached_property
    def truth(self) -> Tensor:
        """Right classes, `(examples,)`."""
        labels = self._selection.labels
        return self.answers.argmax(-1) if labels is None else labels

    @property
    def accuracy(self) -> float:
        """The encoder's fraction right."""
        return agreement(self.answers, self.truth)

    def verdict(self, predict: Callable[[Batch], Any]) -> Verdict:
        """Judge a changed form.

        Args:
            predict: Answers a batch, as `Encoder.predict` does.
        """
        logits = _collect(predict, len(self._encoder.labels), self._selection.encoded)
        divergence = mean_divergence(self.answers, logits)
        expected = expected_accuracy(self.answers, self.truth, divergence)
        return Verdict(divergence, agreement(logits, self.truth), expected)

    def bound(self, max_drop: float) -> float:
        """Return the divergence in nats at which an accuracy drop is safely expected to hold.

        Args:
            max_drop: The drop, a fraction above 0.
        """
        bound = divergence_for(self.answers, self.truth, _DROP_CAUTION * max_drop)
        return max(bound, LEAST_DIVERGENCE)

    def stays_inside(self, verdict: Verdict, max_drop: float) -> bool:
        """Say whether a changed form drops by no more, found and expected.

        Args:
            verdict: How it answers.
            max_drop: The drop, a fraction above 0.
        """
        inside = self.accuracy - verdict.accuracy <= max_drop
        return inside and verdict.divergence <= _DIVERGENCE_TOLERANCE * self.bound(max_drop)

    def record(self, verdict: Verdict | None) -> dict[str, Any]:
        """Return a verdict as a manifest tells it.

        Args:
            verdict: The verdict; None where nothing was changed, or nobody asked.
        """
        return {
            "examples": len(self.truth),
            "labels": "data" if self._selection.labels is not None else "source encoder",
            "accuracy_before": self.accuracy,
            "accuracy": None if verdict is None else verdict.accuracy,
            "accuracy_expected": None if verdict is None else verdict.expected,
            "divergence": None if verdict is None else verdict.divergence,
        }
