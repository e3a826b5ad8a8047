"""What is right for a task, and how far two models' answers are apart.

Logits are cut to rows by `Encoded.rows`: `(rows, channels)`, where a row is an input, a word, or a
token of a context. `members` tells the input, `0` to `inputs - 1`, that each row belongs to.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..data import Examples, label_index
from ..encoded import Encoded
from ..errors import DataError
from .kinds import Task


class Decision(ABC):
    """How the logits of a task are read.

    Attributes:
        measure: What `score` is, for people.
        flat_at_own: Whether the loss has no slope at the model's own answers.
        tempered: Whether logits may be divided by a temperature.
    """

    measure: str
    flat_at_own = False
    tempered = True

    @abstractmethod
    def targets(self, labels: tuple[str, ...], examples: Examples, encoded: Encoded) -> Tensor:
        """Return what is right for each row, `(rows, ...)`.

        Args:
            labels: The model's class names.
            examples: Examples with right answers.
            encoded: The same examples as model inputs.

        Raises:
            DataError: If there are no right answers, or one that the model cannot give.
        """

    @abstractmethod
    def own(self, rows: Tensor, members: Tensor) -> Tensor:
        """Return what the model's own answers say is right, as `targets` does.

        Args:
            rows: Its logits, `(rows, channels)`.
            members: The input of each row, `(rows,)`.
        """

    @abstractmethod
    def losses(self, rows: Tensor, targets: Tensor, members: Tensor, inputs: int) -> Tensor:
        """Return the training loss of each input, `(inputs,)`.

        Args:
            rows: Logits, `(rows, channels)`.
            targets: What is right, `(rows, ...)`.
            members: The input of each row, `(rows,)`.
            inputs: Number of inputs.
        """

    @abstractmethod
    def divergences(self, teacher: Tensor, student: Tensor, members: Tensor, inputs: int) -> Tensor:
        """Return how far answers moved, per input in nats or what stands for them, `(inputs,)`.

        Args:
            teacher: Logits before, `(rows, channels)`.
            student: Logits now, likewise.
            members: The input of each row, `(rows,)`.
            inputs: Number of inputs.
        """

    @abstractmethod
    def score(self, rows: Tensor, targets: Tensor, members: Tensor) -> float:
        """Return how good answers are; higher is better.

        Args:
            rows: Logits, `(rows, channels)`.
            targets: What is right, `(rows, ...)`.
            members: The input of each row, `(rows,)`.
        """

    @abstractmethod
    def drawn(self, rows: Tensor, members: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a direction d of the logits, `(rows, channels)`.

        In expectation d d^T is the curvature of an input's divergence in its logits.

        Args:
            rows: Logits, `(rows, channels)`.
            members: The input of each row, `(rows,)`.
            generator: Draws it.
        """


class _Classes(Decision):
    """One class per row, and the mean over an input's rows."""

    measure = "accuracy"

    def own(self, rows: Tensor, members: Tensor) -> Tensor:
        return rows.argmax(-1)

    def losses(self, rows: Tensor, targets: Tensor, members: Tensor, inputs: int) -> Tensor:
        losses = functional.cross_entropy(rows.float(), targets, reduction="none")
        return _means(losses, members, inputs)

    def divergences(self, teacher: Tensor, student: Tensor, members: Tensor, inputs: int) -> Tensor:
        return _means(_divergence(teacher, student), members, inputs)

    def score(self, rows: Tensor, targets: Tensor, members: Tensor) -> float:
        return int((rows.argmax(-1) == targets).sum()) / max(1, len(targets))

    def drawn(self, rows: Tensor, members: Tensor, generator: torch.Generator) -> Tensor:
        p = rows.double().softmax(-1)
        signed = p.sqrt() * _signs(p, generator)
        direction = signed - p * signed.sum(-1, keepdim=True)
        return (direction * _weights(members)[:, None].sqrt()).to(rows)


class Classification(_Classes):
    """One class per input."""

    def targets(self, labels: tuple[str, ...], examples: Examples, encoded: Encoded) -> Tensor:
        """See `Decision.targets`; `(rows,)`."""
        if examples.labels is None:
            raise _unlabelled(examples)
        return _indices(labels, examples.labels, examples)


class TokenClassification(_Classes):
    """One class per word."""

    measure = "word accuracy"

    def targets(self, labels: tuple[str, ...], examples: Examples, encoded: Encoded) -> Tensor:
        """See `Decision.targets`; `(rows,)`."""
        if examples.tags is None:
            raise _unlabelled(examples)
        words = zip(encoded.row_owners, encoded.spans[:, 0], strict=True)
        return _indices(labels, (examples.tags[owner][word] for owner, word in words), examples)


