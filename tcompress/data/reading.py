"""Reading examples from a file, all of them or a sample."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..hub import is_hub_name
from .columns import Columns
from .documents import CONLL_SUFFIXES, read_conll, read_json
from .examples import SMALL, Examples, join_examples, smallest
from .hub import read_hub
from .rows import examples_of
from .streams import COMPRESSIONS, content_suffix
from .tables import TABLE_SUFFIXES, read_frames
from .tensors import TENSOR_SUFFIXES, read_tensors

_SUFFIXES = (*TABLE_SUFFIXES, ".json", *CONLL_SUFFIXES, *TENSOR_SUFFIXES)
_PACKED = (".csv", ".tsv", ".jsonl", ".json", *CONLL_SUFFIXES)


def read_examples(
    path: Path | str,
    columns: Columns,
    limit: int | None = None,
    seed: int = 0,
    avoid: frozenset[str] = frozenset(),
) -> Examples:
    """Read examples; the file's suffix tells the format.

    Of a table or CoNLL file, the sample of `limit` examples is drawn while it is read, and no more
    is held than the sample, or `SMALL` examples, and a chunk of rows. It is what `Examples.sample`
    draws from the whole file.

    Args:
        path: CSV, TSV, JSONL or Parquet; a JSON list or SQuAD's JSON; CoNLL columns; NPZ or
            safetensors with arrays `inputs`, `labels` and optionally `mask`; `hf:NAME` for a data
            set of the Hugging Face hub.
        columns: Column names and how to read them; of tensors only slices and label map count.
        limit: How many examples at most, or None for all.
        seed: Seed of the draw.
        avoid: Content digests of examples to leave out.

    Raises:
        DataError: If the file is missing, empty, of unknown form or lacks a column.
        MissingExtraError: If a library for the format is not installed.
    """
    parts = (part.avoiding(avoid) for part in _parts(path, columns))
    examples = _all_of(parts) if limit is None else _sample_of(parts, limit, seed)
    if examples is None or len(examples) == 0:
        left = " that do not belong to a later split" if avoid else ""
        msg = f"{path}: no examples in it{left}"
        raise DataError(msg)
    return examples.renamed(columns.label_map) if columns.label_map else examples


def read_digests(path: Path | str, columns: Columns) -> frozenset[str]:
    """Return the content digests of a file's examples, without holding the examples.

    Args:
        path: See `read_examples`.
        columns: Likewise.
    """
    return frozenset(digest for part in _parts(path, columns) for digest in part.content_digests)


def _parts(path: Path | str, columns: Columns) -> Iterator[Examples]:
    """Yield the examples in chunks."""
    if is_hub_name(path):
        frames = read_hub(str(path), columns.readable)
        yield from (examples_of(str(path), frame, columns) for frame in frames)
        return
    path = Path(path)
    kind = _kind(path)
    if kind in TENSOR_SUFFIXES:
        yield read_tensors(path, kind, columns.slices)
    elif kind in CONLL_SUFFIXES:
        yield from read_conll(path, columns)
    else:
        read = read_json if kind == ".json" else read_frames
        frames = read(path, columns.readable)
        yield from (examples_of(str(path), frame, columns) for frame in frames)


def _kind(path: Path) -> str:
    if not path.is_file():
        msg = f"{path}: no such data file"
        raise DataError(msg)
    kind = content_suffix(path)
    unpacked = path.suffix.lower() == kind
    if kind not in _SUFFIXES or not (unpacked or kind in _PACKED):
        msg = (
            f"{path}: unknown data format; the name must end in one of {', '.join(_SUFFIXES)}; "
            f"{', '.join(_PACKED)} also with {', '.join(COMPRESSIONS)} behind it"
        )
        raise DataError(msg)
    return kind


def _all_of(parts: Iterable[Examples]) -> Examples | None:
    held = [part for part in parts if len(part)]
    return join_examples(held) if held else None


def _sample_of(parts: Iterable[Examples], limit: int, seed: int) -> Examples | None:
    """Draw what `Examples.sample` draws from all parts, holding no more than it needs."""
    rng = np.random.default_rng(seed)
    keys = np.empty(0)
    held: Examples | None = None
    seen = 0
    for part in filter(len, parts):
        keys = np.concatenate([keys, rng.random(len(part))])
        held = part if held is None else join_examples([held, part])
        seen += len(part)
        if seen > SMALL and len(held) > limit:
            kept = smallest(keys, limit)
            held, keys = held.take(kept), keys[kept]
    return held.sample(limit, seed) if held is not None and seen <= SMALL else held
