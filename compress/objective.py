"""The training loss: from labels, from a teacher, or from both."""

from copy import copy
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from tcompress.encoder import Encoder
from tcompress.preprocessing import Batch, Encoded
from tcompress.tasks import decision_of

from .distillation import (
    Outputs,
    Teacher,
    compared_tokens,
    logits_loss,
    outputs_of,
    token_losses,
    token_scales,
)
from .questions import Questions, batch_rows


@dataclass(frozen=True)
class Part:
    """One batch of a step, and how much of the step it is.

    Attributes:
        inputs: Positions of its inputs.
        batch: Their model inputs.
        share: Its fraction of the step's examples.
        compared: `(layers, batch, tokens)`, 1 where tokens are compared with the teacher's.
        token_shares: `(layers,)`, its fraction of the step's compared tokens.
    """

    inputs: list[int]
    batch: Batch
    share: float
    compared: Tensor
    token_shares: Tensor


class Objective:
    """What an encoder is trained towards.

    The loss of a step is the weighted sum of up to three means: `task`, the cross-entropy to the
    labels or what the task has in its place; `logits`, the divergence from the teacher; `tokens`,
    the distance to the teacher's tokens behind every layer. The losses of a step's parts add up to
    those of the whole step.

    Args:
        encoder: The encoder to train.
        encoded: The training examples.
        labels: What is right, `(rows, ...)`, or None.
        teacher: Whom to learn from, or None.
    """

    def __init__(
        self, encoder: Encoder, encoded: Encoded, labels: Tensor | None, teacher: Teacher | None
    ) -> None:
        self._encoder = encoder
        self._encoded = encoded
        self._labels = labels
        self._decision = decision_of(encoder.task)
        self._anatomy = encoder.anatomy
        self._teacher = teacher
        self._scales = torch.empty(0) if teacher is None else token_scales(teacher, encoded)
        self._weights = {"task": 1.0} if teacher is None else teacher.recipe.weights

    def over(self, encoded: Encoded) -> Self:
        """Return the same objective on other examples, for the teacher alone to answer.

        Args:
            encoded: The examples.
        """
        other = copy(self)
        other._encoded, other._labels = encoded, None
        return other

    @property
    def dropout(self) -> bool:
        """Whether the encoder's dropout is on while it trains."""
        return self._teacher is None or self._teacher.recipe.dropout

    def parts(self, rows: list[int], batch_size: int) -> list[Part]:
        """Cut a step into batches.

        Args:
            rows: Positions of the step's examples.
            batch_size: Examples per batch.
        """
        cut = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        batches = [self._encoded.collate(part) for part in cut]
        compared = [
            compared_tokens(self._anatomy, batch).to(self._encoder.device) for batch in batches
        ]
        # counts: (parts, layers)
        counts = torch.stack([tokens.sum((1, 2)) for tokens in compared])
        shares = counts / counts.sum(0)
        return [
            Part(part, batch, len(part) / len(rows), tokens, token_shares)
            for part, batch, tokens, token_shares in zip(
                cut, batches, compared, shares, strict=True
            )
        ]

    def losses(self, part: Part) -> dict[str, Tensor]:
        """Compute what a part adds to the step's losses, by name, and their weighted sum, `loss`.

        Args:
            part: A batch of the step.
        """
        student = outputs_of(self._encoder, self._anatomy, part.batch)
        losses: dict[str, Tensor] = {}
        if self._labels is not None:
            numbers = self._encoded.row_numbers(part.inputs)
            targets = self._labels[numbers].to(student.logits.device)
            rows, members = batch_rows(self._encoded, part.inputs, student.logits)
            per_input = self._decision.losses(rows.float(), targets, members, len(part.inputs))
            losses["task"] = per_input.mean() * part.share
        if self._teacher is not None:
            losses |= self._distances(student, self._teacher, part)
        weighted = [self._weights[name] * value for name, value in losses.items()]
        return losses | {"loss": torch.stack(weighted).sum()}

    def _distances(self, student: Outputs, teacher: Teacher, part: Part) -> dict[str, Tensor]:
        with torch.no_grad():
            right = outputs_of(teacher.encoder, teacher.anatomy, part.batch)
        per_layer = token_losses(student.layers, right.layers, part.compared, self._scales)
        rows, members = batch_rows(self._encoded, part.inputs, student.logits)
        wanted, _ = batch_rows(self._encoded, part.inputs, right.logits)
        questions = Questions(self._decision, members, len(part.inputs))
        distance = logits_loss(rows, wanted, teacher.recipe.temperature, questions)
        return {
            "logits": distance * part.share,
            "tokens": (per_layer * part.token_shares).mean(),
        }
