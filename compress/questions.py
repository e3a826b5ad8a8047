"""A set of inputs as a task sees it: which outputs are decided on, and how answers compare."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tcompress.data import Examples
from tcompress.encoder import Encoder
from tcompress.preprocessing import Batch, Encoded
from tcompress.tasks import Decision, Task, decision_of


@dataclass(frozen=True)
class Questions:
    """What is asked, in rows; see `tcompress.tasks.decision`.

    Attributes:
        decision: How the task's logits are read.
        members: The input of each row, `(rows,)`.
        inputs: Number of inputs.
    """

    decision: Decision
    members: Tensor
    inputs: int

    @classmethod
    def of(cls, encoder: Encoder, encoded: Encoded) -> "Questions":
        """Return what an encoder is asked by a set of inputs.

        Args:
            encoder: The encoder.
            encoded: The inputs.
        """
        windows = torch.from_numpy(encoded.row_windows)
        return cls(decision_of(encoder.task), windows, len(encoded.lengths))

    @classmethod
    def of_classes(cls, inputs: int) -> "Questions":
        """Return questions that are answered with one class each.

        Args:
            inputs: How many.
        """
        return cls(decision_of(Task.CLASSIFICATION), torch.arange(inputs), inputs)

    def own(self, rows: Tensor) -> Tensor:
        """Return what answers themselves say is right.

        Args:
            rows: Logits, `(rows, channels)`.
        """
        return self.decision.own(rows, self.members)

    def score(self, rows: Tensor, targets: Tensor) -> float:
        """Return how good answers are; higher is better.

        Args:
            rows: Logits, `(rows, channels)`.
            targets: What is right, `(rows, ...)`.
        """
        return self.decision.score(rows, targets, self.members)

    def divergence(self, rows: Tensor, changed: Tensor) -> float:
        """Return how far answers moved, the mean over inputs.

        Args:
            rows: Logits, `(rows, channels)`.
            changed: Likewise.
        """
        pair = rows.double(), changed.double()
        return float(self.decision.divergences(*pair, self.members, self.inputs).mean())


def targets_of(encoder: Encoder, examples: Examples, encoded: Encoded) -> Tensor | None:
    """Return what is right for each row; None where the examples do not say it.

    Args:
        encoder: The encoder that is asked.
        examples: The examples.
        encoded: The same as its inputs.

    Raises:
        DataError: If something is right that the encoder cannot answer.
    """
    if encoder.task is Task.EMBEDDING or not examples.labelled:
        return None
    return decision_of(encoder.task).targets(encoder.labels, examples, encoded)


def collect(predict: Callable[[Batch], Any], encoded: Encoded, batch_size: int = 64) -> Tensor:
    """Return the rows of all inputs, in their order.

    Args:
        predict: Answers a batch with an array, as `Encoder.predict` does.
        encoded: The inputs.
        batch_size: Inputs per batch.

    Returns:
        `(rows, channels)`, float32, on the CPU.
    """
    found = torch.empty(len(encoded.row_windows), 0)
    for positions, batch in encoded.batches(batch_size):
        rows = torch.as_tensor(encoded.rows(positions, predict(batch))[0])
        if not found.numel():
            found = torch.empty(len(found), rows.shape[-1])
        found[encoded.row_numbers(positions)] = rows
    return found


def batch_rows(encoded: Encoded, positions: list[int], output: Tensor) -> tuple[Tensor, Tensor]:
    """Cut the output for a batch to rows.

    Args:
        encoded: The inputs.
        positions: Positions of those in the batch.
        output: What the encoder gave for it.

    Returns:
        `(rows, channels)`, and for each row the place of its input in the batch.
    """
    rows = encoded.rows(positions, output)[0]
    places = {position: place for place, position in enumerate(positions)}
    windows = encoded.row_windows[encoded.row_numbers(positions)]
    members = [places[int(window)] for window in windows]
    return rows, torch.tensor(members, dtype=torch.int64, device=output.device)


def real_rows(output: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Take every real token for a row, where an encoder answers token by token.

    Args:
        output: What the encoder gave, `(batch, channels)` or `(batch, tokens, channels)`.
        real: `(batch, tokens)`, True at tokens that are no padding.

    Returns:
        `(rows, channels)`, and for each row the place of its input in the batch.
    """
    if output.dim() == 2:
        return output, torch.arange(len(output), device=output.device)
    return output[real], real.nonzero()[:, 0]