class MultiLabel(Decision):
    """Any number of classes per input, each on its own."""

    measure = "micro F1"

    def targets(self, labels: tuple[str, ...], examples: Examples, encoded: Encoded) -> Tensor:
        """See `Decision.targets`; `(rows, classes)` of 0 and 1."""
        if examples.label_sets is None:
            raise _unlabelled(examples)
        index = label_index(labels, examples.label_names, examples.origin)
        found = torch.zeros(len(examples), len(labels))
        for row, names in enumerate(examples.label_sets):
            found[row, [index[name] for name in names]] = 1.0
        return found

    def own(self, rows: Tensor, members: Tensor) -> Tensor:
        """See `Decision.own`."""
        return (rows > 0).to(rows)

    def losses(self, rows: Tensor, targets: Tensor, members: Tensor, inputs: int) -> Tensor:
        """See `Decision.losses`; the sum over classes."""
        loss = functional.binary_cross_entropy_with_logits
        return loss(rows.float(), targets, reduction="none").sum(-1)

    def divergences(self, teacher: Tensor, student: Tensor, members: Tensor, inputs: int) -> Tensor:
        """See `Decision.divergences`; the sum over classes."""
        pairs = [torch.stack([z, torch.zeros_like(z)], -1) for z in (teacher, student)]
        return _divergence(*pairs).sum(-1)

    def score(self, rows: Tensor, targets: Tensor, members: Tensor) -> float:
        """See `Decision.score`."""
        found, right = rows > 0, targets > 0.5
        both = int(found.sum() + right.sum())
        return 2 * int((found & right).sum()) / both if both else 1.0

    def drawn(self, rows: Tensor, members: Tensor, generator: torch.Generator) -> Tensor:
        """See `Decision.drawn`."""
        p = rows.double().sigmoid()
        return ((p * (1 - p)).sqrt() * _signs(p, generator)).to(rows)


class Regression(Decision):
    """Numbers, with errors taken for normal with variance 1."""

    measure = "correlation"
    flat_at_own = True
    tempered = False

    def targets(self, labels: tuple[str, ...], examples: Examples, encoded: Encoded) -> Tensor:
        """See `Decision.targets`; `(rows, 1)`."""
        return torch.from_numpy(examples.numbers.astype(np.float32))[:, None]

    def own(self, rows: Tensor, members: Tensor) -> Tensor:
        """See `Decision.own`."""
        return rows

    def losses(self, rows: Tensor, targets: Tensor, members: Tensor, inputs: int) -> Tensor:
        """See `Decision.losses`; half the squared error."""
        return self.divergences(targets, rows, members, inputs)

    def divergences(self, teacher: Tensor, student: Tensor, members: Tensor, inputs: int) -> Tensor:
        """See `Decision.divergences`; half the squared difference."""
        return (teacher.float() - student.float()).square().sum(-1) / 2

    def score(self, rows: Tensor, targets: Tensor, members: Tensor) -> float:
        """See `Decision.score`; 0 where one side is constant."""
        x, y = (z.double() - z.double().mean() for z in (rows.flatten(), targets.flatten()))
        spread = float(x.norm() * y.norm())
        return float(x @ y) / spread if spread else 0.0

    def drawn(self, rows: Tensor, members: Tensor, generator: torch.Generator) -> Tensor:
        """See `Decision.drawn`."""
        return _signs(rows, generator)


class QuestionAnswering(Decision):
    """A start and an end among the tokens of each window of a context."""

    measure = "exact spans"

    def targets(self, labels: tuple[str, ...], examples: Examples, encoded: Encoded) -> Tensor:
        """See `Decision.targets`; `(rows, 2)`: how much of start and end lies on the row.

        A window without the answer has it at the place of "no answer", and nowhere without one.
        """
        if examples.answers is None:
            raise _unlabelled(examples)
        found = torch.zeros(len(encoded.row_owners), 2)
        for example, answers in enumerate(examples.answers):
            for answer in answers[:1]:
                for first, last in encoded.answer_rows(example, answer):
                    found[first, 0] = found[last, 1] = 1.0
        windows = torch.from_numpy(encoded.row_windows)
        count = len(encoded.lengths)
        nowhere = torch.from_numpy(encoded.spans[:, 0] < 0)
        missing = torch.zeros(count, 2).index_add_(0, windows, found) == 0
        return found + (nowhere[:, None] & missing[windows]).float()

    def own(self, rows: Tensor, members: Tensor) -> Tensor:
        """See `Decision.own`."""
        best = _maxima(rows, members) == rows
        return best.to(rows)

    def losses(self, rows: Tensor, targets: Tensor, members: Tensor, inputs: int) -> Tensor:
        """See `Decision.losses`; the sum over start and end."""
        per_row = -(targets * _log_softmax_within(rows, members)).sum(-1)
        return per_row.new_zeros(inputs).index_add(0, members, per_row)

    def divergences(self, teacher: Tensor, student: Tensor, members: Tensor, inputs: int) -> Tensor:
        """See `Decision.divergences`; the sum over start and end."""
        p, q = (_log_softmax_within(z, members) for z in (teacher, student))
        per_row = (p.exp() * (p - q)).sum(-1)
        return per_row.new_zeros(inputs).index_add(0, members, per_row)

    def score(self, rows: Tensor, targets: Tensor, members: Tensor) -> float:
        """See `Decision.score`; the share of windows with both ends right."""
        best = _maxima(rows, members) == rows
        right = (best & (targets > 0)).float()
        count = int(members.max()) + 1 if len(members) else 1
        ends = right.new_zeros(count, 2).index_add_(0, members, right) > 0
        return float(ends.all(-1).float().mean())

    def drawn(self, rows: Tensor, members: Tensor, generator: torch.Generator) -> Tensor:
        """See `Decision.drawn`."""
        p = _log_softmax_within(rows, members).exp()
        signed = p.sqrt() * _signs(p, generator)
        total = signed.new_zeros(int(members.max()) + 1, 2).index_add_(0, members, signed)
        return (signed - p * total[members]).to(rows)


