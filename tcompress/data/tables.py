"""Tables of any size, as frames of a bounded number of rows."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import DataError, MissingExtraError
from ..intake import parse_json
from .streams import UNREADABLE, is_bounded, open_bytes

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
CHUNK_ROWS = 20_000


def read_frames(path: Path, kind: str) -> Iterator[pd.DataFrame]:
    """Read a table in chunks; its index counts the rows of the file from 0.

    Args:
        path: The file; CSV, TSV and JSONL also compressed, see `open_bytes`.
        kind: Its suffix, without that of the compression.

    Yields:
        Frames of at most `CHUNK_ROWS` rows.

    Raises:
        DataError: If it cannot be read.
        MissingExtraError: If Parquet support is not installed.
    """
    try:
        if kind == ".jsonl":
            yield from _json_lines(path)
        elif kind == ".parquet":
            yield from _parquet(path)
        else:
            yield from _separated(path, kind)
    except ImportError as error:
        raise MissingExtraError("parquet", "reading Parquet files") from error
    except pd.errors.EmptyDataError as error:
        msg = f"{path}: the file is empty"
        raise DataError(msg) from error
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        msg = f"{path}: cannot be read as {kind[1:]}: {reason}"
        raise DataError(msg) from error


def frame_of(records: list[dict[str, Any]], start: int = 0) -> pd.DataFrame:
    """Make a frame of records whose values stay as they are.

    Args:
        records: Values by column name.
        start: Row number of the first.
    """
    names = dict.fromkeys(name for record in records for name in record)
    columns = {
        # one by one: a column of equally long lists would become a matrix
        name: pd.Series([record.get(name) for record in records], dtype=object)
        for name in names
    }
    frame = pd.DataFrame(columns)
    frame.index = pd.RangeIndex(start, start + len(frame))
    return frame


def _json_lines(path: Path) -> Iterator[pd.DataFrame]:
    with open_bytes(path) as stream:
        records = (_record(path, line, i) for i, line in enumerate(stream, 1) if line.strip())
        start = 0
        while chunk := list(islice(records, CHUNK_ROWS)):
            yield frame_of(chunk, start)
            start += len(chunk)


def _record(path: Path, line: bytes, number: int) -> dict[str, Any]:
    record: dict[str, Any] = parse_json(
        line, f"{path}: line {number}", error=DataError, remedy="correct the line"
    )
    return record


def _separated(path: Path, kind: str) -> Iterator[pd.DataFrame]:
    with ExitStack() as stack:
        yield from pd.read_csv(
            stack.enter_context(open_bytes(path)) if is_bounded(path, kind) else path,
            sep="\t" if kind == ".tsv" else ",",
            dtype=str,
            keep_default_na=False,
            encoding="utf-8",
            chunksize=CHUNK_ROWS,
        )


def _parquet(path: Path) -> Iterator[pd.DataFrame]:
    from pyarrow import parquet

    start = 0
    with parquet.ParquetFile(path) as table:
        for batch in table.iter_batches(CHUNK_ROWS):
            yield frame_of(batch.to_pylist(), start)
            start += batch.num_rows
