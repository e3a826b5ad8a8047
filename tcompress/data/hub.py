"""Data sets by name, through the library `datasets`."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import DataError, MissingExtraError
from ..hub import HUB_PREFIX
from .folders import class_name, folder_splits, read_files
from .tables import CHUNK_ROWS, frame_of


def read_hub(name: str, wanted: Collection[str]) -> Iterator[pd.DataFrame]:
    """Read a split of a data set from the Hugging Face hub, its cache, or a local folder.

    Args:
        name: `hf:NAME`, `hf:NAME/CONFIG`, each with `#SPLIT` where there are several.
        wanted: Names of the columns that are kept.

    Yields:
        Frames of at most `CHUNK_ROWS` rows, class labels by name.

    Raises:
        DataError: If there is no such data set, configuration or split.
        MissingExtraError: If `datasets` is not installed.
    """
    place, _, split = name.removeprefix(HUB_PREFIX).partition("#")
    if place and Path(place).is_dir():
        # `datasets` would follow what its README.md names: other folders, other machines
        splits = folder_splits(name, Path(place))
        yield from read_files(_split(name, splits, split), wanted)
        return
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", f"reading {name}") from error
    table = _split(name, _load(datasets, name, place), split)
    names = table.column_names
    table = table.select_columns([column for column in names if column in wanted])
    naming = _naming(datasets, table.features)
    for start in range(0, len(table), CHUNK_ROWS):
        rows = table.select(range(start, min(start + CHUNK_ROWS, len(table)))).to_list()
        yield frame_of([naming(row) for row in rows], wanted, start, names)


def _load(datasets: Any, name: str, place: str) -> Any:
    """Load all splits; `a/b` is the data set b of a, or else the configuration b of a."""
    try:
        last: Exception | None = None
        for path, config in _readings(place):
            try:
                return datasets.load_dataset(path, config)
            except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError) as error:
                last = last or error
        raise last or ValueError("no name after hf:")
    except Exception as error:  # the library raises many kinds, also of its own dependencies
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        msg = f"{name}: cannot be loaded: {reason}"
        raise DataError(msg) from error


def _readings(place: str) -> list[tuple[str, str | None]]:
    parent, _, last = place.rpartition("/")
    if parent and Path(parent).is_dir():
        msg = f"no folder {place}, and {parent} is one; name a folder of data files"
        raise FileNotFoundError(msg)
    if "/" in parent:
        return [(parent, last)]
    return [(place, None), (parent, last)] if parent else [(place, None)]


def _split(name: str, splits: Any, wanted: str) -> Any:
    if not wanted and len(splits) == 1:
        return next(iter(splits.values()))
    if wanted in splits:
        return splits[wanted]
    what = f"has no split {wanted!r}" if wanted else "has several splits"
    plain = name.partition("#")[0]
    msg = (
        f"{name}: {what}; name one of {', '.join(splits)}, as in {plain}#{next(iter(splits))}, "
        "or one for each of --train, --validation and --test"
    )
    raise DataError(msg)


def _naming(datasets: Any, features: Any) -> Any:
    """Return a function that puts names in the place of a row's class numbers."""
    named = {column: kind for column, feature in features.items() if (kind := _classes(feature))}

    def naming(row: dict[str, Any]) -> dict[str, Any]:
        return {
            column: class_name(value, named[column].names) if column in named else value
            for column, value in row.items()
        }

    return naming


def _classes(feature: Any) -> Any:
    """Return the class labels of a column, also of one of lists, or None."""
    inner = getattr(feature, "feature", feature)
    return inner if hasattr(inner, "names") else None
