"""Parquet, where a few bytes may stand for a long text in each of many rows."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pyarrow as pa
from pyarrow import compute, parquet

from ..errors import DataError
from .streams import ALWAYS_BYTES, MAX_RATIO, limit_bytes
from .tables import check_names, frame_of

_VALUE_BYTES = 8


def read_parquet(path: Path, wanted: Collection[str], chunk_rows: int) -> Iterator[pd.DataFrame]:
    """Read a Parquet file in chunks; columns that are not wanted are never decoded.

    Args:
        path: The file.
        wanted: Names of the columns that are kept.
        chunk_rows: Rows of a frame at most.

    Yields:
        Frames of at most so many rows, whose index counts the rows of the file from 0.

    Raises:
        DataError: If its rows take far more room than the file.
        ValueError: If the file is damaged.
    """
    try:
        with path.open("rb") as stream:  # of a path, pyarrow may make a URL
            yield from _frames(path, stream, wanted, chunk_rows)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error


def schema_note(path: Path, key: bytes) -> bytes | None:
    """Return what a library wrote about the columns into a file's schema, or None.

    Args:
        path: The file.
        key: Name of the note.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        with path.open("rb") as stream:
            notes: dict[bytes, bytes] = parquet.read_schema(stream).metadata or {}
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    return notes.get(key)


def _frames(
    path: Path, stream: IO[bytes], wanted: Collection[str], chunk_rows: int
) -> Iterator[pd.DataFrame]:
    table = parquet.ParquetFile(stream)
    names = table.schema_arrow.names
    kept = [name for name in names if name in wanted]
    check_names(path, kept)
    leaves = _leaves(table, kept)
    _check_size(path, sum(_described_bytes(table, i) for i in leaves))
    columns = [table.schema.column(i) for i in leaves]
    texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    # texts stay numbers of a dictionary until it is known how long they are
    coded = parquet.ParquetFile(stream, metadata=table.metadata, read_dictionary=texts)
    start = size_bytes = 0
    yield frame_of([], wanted, names=names)
    for batch in coded.iter_batches(chunk_rows, columns=kept) if kept else ():
        size_bytes += _batch_bytes(batch)
        _check_size(path, size_bytes)
        for piece in _pieces(batch):
            yield frame_of(piece.to_pylist(), wanted, start, names)
            start += piece.num_rows


def _leaves(table: Any, kept: list[str]) -> list[int]:
    """Return which columns of the file hold the kept ones, of which lists and records have some."""
    paths = [table.schema.column(i).path for i in range(len(table.schema))]
    heads = tuple(f"{name}." for name in kept)
    return [i for i, path in enumerate(paths) if f"{path}.".startswith(heads)]


def _described_bytes(table: Any, leaf: int) -> int:
    """Return what the file says that a column takes when it is read."""
    width = max(_VALUE_BYTES, table.schema.column(leaf).length)
    groups = (table.metadata.row_group(i) for i in range(table.metadata.num_row_groups))
    chunks = [group.column(leaf) for group in groups]
    return sum(max(chunk.total_uncompressed_size, width * chunk.num_values) for chunk in chunks)


def _check_size(path: Path, size_bytes: int) -> None:
    if size_bytes > (limit := limit_bytes(path)):
        msg = (
            f"{path}: its rows take over {limit:,} bytes, {MAX_RATIO} times its size; "
            "split it, or write it as .jsonl"
        )
        raise DataError(msg)


def _pieces(batch: Any) -> Iterator[Any]:
    """Halve a batch until memory has room for its texts."""
    if batch.num_rows < 2 or _batch_bytes(batch) <= ALWAYS_BYTES:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _pieces(batch.slice(0, half))
    yield from _pieces(batch.slice(half))


def _batch_bytes(batch: Any) -> int:
    return sum(_array_bytes(column) for column in batch.columns)


def _array_bytes(array: Any) -> int:
    """Return what an array takes with its texts written out."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = compute.binary_length(array.dictionary).take(array.indices)
        return _VALUE_BYTES * len(array) + (compute.sum(lengths).as_py() or 0)
    if pa.types.is_struct(kind):
        return sum(map(_array_bytes, array.flatten()))
    if pa.types.is_map(kind):
        return _array_bytes(array.keys) + _array_bytes(array.items)
    if pa.types.is_nested(kind):
        return _VALUE_BYTES * len(array) + _array_bytes(array.flatten())
    return int(array.nbytes)
