"""Labelled examples: texts from a table, or tensors from an array file."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from .errors import DataError, MissingExtraError

_TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_TENSOR_SUFFIXES = (".npz", ".safetensors")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that matter in a table.

    Attributes:
        text: Column of the text.
        text_pair: Column of the second text, or None.
        label: Column of the label.
        group: Column whose values must stay on one side of a split, or None.
        slices: Columns by whose values accuracy is also told apart; arrays for tensor data.
    """

    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    group: str | None = None
    slices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Examples:
    """Examples of one split, held in memory, in file order.

    Attributes:
        origin: Where they came from, for messages.
        ids: One identifier per example; the row number where the file has none.
        labels: Label names, or None where the file has none.
        texts: Texts, for text data.
        text_pairs: Second texts, for pair data.
        inputs: `(examples, tokens, features)` floats or `(examples, tokens)` ids, for tensor data.
        mask: `(examples, tokens)`, 1 at real tokens; None: all real.
        groups: Group of each example, or None.
        slices: Per slice column the value of each example; empty where it has none.
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

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Self:
        """Return the chosen examples, in the order given.

        Args:
            indices: Positions of the examples.
        """
        chosen = [int(i) for i in indices]

        def pick(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
            return None if values is None else tuple(values[i] for i in chosen)

        return replace(
            self,
            ids=tuple(self.ids[i] for i in chosen),
            labels=pick(self.labels),
            texts=pick(self.texts),
            text_pairs=pick(self.text_pairs),
            groups=pick(self.groups),
            slices={n: tuple(values[i] for i in chosen) for n, values in self.slices.items()},
            inputs=None if self.inputs is None else self.inputs[chosen],
            mask=None if self.mask is None else self.mask[chosen],
        )

    def sample(self, count: int, seed: int) -> Self:
        """Return up to `count` examples drawn without replacement.

        Args:
            count: How many at most.
            seed: Seed of the draw.
        """
        if count >= len(self):
            return self
        order = np.random.default_rng(seed).permutation(len(self))[:count]
        return self.take(np.sort(order))

    @cached_property
    def content_digests(self) -> tuple[str, ...]:
        """Digest of each example's input, labels left out."""
        return tuple(self._content_digest(i) for i in range(len(self)))

    @cached_property
    def digest(self) -> str:
        """Digest of all inputs and labels, in order; no answer depends on slices."""
        total = hashlib.sha256()
        for i, content in enumerate(self.content_digests):
            label = "" if self.labels is None else self.labels[i]
            total.update(f"{content} {label}\n".encode())
        return total.hexdigest()

    def without(self, other: "Examples") -> Self:
        """Return the examples whose input does not occur in `other`.

        Args:
            other: Examples to stay away from.
        """
        taken = set(other.content_digests)
        keep = [i for i, digest in enumerate(self.content_digests) if digest not in taken]
        return self if len(keep) == len(self) else self.take(keep)

    def _content_digest(self, i: int) -> str:
        digest = hashlib.sha256()
        if self.texts is not None:
            digest.update(self.texts[i].encode("utf-8", "surrogatepass"))
        if self.text_pairs is not None:
            digest.update(b"\0" + self.text_pairs[i].encode("utf-8", "surrogatepass"))
        if self.inputs is not None:
            digest.update(np.ascontiguousarray(self.inputs[i]).tobytes())
        if self.mask is not None:
            digest.update(np.ascontiguousarray(self.mask[i]).tobytes())
        return digest.hexdigest()


def read_examples(path: Path, columns: Columns) -> Examples:
    """Read examples from a file; its suffix tells the format.

    Args:
        path: CSV, TSV, JSONL or Parquet for texts (also compressed as pandas reads them); NPZ or
            safetensors for tensors, with arrays `inputs`, `labels` and optionally `mask`.
        columns: Column names for texts; of tensors only the slices count.

    Raises:
        DataError: If the file is missing, empty, of unknown form or lacks a column.
        MissingExtraError: If Parquet support is not installed.
    """
    if not path.is_file():
        msg = f"{path}: no such data file"
        raise DataError(msg)
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    kind = next((s for s in suffixes if s in _TABLE_SUFFIXES + _TENSOR_SUFFIXES), None)
    if kind is None:
        known = ", ".join(_TABLE_SUFFIXES + _TENSOR_SUFFIXES)
        msg = f"{path}: unknown data format; the name must end in one of {known}"
        raise DataError(msg)
    examples = (
        _from_tensors(path, _read_tensors(path, kind), columns.slices)
        if kind in _TENSOR_SUFFIXES
        else _from_table(path, _read_table(path, kind), columns)
    )
    if len(examples) == 0:
        msg = f"{path}: no examples in it"
        raise DataError(msg)
    return examples


def _read_table(path: Path, kind: str) -> pd.DataFrame:
    text: dict[str, Any] = {"dtype": str, "keep_default_na": False, "encoding": "utf-8"}
    try:
        if kind == ".jsonl":
            rows: pd.DataFrame = pd.read_json(path, lines=True, dtype=False)
            return rows
        if kind == ".parquet":
            table: pd.DataFrame = pd.read_parquet(path)
            return table
        csv: pd.DataFrame = pd.read_csv(path, sep="\t" if kind == ".tsv" else ",", **text)
        return csv
    except ImportError as error:
        raise MissingExtraError("parquet", "reading Parquet files") from error
    except pd.errors.EmptyDataError as error:
        msg = f"{path}: the file is empty"
        raise DataError(msg) from error
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        msg = f"{path}: cannot be read as {kind[1:]}: {reason}"
        raise DataError(msg) from error


