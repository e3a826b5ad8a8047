"""From the rows of a table to examples, whatever the task."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataError
from .columns import TAG_COLUMNS, Columns
from .examples import Answer, Examples

MAX_IMAGE_BYTES = 256 << 20


def examples_of(origin: str, frame: pd.DataFrame, columns: Columns) -> Examples:
    """Take examples from rows of a table; what its values are tells what they mean.

    Lists of words in the text column are words with one tag each, a label that is a list is a set
    of labels, and answers with their starts belong to a question.

    Args:
        origin: Where the table came from.
        frame: Its rows, indexed by row number.
        columns: The columns that matter.

    Raises:
        DataError: If a column or a value is missing, or does not fit the others.
    """
    columns = _customary(frame, columns)
    _check_columns(origin, frame, columns)
    table = _Table(origin, frame)
    examples = Examples(
        origin=origin,
        ids=table.strings("id") if "id" in frame else tuple(map(str, frame.index)),
        text_pairs=None if columns.text_pair is None else table.strings(columns.text_pair),
        groups=None if columns.group is None else table.strings(columns.group),
        slices={name: _slice_values(frame[name]) for name in columns.slices},
        stride=columns.stride,
    )
    if columns.image is not None:
        images = table.images(columns.image)
        return replace(examples, images=images, **table.labels(columns))
    if _is_list(_first(frame[columns.text])):
        return replace(examples, **table.tagged(columns))
    return replace(examples, texts=table.strings(columns.text), **table.labels(columns))


class _Table:
    """Rows whose values are checked as they are taken; messages count rows from 1."""

    def __init__(self, origin: str, frame: pd.DataFrame) -> None:
        self._origin = origin
        self._frame = frame

    def strings(self, name: str) -> tuple[str, ...]:
        values = self._values(name)
        for i, value in enumerate(values):
            if _is_list(value) or isinstance(value, Mapping | bytes):
                raise self._error(name, i, f"has {shortened(value)}, which is no text or number,")
        return tuple(map(str, values))

    def images(self, name: str) -> tuple[Path, ...]:
        """Find files below the table's directory; nothing else is opened."""
        root = Path(self._origin).resolve().parent
        return tuple(self._image(name, i, root, v) for i, v in enumerate(self.strings(name)))

    def _image(self, name: str, i: int, root: Path, value: str) -> Path:
        try:
            path = (root / value).resolve()
            if not path.is_relative_to(root):
                why = f"names a file outside {root}; put the images below the table's directory"
                raise self._error(name, i, why)
            if not path.is_file():
                raise self._error(name, i, f"names {path}, which is no file")
            if path.stat().st_size > MAX_IMAGE_BYTES:
                raise self._error(name, i, f"names {path}, over {MAX_IMAGE_BYTES:,} bytes")
        except (OSError, ValueError) as error:  # names that no file can have
            raise self._error(name, i, f"names {value[:40]!r}, which is no file") from error
        return path

    def tagged(self, columns: Columns) -> dict[str, Any]:
        words = self._listed(columns.text, "words")
        for i, sentence in enumerate(words):
            if not sentence:
                raise self._error(columns.text, i, "has no word")
        if columns.label not in self._frame:
            return {"words": words}
        values = self._values(columns.label)
        for i, (sentence, value) in enumerate(zip(words, values, strict=True)):
            if not _is_list(value) or len(value) != len(sentence):
                found = f"{len(value)} tags" if _is_list(value) else shortened(value)
                raise self._error(columns.label, i, f"has {found} for {len(sentence)} words")
        return {"words": words, "tags": tuple(tuple(map(str, value)) for value in values)}

    def labels(self, columns: Columns) -> dict[str, Any]:
        if columns.label_columns:
            return {"label_sets": self._flags(columns.label_columns)}
        if columns.label not in self._frame:
            return {}
        first = _first(self._frame[columns.label])
        if _is_answers(first) or columns.label == "answers":
            return {"answers": self._answers(columns)}
        if columns.label_separator is not None:
            return {"label_sets": self._separated(columns.label, columns.label_separator)}
        if _is_list(first):
            return {"label_sets": self._listed(columns.label, "labels")}
        return {"labels": self.strings(columns.label)}

    def _values(self, name: str) -> Sequence[Any]:
        blank = self._frame[name].isna().to_numpy()
        if blank.any():
            raise self._error(name, int(np.flatnonzero(blank)[0]), "has no value")
        return self._frame[name].tolist()

    def _listed(self, name: str, what: str) -> tuple[tuple[str, ...], ...]:
        values = self._values(name)
        for i, value in enumerate(values):
            if not _is_list(value):
                why = f"has {shortened(value)} where other rows have lists of {what}"
                raise self._error(name, i, why)
        return tuple(tuple(map(str, value)) for value in values)

    def _separated(self, name: str, separator: str) -> tuple[tuple[str, ...], ...]:
        parts = (value.split(separator) for value in self.strings(name))
        return tuple(tuple(filter(None, map(str.strip, part))) for part in parts)

    def _flags(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        flags = [
            [self._flag(name, i, v) for i, v in enumerate(self.strings(name))] for name in names
        ]
        rows = zip(*flags, strict=True)
        return tuple(tuple(n for n, held in zip(names, row, strict=True) if held) for row in rows)

    def _flag(self, name: str, i: int, text: str) -> bool:
        known = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
        if (held := known.get(text.strip().lower())) is None:
            raise self._error(name, i, f"has {shortened(text)}, and --label-columns hold 0 or 1")
        return held

    def _answers(self, columns: Columns) -> tuple[tuple[Answer, ...], ...]:
        if columns.text_pair is None:
            msg = f"{self._origin}: answers need their context; name it with --text-pair-column"
            raise DataError(msg)
        rows = zip(self._values(columns.label), self.strings(columns.text_pair), strict=True)
        return tuple(
            tuple(
                self._checked(columns.label, i, context, item)
                for item in self._answer_items(columns.label, i, value)
            )
            for i, (value, context) in enumerate(rows)
        )

    def _checked(self, name: str, i: int, context: str, item: Any) -> Answer:
        if not isinstance(item, Mapping) or "text" not in item:
            raise self._error(
                name, i, f"has {shortened(item)}, and an answer is a text and its start"
            )
        start = item.get("answer_start", item.get("start"))
        if start is None:
            raise self._error(name, i, "has an answer without answer_start")
        try:
            answer = Answer(str(item["text"]), int(start))
        except (TypeError, ValueError, OverflowError) as error:
            why = f"has an answer that starts at {shortened(start)}, which is no whole number,"
            raise self._error(name, i, why) from error
        found = context[answer.start : answer.start + len(answer.text)]
        if answer.start < 0 or found != answer.text or not found:
            said, place = shortened(answer.text), shortened(answer.start)
            why = f"says {said} at {place}, where the context has {shortened(found)}"
            raise self._error(name, i, why)
        return answer

    def _answer_items(self, name: str, i: int, value: Any) -> list[Any]:
        """Return answers one by one, also where they are lists of texts and of starts."""
        if _is_list(value):
            return list(value)
        if not isinstance(value, Mapping) or not _is_list(value.get("text")):
            return [value]
        texts, starts = value["text"], value.get("answer_start", value.get("start"))
        starts = [None] * len(texts) if starts is None else starts
        if not _is_list(starts) or len(starts) != len(texts):
            found = (
                f"{len(starts)} starts" if _is_list(starts) else f"the start {shortened(starts)}"
            )
            raise self._error(name, i, f"has {found} for {len(texts)} texts")
        return [
            {"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)
        ]

    def _error(self, name: str, i: int, why: str) -> DataError:
        return DataError(f"{self._origin}: column {name!r} {why} in row {self._frame.index[i] + 1}")


def _customary(frame: pd.DataFrame, columns: Columns) -> Columns:
    """Name the columns that tables of words and of questions usually have."""
    if columns.image is not None or columns.text != "text" or "text" in frame:
        return columns
    if "image" in frame:
        return replace(columns, image="image")
    label = columns.label
    if "tokens" in frame:
        if label not in frame:
            label = next((name for name in TAG_COLUMNS if name in frame), label)
        return replace(columns, text="tokens", label=label)
    if {"question", "context"} <= set(frame.columns):
        label = label if label in frame else "answers"
        pair = columns.text_pair or "context"
        return replace(columns, text="question", text_pair=pair, label=label)
    return columns


def _check_columns(origin: str, frame: pd.DataFrame, columns: Columns) -> None:
    wanted = (columns.image or columns.text, columns.text_pair, columns.group)
    for name in (*wanted, *columns.label_columns, *columns.slices):
        if name is not None and name not in frame:
            found = ", ".join(frame.attrs["names"])
            msg = f"{origin}: no column {name!r}; it has: {found}"
            raise DataError(msg)


def _slice_values(column: "pd.Series[Any]") -> tuple[str, ...]:
    # Unlike a missing text, a missing property is no reason to refuse the file.
    return tuple(column.astype(object).where(column.notna(), "").map(str))


def _first(column: "pd.Series[Any]") -> Any:
    """Return the first value that is no empty list, where there is one."""
    telling = (value for value in column if not _is_list(value) or len(value))
    return next(telling, column.iloc[0] if len(column) else None)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _is_answers(value: Any) -> bool:
    items = value if _is_list(value) else [value]
    return bool(len(items)) and isinstance(items[0], Mapping)
