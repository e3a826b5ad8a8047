"""Examples of one split, held in memory."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from ..errors import DataError

STRIDE = 128
SMALL = 20_000
"""Up to so many examples are held to draw from them; of more, a sample is drawn in passing."""


class Answer(NamedTuple):
    """A right answer to a question.

    Attributes:
        text: The answer, as it stands in the context.
        start: Where it starts there, in characters.
    """

    text: str
    start: int


@dataclass(frozen=True)
class Examples:
    """Examples of one split, held in memory, in file order.

    Attributes:
        origin: Where they came from, for messages.
        ids: One identifier per example; the row number where the file has none.
        labels: Label names, for regression numbers as text; None where the file has none.
        texts: Texts, for text data; the questions, where contexts are to answer them.
        text_pairs: Second texts, for pair data; the contexts of questions.
        inputs: `(examples, tokens, features)` floats or `(examples, tokens)` ids, for tensor data;
            `(examples, channels, height, width)` or `(examples, height, width, channels)` for
            images.
        mask: `(examples, tokens)`, 1 at real tokens; None: all real.
        groups: Group of each example, or None.
        slices: Per slice column the value of each example; empty where it has none.
        label_sets: The labels that each example has, where it may have several, or None.
        words: Words of each example, where words are labelled, or None.
        tags: One tag per word, or None.
        answers: Right answers to each question, none where the context has none, or None.
        stride: Tokens that neighbouring windows of a context share.
        images: Files of images, or None.
    """

    origin: str
    ids: tuple[str, ...]
    labels: tuple[str, ...] | None = None
    texts: tuple[str, ...] | None = None
    text_pairs: tuple[str, ...] | None = None
    inputs: npt.NDArray[Any] | None = None
    mask: npt.NDArray[Any] | None = None
    groups: tuple[str, ...] | None = None
    slices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label_sets: tuple[tuple[str, ...], ...] | None = None
    words: tuple[tuple[str, ...], ...] | None = None
    tags: tuple[tuple[str, ...], ...] | None = None
    answers: tuple[tuple[Answer, ...], ...] | None = None
    stride: int = STRIDE
    images: tuple[Path, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Self:
        """Return the chosen examples, in the order given.

        Args:
            indices: Positions of the examples.
        """
        chosen = [int(i) for i in indices]

        def pick(values: Any) -> Any:
            if isinstance(values, tuple):
                return tuple(values[i] for i in chosen)
            if isinstance(values, np.ndarray):
                return values[chosen]
            if isinstance(values, Mapping):
                return {name: pick(column) for name, column in values.items()}
            return values

        return replace(self, **{item.name: pick(getattr(self, item.name)) for item in fields(self)})

    def sample(self, count: int, seed: int) -> Self:
        """Return up to `count` examples drawn without replacement.

        Args:
            count: How many at most.
            seed: Seed of the draw.
        """
        if count >= len(self):
            return self
        rng = np.random.default_rng(seed)
        if len(self) > SMALL:
            return self.take(smallest(rng.random(len(self)), count))
        return self.take(np.sort(rng.permutation(len(self))[:count]))

    @property
    def labelled(self) -> bool:
        """Whether the right answers are known."""
        truths = (self.labels, self.label_sets, self.tags, self.answers)
        return any(truth is not None for truth in truths)

    @property
    def label_names(self) -> frozenset[str]:
        """Every label or tag that occurs."""
        nested = (*(self.label_sets or ()), *(self.tags or ()))
        return frozenset(self.labels or ()).union(*nested)

    @property
    def numbers(self) -> npt.NDArray[np.float64]:
        """The labels as the numbers of a regression, `(examples,)`.

        Raises:
            DataError: If there are no labels, or one is no finite number.
        """
        if self.labels is None:
            msg = f"{self.origin}: no labels in it; name their column with --label-column"
            raise DataError(msg)
        return np.asarray([self._number(i) for i in range(len(self))], dtype=np.float64)

    def renamed(self, names: Mapping[str, str]) -> Self:
        """Return the examples with other names for their labels and tags.

        Args:
            names: New names by old ones; labels that are not in it keep theirs.
        """

        def rename(values: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(names.get(value, value) for value in values)

        return replace(
            self,
            labels=None if self.labels is None else rename(self.labels),
            label_sets=None if self.label_sets is None else tuple(map(rename, self.label_sets)),
            tags=None if self.tags is None else tuple(map(rename, self.tags)),
        )

    @cached_property
    def content_digests(self) -> tuple[str, ...]:
        """Digest of each example's input, labels left out."""
        return tuple(self._content_digest(i) for i in range(len(self)))

    @cached_property
    def digest(self) -> str:
        """Digest of all inputs and labels, in order; no answer depends on slices."""
        total = hashlib.sha256()
        for i, content in enumerate(self.content_digests):
            total.update(f"{content} {self._truth(i)}\n".encode("utf-8", "surrogatepass"))
        if self.stride != STRIDE:
            total.update(f"stride {self.stride}\n".encode())
        return total.hexdigest()

    def without(self, other: "Examples") -> Self:
        """Return the examples whose input does not occur in `other`.

        Args:
            other: Examples to stay away from.
        """
        return self.avoiding(frozenset(other.content_digests))

    def avoiding(self, digests: frozenset[str]) -> Self:
        """Return the examples whose input is none of those.

        Args:
            digests: Content digests.
        """
        if not digests:
            return self
        keep = [i for i, digest in enumerate(self.content_digests) if digest not in digests]
        return self if len(keep) == len(self) else self.take(keep)

    def _number(self, i: int) -> float:
        text = self.labels[i] if self.labels else ""
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not np.isfinite(number):
            msg = f"{self.origin}: the label of example {self.ids[i]!r} is {text!r}, not a number"
            raise DataError(msg)
        return number

    def _truth(self, i: int) -> str:
        if self.labels is not None:
            return self.labels[i]
        structured = self.label_sets or self.tags or self.answers
        return "" if structured is None else json.dumps(structured[i])

    def _content_digest(self, i: int) -> str:
        digest = hashlib.sha256()
        if self.texts is not None:
            digest.update(self.texts[i].encode("utf-8", "surrogatepass"))
        if self.text_pairs is not None:
            digest.update(b"\0" + self.text_pairs[i].encode("utf-8", "surrogatepass"))
        if self.words is not None:
            digest.update("\0".join(self.words[i]).encode("utf-8", "surrogatepass"))
        if self.images is not None:
            digest.update(self.images[i].read_bytes())
        if self.inputs is not None:
            digest.update(np.ascontiguousarray(self.inputs[i]).tobytes())
        if self.mask is not None:
            digest.update(np.ascontiguousarray(self.mask[i]).tobytes())
        return digest.hexdigest()


def smallest(keys: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """Return the positions of the smallest keys, ascending.

    With random keys that is a draw without replacement which can go on when more keys come.

    Args:
        keys: One per example.
        count: How many, at least 1 and fewer than there are keys.
    """
    return np.sort(np.argpartition(keys, count)[:count])


def join_examples(parts: Sequence[Examples]) -> Examples:
    """Return the examples of several parts of one file, one after the other.

    Args:
        parts: The parts, in order; at least one.

    Raises:
        DataError: If a column is in some of them only.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    joined = {}
    for item in fields(first):
        values = [getattr(part, item.name) for part in parts]
        if item.name in ("origin", "stride"):
            continue
        missing = [value is None for value in values]
        if any(missing) and not all(missing):
            msg = f"{first.origin}: some of its examples have {item.name}, others have none"
            raise DataError(msg)
        joined[item.name] = _joined(values)
    return replace(first, **joined)


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, tuple):
        return tuple(item for value in values for item in value)
    if isinstance(first, Mapping):
        return {name: _joined([value[name] for value in values]) for name in first}
    return first if first is None else np.concatenate(values)