def _from_table(path: Path, table: pd.DataFrame, columns: Columns) -> Examples:
    wanted = [columns.text, columns.text_pair, columns.group, *columns.slices]
    for name in wanted:
        if name is not None and name not in table.columns:
            found = ", ".join(map(str, table.columns))
            msg = f"{path}: no column {name!r}; it has: {found}"
            raise DataError(msg)

    def strings(name: str | None, *, required: bool = True) -> tuple[str, ...] | None:
        if name is None or (not required and name not in table.columns):
            return None
        blank = table[name].isna()
        if blank.any():
            row = int(np.flatnonzero(blank.to_numpy())[0]) + 1
            msg = f"{path}: column {name!r} has no value in row {row}"
            raise DataError(msg)
        return tuple(str(value) for value in table[name])

    ids = strings("id", required=False) or tuple(str(i) for i in range(len(table)))
    return Examples(
        origin=str(path),
        ids=ids,
        labels=strings(columns.label, required=False),
        texts=strings(columns.text),
        text_pairs=strings(columns.text_pair),
        groups=strings(columns.group),
        slices={name: _slice_values(table[name]) for name in columns.slices},
    )


def _slice_values(column: pd.Series) -> tuple[str, ...]:
    # Unlike a missing text, a missing property is no reason to refuse the file.
    return tuple(column.astype(object).where(column.notna(), "").map(str))


def _read_tensors(path: Path, kind: str) -> dict[str, npt.NDArray[Any]]:
    try:
        if kind == ".safetensors":
            from safetensors.numpy import load_file

            return dict(load_file(path))
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # the parsers raise many kinds for a damaged file
        msg = f"{path}: cannot be read as {kind[1:]}: {error}"
        raise DataError(msg) from error


def _from_tensors(
    path: Path, arrays: dict[str, npt.NDArray[Any]], slices: Sequence[str]
) -> Examples:
    if "inputs" not in arrays:
        msg = f"{path}: no array 'inputs'; it has: {', '.join(sorted(arrays))}"
        raise DataError(msg)
    inputs = arrays["inputs"]
    if inputs.ndim not in (2, 3):
        msg = (
            f"{path}: 'inputs' must be (examples, tokens) ids or (examples, tokens, features), "
            f"got shape {inputs.shape}"
        )
        raise DataError(msg)
    count = len(inputs)
    for name in ("labels", "mask", "ids"):
        if name in arrays and len(arrays[name]) != count:
            msg = f"{path}: 'inputs' has {count} examples, {name!r} has {len(arrays[name])}"
            raise DataError(msg)
    if np.issubdtype(inputs.dtype, np.floating) and not np.isfinite(inputs).all():
        msg = f"{path}: 'inputs' holds values that are not finite"
        raise DataError(msg)
    if "mask" in arrays and arrays["mask"].shape != inputs.shape[:2]:
        msg = (
            f"{path}: 'mask' must be (examples, tokens)={inputs.shape[:2]}, "
            f"got {arrays['mask'].shape}"
        )
        raise DataError(msg)
    if "mask" in arrays and not (arrays["mask"] != 0).any(axis=1).all():
        msg = f"{path}: 'mask' leaves an example without any token"
        raise DataError(msg)
    labels, ids = arrays.get("labels"), arrays.get("ids")
    return Examples(
        origin=str(path),
        ids=tuple(str(i) for i in (range(count) if ids is None else ids)),
        labels=None if labels is None else tuple(str(label) for label in labels),
        inputs=inputs,
        mask=arrays.get("mask"),
        slices={name: _slice_array(path, arrays, name) for name in slices},
    )


def _slice_array(path: Path, arrays: dict[str, npt.NDArray[Any]], name: str) -> tuple[str, ...]:
    if name not in arrays:
        msg = f"{path}: no array {name!r}; it has: {', '.join(sorted(arrays))}"
        raise DataError(msg)
    expected, found = (len(arrays["inputs"]),), arrays[name].shape
    if found != expected:
        msg = (
            f"{path}: {name!r} must have one value per example, (examples,)={expected}, got {found}"
        )
        raise DataError(msg)
    return tuple(str(value) for value in arrays[name])


def split_examples(
    examples: Examples, *, validation: float, test: float, seed: int
) -> tuple[Examples, Examples, Examples]:
    """Split into train, validation and test; equal groups, or else equal inputs, stay together.

    Args:
        examples: All examples.
        validation: Fraction for validation, 0 to 1.
        test: Fraction for test, 0 to 1.
        seed: Seed of the split.

    Raises:
        DataError: If a side would be empty.
    """
    keys = examples.groups or examples.content_digests
    names, member = np.unique(np.asarray(keys), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    sizes = np.bincount(member, minlength=len(names))[order]
    reached = np.cumsum(sizes) / len(examples)
    side_of_key = np.empty(len(names), dtype=np.int64)
    # 0: test, 1: validation, 2: train; by cumulated size, so that fractions hold with big groups
    side_of_key[order] = np.searchsorted([test, test + validation], reached - 1e-9)
    sides = [np.flatnonzero(side_of_key[member] == side) for side in (2, 1, 0)]
    for name, side in zip(("train", "validation", "test"), sides, strict=True):
        if len(side) == 0:
            msg = f"{examples.origin}: {len(examples)} examples are too few to split off {name}"
            raise DataError(msg)
    train, valid, held_out = (examples.take(side) for side in sides)
    return train, valid, held_out