class Embedding(Decision):
    """Vectors, of which the direction counts."""

    measure = "mean cosine"
    flat_at_own = True
    tempered = False

    def targets(self, labels: tuple[str, ...], examples: Examples, encoded: Encoded) -> Tensor:
        """Refuse: what vectors are right only another model says."""
        msg = f"{examples.origin}: vectors are learned from a teacher, not from labels"
        raise DataError(msg)

    def own(self, rows: Tensor, members: Tensor) -> Tensor:
        """See `Decision.own`."""
        return rows

    def losses(self, rows: Tensor, targets: Tensor, members: Tensor, inputs: int) -> Tensor:
        """See `Decision.losses`; 1 less the cosine."""
        return self.divergences(targets, rows, members, inputs)

    def divergences(self, teacher: Tensor, student: Tensor, members: Tensor, inputs: int) -> Tensor:
        """See `Decision.divergences`; 1 less the cosine."""
        cosine = functional.cosine_similarity(teacher.double(), student.double(), dim=-1)
        return (1 - cosine).clamp(min=0).to(student.dtype)

    def score(self, rows: Tensor, targets: Tensor, members: Tensor) -> float:
        """See `Decision.score`."""
        return float(functional.cosine_similarity(rows.double(), targets.double(), dim=-1).mean())

    def drawn(self, rows: Tensor, members: Tensor, generator: torch.Generator) -> Tensor:
        """See `Decision.drawn`; what turns the vector, as 1 - cos is half the squared angle."""
        unit = functional.normalize(rows.double(), dim=-1)
        signs = _signs(unit, generator)
        turning = signs - unit * (signs * unit).sum(-1, keepdim=True)
        lengths: Tensor = rows.double().norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return (turning / lengths).to(rows)


_DECISIONS: dict[Task, Decision] = {
    Task.CLASSIFICATION: Classification(),
    Task.MULTI_LABEL: MultiLabel(),
    Task.REGRESSION: Regression(),
    Task.TOKEN_CLASSIFICATION: TokenClassification(),
    Task.QUESTION_ANSWERING: QuestionAnswering(),
    Task.EMBEDDING: Embedding(),
}


def decision_of(task: Task) -> Decision:
    """Return how the logits of a task are read.

    Args:
        task: The task.
    """
    return _DECISIONS[task]


def _indices(labels: tuple[str, ...], names: Iterable[str], examples: Examples) -> Tensor:
    index = label_index(labels, examples.label_names, examples.origin)
    return torch.tensor([index[name] for name in names], dtype=torch.int64)


def _unlabelled(examples: Examples) -> DataError:
    return DataError(f"{examples.origin}: no labels in it; name their column with --label-column")


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn: Tensor = torch.randint(0, 2, like.shape, generator=generator)
    return (drawn * 2 - 1).to(like)


def _divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(softmax(teacher) || softmax(student)) over the last dimension."""
    p, q = (z.double().log_softmax(-1) for z in (teacher, student))
    return (p.exp() * (p - q)).sum(-1).to(student.dtype)


def _weights(members: Tensor) -> Tensor:
    """Return one over the rows of each row's input, `(rows,)`."""
    return 1 / torch.bincount(members)[members].double()


def _means(values: Tensor, members: Tensor, inputs: int) -> Tensor:
    """Return the mean over each input's rows; 0 of none."""
    total = values.new_zeros(inputs).index_add(0, members, values)
    return total / torch.bincount(members, minlength=inputs).clamp(min=1)


def _maxima(rows: Tensor, members: Tensor) -> Tensor:
    """Return for each row and channel the largest of its input."""
    index = members[:, None].expand_as(rows)
    lowest = rows.new_full((int(members.max()) + 1, rows.shape[1]), float("-inf"))
    return lowest.scatter_reduce(0, index, rows, "amax")[members]


def _log_softmax_within(rows: Tensor, members: Tensor) -> Tensor:
    """Return the logarithm of the softmax over each input's rows, channel by channel."""
    z = rows.double()
    z = z - _maxima(z.detach(), members)
    total = z.new_zeros(int(members.max()) + 1, z.shape[1]).index_add(0, members, z.exp())
    return z - total.log()[members]
