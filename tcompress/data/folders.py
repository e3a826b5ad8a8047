"""Data sets in a local folder: its own files only, whatever its README.md names."""

import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import DataError, MissingExtraError
from ..intake import checked_file, parse_json
from .documents import read_json
from .streams import UNREADABLE, content_suffix
from .tables import TABLE_SUFFIXES, read_frames

Naming = Callable[[str, Any], Any]
MAX_BYTES = 1 << 40
MAX_FILES = 10_000
_SUFFIXES = (*TABLE_SUFFIXES, ".json")
# files that describe a set beside its data
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_SHARD = re.compile(r"(?:.*/)?(\w+)-\d{5}-of-\d{5}\.\w+")
_SPLIT_WORDS = {
    "train": "train|training",
    "validation": "validation|valid|dev|val",
    "test": "test|testing|eval|evaluation",
}


def folder_splits(name: str, folder: Path) -> dict[str, list[Path]]:
    """Return the data files of a folder by split, as their names or folders say.

    Args:
        name: What the user typed, for messages.
        folder: The folder.

    Raises:
        DataError: If it has no data files, or one that leads out of it.
    """
    names = _data_names(name, folder)
    told = {file: split for file in names if (split := _split_of(file))}
    told = told or dict.fromkeys(names, "train")
    order = [split for split in _SPLIT_WORDS if split in told.values()]
    splits: dict[str, list[Path]] = {split: [] for split in order}
    for file, split in told.items():
        path = checked_file(
            folder, file, limit_bytes=MAX_BYTES, error=DataError, remedy="name another folder"
        )
        splits.setdefault(split, []).append(path)
    return splits


def read_files(paths: list[Path], wanted: Collection[str]) -> Iterator[pd.DataFrame]:
    """Read files one after the other, class labels by name.

    Args:
        paths: The files of a split.
        wanted: Names of the columns that are kept.

    Yields:
        Frames, whose index counts the rows of all files from 0.

    Raises:
        DataError: If one cannot be read.
        MissingExtraError: If Parquet support is not installed.
    """
    start = 0
    for path in paths:
        kind = content_suffix(path)
        classes = _classes(path) if kind == ".parquet" else {}
        for frame in (read_json if kind == ".json" else read_frames)(path, wanted):
            for column in classes.keys() & set(frame.columns):
                frame[column] = _named(path, frame[column], classes[column])
            frame.index = pd.RangeIndex(start, start + len(frame))
            start += len(frame)
            yield frame


def class_name(value: Any, names: list[str]) -> Any:
    """Put names in the place of class numbers, also in lists of them.

    Args:
        value: A number, None, or a list.
        names: Names of the classes.
    """
    if isinstance(value, list):
        return [class_name(item, names) for item in value]
    # hidden labels of test splits are -1
    return None if value is None or value < 0 else names[value]


def _data_names(name: str, folder: Path) -> list[str]:
    places = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir())
    names = [
        place.as_posix()
        for place in places
        if content_suffix(place) in _SUFFIXES
        and place.name not in _DESCRIPTIONS
        and not any(part.startswith((".", "__")) for part in place.parts)
    ]
    if not names or len(names) > MAX_FILES:
        found = f"{len(names):,} data files, at most {MAX_FILES:,}" if names else "no data files"
        msg = f"{name}: {found} in {folder}; name a folder of {', '.join(_SUFFIXES)}"
        raise DataError(msg)
    return names


def _split_of(file: str) -> str | None:
    """Return the split that a file's path names: a word of it, or all before `-00000-of-00001`."""
    if shard := _SHARD.fullmatch(file):
        return shard[1]
    for split, words in _SPLIT_WORDS.items():
        if re.search(rf"(?<![a-z])({words})(?![a-z])", file.lower()):
            return split
    return None


def _classes(path: Path) -> dict[str, list[str]]:
    """Return the names of classes by column, as `datasets` writes them into a file's schema."""
    try:
        from .parquet import schema_note
    except ImportError as error:
        raise MissingExtraError("parquet", "reading Parquet files") from error
    try:
        note = schema_note(path, b"huggingface")
    except UNREADABLE as error:
        msg = f"{path}: cannot be read as parquet: {str(error).partition(chr(10))[0]}"
        raise DataError(msg) from error
    if note is None:
        return {}
    document = parse_json(note, f"{path}: its schema", error=DataError, remedy="write it again")
    try:
        features = document["info"]["features"].items()
        found = {column: _names_of(feature) for column, feature in features}
    except (KeyError, TypeError, AttributeError) as error:
        msg = f"{path}: its schema does not describe columns as `datasets` does; write it again"
        raise DataError(msg) from error
    return {column: names for column, names in found.items() if names}


def _names_of(feature: Any) -> list[str]:
    inner = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
    return [str(name) for name in inner.get("names") or ()] if isinstance(inner, dict) else []


def _named(path: Path, column: "pd.Series[Any]", names: list[str]) -> list[Any]:
    try:
        return [class_name(value, names) for value in column]
    except (IndexError, TypeError) as error:
        msg = (
            f"{path}: column {column.name!r} holds a class that its schema does not name, "
            f"of {len(names)}; write the file again"
        )
        raise DataError(msg) from error
