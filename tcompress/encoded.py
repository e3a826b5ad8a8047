"""Examples as model inputs, and which of a model's outputs are decided on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .data import Answer

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]
Batch = dict[str, Array]
"""Model inputs by name, each `(batch, tokens, ...)`."""

ATTENTION_MASK = "attention_mask"
NO_SPAN = (-1, -1)


def real_tokens(batch: Batch, fixed_tokens: int | None = None) -> npt.NDArray[np.bool_]:
    """Tell which tokens are no padding; all are where a model takes no mask.

    Args:
        batch: Model inputs.
        fixed_tokens: Tokens of every input, where the shape of the input does not tell.

    Returns:
        `(batch, tokens)`.
    """
    mask = batch.get(ATTENTION_MASK)
    if mask is not None:
        return np.asarray(mask != 0)
    size, length, *_ = next(iter(batch.values())).shape
    return np.ones((size, fixed_tokens or length), dtype=bool)


class Unit(StrEnum):
    """What a model of texts decides on its own."""

    EXAMPLE = "example"
    WORD = "word"
    CONTEXT = "context"


@dataclass(frozen=True)
class Encoded:
    """Examples as model inputs, not yet padded.

    An input is an example or, of a question whose context is too long, a window of it. Inputs
    stand in the order of their examples. Positions are positions of inputs.

    What a model decides on its own is a row: an input, a word, or a token of a context and the
    place of "no answer". Rows are numbered over all inputs, in their order.

    Attributes:
        lengths: Tokens per input, after truncation.
        truncated: How many examples were longer than the model's positions.
        collate: Makes one padded batch of the inputs at the given positions.
        windows: `(inputs,)`, the example of each input; None: one input per example, in order.
        cuts: Per input, which of its tokens are rows; None: the input is the row.
        parts: Per input, `(rows, 2)`: what each row stands for, as the half-open range of words of
            the example or of characters of the context; `NO_SPAN` for "no answer".
        padded_left: Whether padding stands before the tokens.
    """

    lengths: Indices
    truncated: int
    collate: Callable[[Sequence[int]], Batch]
    windows: Indices | None = None
    cuts: tuple[Indices, ...] | None = None
    parts: tuple[Indices, ...] | None = None
    padded_left: bool = False

    def batches(self, size: int) -> Iterator[tuple[list[int], Batch]]:
        """Yield batches of inputs of similar length, so that little is padded.

        Args:
            size: Inputs per batch.

        Yields:
            Positions of the inputs, and the batch.
        """
        order = np.argsort(self.lengths, kind="stable")
        for start in range(0, len(order), size):
            positions = [int(i) for i in order[start : start + size]]
            yield positions, self.collate(positions)

    @cached_property
    def owners(self) -> Indices:
        """The example of each input, `(inputs,)`, ascending."""
        return np.arange(len(self.lengths)) if self.windows is None else self.windows

    @cached_property
    def row_owners(self) -> Indices:
        """The example of each row, `(rows,)`, ascending."""
        return np.repeat(self.owners, self._counts)

    @cached_property
    def row_windows(self) -> Indices:
        """The input that each row was cut from, `(rows,)`, ascending."""
        return np.repeat(np.arange(len(self.lengths)), self._counts)

    @cached_property
    def spans(self) -> Indices:
        """What each row stands for, `(rows, 2)`; see `parts`.

        For inputs that are rows it is empty: `(0, 2)`.
        """
        return np.concatenate(self.parts) if self.parts else np.empty((0, 2), dtype=np.int64)

    def rows(self, positions: Sequence[int], output: Any) -> tuple[Any, Indices]:
        """Cut the output for a batch to rows.

        Args:
            positions: Positions of the batch's inputs.
            output: An array or tensor; `(batch, channels)` where inputs are rows, otherwise
                `(batch, tokens, channels)`.

        Returns:
            `(rows, channels)`, and the example of each row.
        """
        chosen = list(positions)
        if self.cuts is None:
            return output, self.owners[chosen]
        counts = self._counts[chosen]
        places = np.concatenate([self.cuts[i] for i in chosen])
        if self.padded_left:
            places += np.repeat(output.shape[1] - self.lengths[chosen], counts)
        inputs = np.repeat(np.arange(len(chosen)), counts)
        return output[inputs, places], np.repeat(self.owners[chosen], counts)

    def row_numbers(self, positions: Sequence[int]) -> Indices:
        """Number the rows that `rows` returns for a batch.

        Args:
            positions: Positions of the batch's inputs.
        """
        ranges = [np.arange(self._starts[i], self._starts[i + 1]) for i in positions]
        return np.concatenate(ranges) if ranges else np.empty(0, dtype=np.int64)

    def answer_rows(self, example: int, answer: Answer | None) -> list[tuple[int, int]]:
        """Find an answer among the rows.

        Args:
            example: The question.
            answer: The answer, or None for "no answer".

        Returns:
            Numbers of the first and the last row of the answer, for every window that holds all
            of it; none where no window does.
        """
        low, high = np.searchsorted(self.owners, [example, example + 1])
        found = []
        for window in range(low, high):
            places = self._places(window, answer)
            if len(places):
                start = int(self._starts[window])
                found.append((start + int(places[0]), start + int(places[-1])))
        return found

    def answer_text(self, context: str, first: int, last: int) -> str:
        """Return the piece of a context that rows stand for; empty for "no answer".

        Args:
            context: The context of the question that the rows belong to.
            first: Number of the first row.
            last: Number of the last row.
        """
        start, end = int(self.spans[first, 0]), int(self.spans[last, 1])
        return context[start:end] if 0 <= start < end else ""

    @cached_property
    def _counts(self) -> Indices:
        sizes = [1] * len(self.lengths) if self.cuts is None else [len(cut) for cut in self.cuts]
        return np.asarray(sizes, dtype=np.int64)

    @cached_property
    def _starts(self) -> Indices:
        return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self._counts)])

    def _places(self, window: int, answer: Answer | None) -> Indices:
        spans = self.spans[self._starts[window] : self._starts[window + 1]]
        real = spans[:, 0] >= 0
        if answer is None:
            return np.flatnonzero(~real)
        # tokens leave the blanks around an answer out
        start = answer.start + len(answer.text) - len(answer.text.lstrip())
        end = answer.start + len(answer.text.rstrip())
        if not real.any() or start < spans[real, 0].min() or end > spans[real, 1].max():
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(real & (spans[:, 1] > start) & (spans[:, 0] < end))
