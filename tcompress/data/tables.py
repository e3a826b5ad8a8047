"""Tables of any size, as frames of a bounded number of rows."""

import csv
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import DataError, MissingExtraError
from ..intake import parse_json
from .streams import ALWAYS_BYTES, UNREADABLE, content_suffix, open_bytes, open_text

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
CHUNK_ROWS = 20_000
MAX_VALUES = 2_000_000
"""Lists and objects that are parsed at once; an empty one takes 30 times its bytes."""
_SHOWN_NAMES = 20
# UTF-8 holds no such character; a quote that never closes takes it in
_END = "\udcff"


def read_frames(path: Path, wanted: Collection[str]) -> Iterator[pd.DataFrame]:
    """Read a table in chunks; its index counts the rows of the file from 0.

    Args:
        path: The file; CSV, TSV and JSONL also compressed, see `open_bytes`.
        wanted: Names of the columns that are kept.

    Yields:
        Frames of at most `CHUNK_ROWS` rows, whose `attrs["names"]` are columns of the file.

    Raises:
        DataError: If it cannot be read.
        MissingExtraError: If Parquet support is not installed.
    """
    kind = content_suffix(path)
    try:
        if kind == ".jsonl":
            yield from _json_lines(path, wanted)
        elif kind == ".parquet":
            from .parquet import read_parquet

            yield from read_parquet(path, wanted, CHUNK_ROWS)
        else:
            yield from _separated(path, "\t" if kind == ".tsv" else ",", wanted)
    except ImportError as error:
        raise MissingExtraError("parquet", "reading Parquet files") from error
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        msg = f"{path}: cannot be read as {kind[1:]}: {reason}"
        raise DataError(msg) from error


def frame_of(
    records: Sequence[Mapping[str, Any]],
    wanted: Collection[str],
    start: int = 0,
    names: Iterable[str] = (),
) -> pd.DataFrame:
    """Make a frame of records whose values stay as they are.

    Args:
        records: Values by column name.
        wanted: Names of the columns that are kept: a cell for each name of any record would be
            the square of the file.
        start: Row number of the first.
        names: Columns of the file, where records do not have them all.
    """
    found = dict.fromkeys(chain(names, (name for record in records for name in record)))
    columns = {
        # one by one: a column of equally long lists would become a matrix
        name: pd.Series([record.get(name) for record in records], dtype=object)
        for name in found
        if name in wanted
    }
    frame = pd.DataFrame(columns)
    frame.index = pd.RangeIndex(start, start + len(frame))
    more = [f"and {len(found) - _SHOWN_NAMES:,} more"] if len(found) > _SHOWN_NAMES else []
    frame.attrs["names"] = [*map(str, islice(found, _SHOWN_NAMES)), *more]
    return frame


def parse_values(raw: bytes, origin: str, expected: type = dict) -> Any:
    """Parse JSON of so many lists and objects as memory and patience are for.

    Args:
        raw: The document.
        origin: Where it is from, for messages.
        expected: Type of its value.

    Raises:
        DataError: If it has too many of them, or is not such a document.
    """
    count = raw.count(b"[") + raw.count(b"{")
    if count > MAX_VALUES:
        msg = (
            f"{origin}: {count:,} lists and objects, at most {MAX_VALUES:,} are read at once; "
            "split it, or write one record a line into a .jsonl file"
        )
        raise DataError(msg)
    return parse_json(raw, origin, error=DataError, expected=expected, remedy="correct it")


def check_names(path: Path, names: Sequence[str]) -> None:
    """Refuse columns of the same name.

    Args:
        path: The file.
        names: Names of those of its columns that are read.

    Raises:
        DataError: If two are equal.
    """
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        msg = f"{path}: two columns have the name {twice!r}; rename one of them"
        raise DataError(msg)


def _json_lines(path: Path, wanted: Collection[str]) -> Iterator[pd.DataFrame]:
    names: dict[str, None] = {}

    def record(line: bytes, number: int) -> dict[str, Any]:
        whole = parse_values(line, f"{path}: line {number}")
        if len(names) <= _SHOWN_NAMES:
            names.update(dict.fromkeys(whole))
        return {name: value for name, value in whole.items() if name in wanted}

    with open_bytes(path) as stream:
        records = (record(line, i) for i, line in enumerate(stream, 1) if line.strip())
        yield from _frames(records, wanted, names)


def _separated(path: Path, separator: str, wanted: Collection[str]) -> Iterator[pd.DataFrame]:
    with open_text(path, newline="", encoding="utf-8-sig") as stream:
        rows = _rows(stream, separator)
        head = next(rows, None)
        if head is None:
            msg = f"{path}: the file is empty"
            raise DataError(msg)
        yield from _frames(_cells(path, head, rows, wanted), wanted, head)


def _frames(
    records: Iterator[dict[str, Any]], wanted: Collection[str], names: Collection[str]
) -> Iterator[pd.DataFrame]:
    start = 0
    while chunk := list(islice(records, CHUNK_ROWS)):
        yield frame_of(chunk, wanted, start, names)
        start += len(chunk)


def _rows(stream: Iterable[str], separator: str) -> Iterator[list[str]]:
    """Yield the rows that are not blank."""
    reader = csv.reader(chain(stream, [_END]), delimiter=separator)
    while (row := _next_row(reader)) != [_END]:
        if row and row[-1].endswith(_END):
            msg = f"a quote opens and never closes: {row[-1][:40].rstrip(_END)!r}"
            raise ValueError(msg)
        if row and not (len(row) == 1 and row[0].isspace()):
            yield row


def _next_row(reader: Iterator[list[str]]) -> list[str]:
    """Read a row; the limit of its cells is one of the whole process, and meant for short ones."""
    before = csv.field_size_limit(ALWAYS_BYTES)
    try:
        return next(reader)
    finally:
        csv.field_size_limit(before)


def _cells(
    path: Path, head: list[str], rows: Iterable[list[str]], wanted: Collection[str]
) -> Iterator[dict[str, Any]]:
    """Yield the wanted cells by name, of rows as long as the head."""
    places = {name: i for i, name in enumerate(head) if name in wanted}
    check_names(path, [name for name in head if name in places])
    for number, row in enumerate(rows, 1):
        if len(row) != len(head):
            msg = (
                f"{path}: row {number} has {len(row)} cells, the head has {len(head)}; put a cell "
                "that holds a separator or the end of a line in quotes"
            )
            raise DataError(msg)
        yield {name: row[i] for name, i in places.items()}
