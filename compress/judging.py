"""What an encoder answers, and how close that is to right or to another encoder."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.nn import functional

from tcompress.data import Examples
from tcompress.encoder import Encoder
from tcompress.preprocessing import Batch, Encoded
from tcompress.stages import StageRun

from .prediction import divergence_for, expected_accuracy
from .questions import Questions, collect, targets_of

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
        `(rows, channels)`, float32, on the CPU; for most tasks a row per example.
    """
    return collect(encoder.predict, encoded, batch_size)


def mean_divergence(logits: Tensor, changed: Tensor) -> float:
    """Return the mean KL(softmax(logits) || softmax(changed)) in nats, of one class per row.

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
        labels: What is right, `(rows, ...)`; None where that is not known: then the unchanged
            encoder's answers count as right, and the accuracy is the agreement with it.
    """

    encoded: Encoded
    labels: Tensor | None

    @staticmethod
    def examples(run: StageRun) -> Examples:
        """Draw from the validation split of a stage's workspace.

        Args:
            run: The stage.
        """
        return run.data.workspace_split("validation", _SELECTION_EXAMPLES, 0)

    @classmethod
    def of(cls, run: StageRun, encoder: Encoder) -> "Selection":
        """Take the validation split of a stage's workspace.

        Args:
            run: The stage.
            encoder: The encoder that it changes.
        """
        examples = cls.examples(run)
        encoded = run.encode(encoder, examples)
        return cls(encoded, targets_of(encoder, examples, encoded))


@dataclass(frozen=True)
class Verdict:
    """How a changed encoder answers.

    Attributes:
        divergence: Mean KL(unchanged || changed) in nats.
        accuracy: Fraction right, or what stands for it in the task.
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
        self.questions = Questions.of(encoder, selection.encoded)

    @cached_property
    def answers(self) -> Tensor:
        """The encoder's logits, `(rows, channels)`."""
        return predict_all(self._encoder, self._selection.encoded)

    @cached_property
    def truth(self) -> Tensor:
        """What is right, `(rows, ...)`."""
        labels = self._selection.labels
        return self.questions.own(self.answers) if labels is None else labels

    @cached_property
    def accuracy(self) -> float:
        """The encoder's fraction right, or what stands for it in the task."""
        return self.questions.score(self.answers, self.truth)

    def verdict(self, predict: Callable[[Batch], Any]) -> Verdict:
        """Judge a changed form.

        Args:
            predict: Answers a batch, as `Encoder.predict` does.
        """
        logits = collect(predict, self._selection.encoded)
        divergence = self.questions.divergence(self.answers, logits)
        found = self.questions.score(logits, self.truth)
        return Verdict(divergence, found, self.expected_accuracy(divergence))

    def expected_accuracy(self, divergence: float) -> float:
        """Return the accuracy to expect of a changed form.

        Args:
            divergence: How far its answers are, the mean over inputs.
        """
        return expected_accuracy(self.answers, self.truth, divergence, questions=self.questions)

    def bound(self, max_drop: float) -> float:
        """Return the divergence in nats at which an accuracy drop is safely expected to hold.

        Args:
            max_drop: The drop, a fraction above 0.
        """
        drop = _DROP_CAUTION * max_drop
        bound = divergence_for(self.answers, self.truth, drop, questions=self.questions)
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
            "examples": self.questions.inputs,
            "measure": self.questions.decision.measure,
            "labels": "data" if self._selection.labels is not None else "source encoder",
            "accuracy_before": self.accuracy,
            "accuracy": None if verdict is None else verdict.accuracy,
            "accuracy_expected": None if verdict is None else verdict.expected,
            "divergence": None if verdict is None else verdict.divergence,
        }
