"""The file of a recorded baseline: written to be read in a diff, read as if it were hostile."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from tcompress.digests import document_digest, file_digest
from tcompress.errors import DataError, InputError
from tcompress.intake import read_json

SCHEMA_VERSION = 1
KIND = "tcompress-baseline"
MAX_BYTES = 16 * 1024**2
"""Largest file that is read, and written."""
INPUT_DIGITS = 8
"""How much of the digest of an example's input is kept: to name what changed, not to prove it."""

_REMEDY = "record a baseline with `tcompress gate record`"
_DIGITS = 5
_MAX_LOGIT = float(np.finfo(np.float32).max)
_TIMED = ("median_ms", "noise_low", "noise_high")
_DEVICES = ("cpu", "cuda")
_FREE_KEYS = {"tokenizer_config.json": "model_input_names"}
"""What an export may change in a tokenizer file without reading other tokens."""

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Row:
    """The recorded answer to one example.

    Attributes:
        id: The example's id.
        input: The first digits of the digest of its input.
        predicted: Name of the predicted class.
        logits: One per class, rounded.
    """

    id: str
    input: str
    predicted: str
    logits: tuple[float, ...]

    @classmethod
    def of(cls, name: str, content: str, predicted: str, logits: Sequence[float]) -> Self:
        """Round an answer to what is kept of it.

        Args:
            name: The example's id.
            content: Digest of its input.
            predicted: Name of the predicted class.
            logits: One per class.
        """
        rounded = tuple(float(f"{value:.{_DIGITS}g}") for value in logits)
        return cls(name, content[:INPUT_DIGITS], predicted, rounded)


@dataclass(frozen=True)
class Record:
    """What the file says.

    Attributes:
        model: Digest of the model or artifact that answered.
        source: Digest of the unpruned model that it was made from.
        size_bytes: Size of its weights or model file.
        data: Digest of the examples' inputs and labels, in order.
        ids: Digest of their ids, in order.
        labels: Class names, in the order of the logits.
        tokenizer: Digest per tokenizer file; empty for a model of tensors.
        max_tokens: Longest input.
        truncated: How many examples were longer.
        device: `cpu` or `cuda`.
        metrics: Values of the task's metrics.
        cpu: Name, instruction sets and number of usable CPUs.
        versions: Library versions.
        latency: The fields of a `RecordedLatency`, or None.
        rows: The answers, in the order of the examples.
    """

    model: str
    source: str
    size_bytes: int
    data: str
    ids: str
    labels: tuple[str, ...]
    tokenizer: dict[str, str]
    max_tokens: int
    truncated: int
    device: str
    metrics: dict[str, float]
    cpu: dict[str, Any]
    versions: dict[str, str]
    latency: dict[str, Any] | None
    rows: tuple[Row, ...]


def compose(record: Record) -> str:
    """Return the text of the file: indented JSON, but one line per example.

    Args:
        record: What it is to say.

    Raises:
        DataError: If it would be too large to be read again.
    """
    document = asdict(replace(record, rows=()))
    document |= {"schema_version": SCHEMA_VERSION, "kind": KIND}
    rows = [[row.id, row.input, row.predicted, list(row.logits)] for row in record.rows]
    document["rows"] = rows
    document["digest"] = document_digest(document)
    del document["rows"]
    head = json.dumps(document, indent=2, sort_keys=True, allow_nan=False).removesuffix("\n}")
    lines = ",\n".join(f"    {json.dumps(row, allow_nan=False)}" for row in rows)
    text = f'{head},\n  "rows": [\n{lines}\n  ]\n}}\n'
    if len(text) > MAX_BYTES:
        msg = (
            f"a baseline of {len(rows):,} examples and {len(record.labels):,} classes takes "
            f"{len(text):,} bytes, at most {MAX_BYTES:,} are read; record fewer examples"
        )
        raise DataError(msg)
    return text


def parse(path: Path) -> Record:
    """Read a file.

    Args:
        path: The file.

    Raises:
        InputError: If there is none, or it is damaged, changed or of another form.
    """
    if not path.exists():
        msg = f"{path}: no such file; {_REMEDY}"
        raise InputError(msg)
    document = read_json(path, limit_bytes=MAX_BYTES, error=InputError, remedy=_REMEDY)
    try:
        _check_identity(document)
        return _record(document)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        msg = f"{path}: not a recorded baseline that can be read: {reason}; {_REMEDY}"
        raise InputError(msg) from error


def file_digests(directory: Path, names: Sequence[str]) -> dict[str, str]:
    """Return a digest per file that is there; of JSON, what it says counts, not how.

    Args:
        directory: Where the files are.
        names: Names of files that need not be there.
    """
    present = [name for name in names if (directory / name).is_file()]
    found = {name: _file_digest(directory / name) for name in present}
    return {name: digest for name, digest in found.items() if digest != document_digest({})}


def _file_digest(path: Path) -> str:
    try:
        document = json.loads(path.read_bytes())
        document.pop(_FREE_KEYS.get(path.name, ""), None)
    except (ValueError, AttributeError, RecursionError):
        return file_digest(path)
    return document_digest(document)


def _check_identity(document: dict[str, Any]) -> None:
    """Raise unless the document is of this kind, of this version, and as it was written."""
    if document.get("kind") != KIND:
        msg = f"'kind' must be {KIND!r}"
        raise ValueError(msg)
    if document.get("schema_version") != SCHEMA_VERSION:
        msg = (
            f"'schema_version' is {str(document.get('schema_version'))[:20]}, this tcompress "
            f"reads {SCHEMA_VERSION}"
        )
        raise ValueError(msg)
    rest = {name: value for name, value in document.items() if name != "digest"}
    if document.get("digest") != document_digest(rest):
        msg = "it was changed after it was recorded"
        raise ValueError(msg)


def _record(document: dict[str, Any]) -> Record:
    labels = _strings(document, "labels")
    rows = tuple(_row(row, labels) for row in _typed(document, "rows", list))
    names = [row.id for row in rows]
    if not rows or len(set(names)) != len(rows) or document["ids"] != document_digest(names):
        msg = "'rows' must hold at least one example, every id once, and fit 'ids'"
        raise ValueError(msg)
    if len(set(labels)) != len(labels):
        msg = "'labels' must be unique"
        raise ValueError(msg)
    latency = None if document["latency"] is None else _latency(_typed(document, "latency", dict))
    return Record(
        **{name: _typed(document, name, str) for name in ("model", "source", "data", "ids")},
        size_bytes=_positive(document, "size_bytes"),
        labels=labels,
        tokenizer=_mapping(document, "tokenizer", str),
        max_tokens=_count(document, "max_tokens"),
        truncated=_count(document, "truncated"),
        device=_device(document),
        metrics=_metrics(document),
        cpu=_cpu(_typed(document, "cpu", dict)),
        versions=_mapping(document, "versions", str),
        latency=latency,
        rows=rows,
    )


def _row(row: Any, labels: tuple[str, ...]) -> Row:
    if not isinstance(row, list) or len(row) != 4 or not isinstance(row[3], list):
        msg = "a row must be [id, input, predicted, logits]"
        raise TypeError(msg)
    name, content, predicted, numbers = row
    if not (isinstance(name, str) and isinstance(content, str) and predicted in labels):
        msg = "a row's id and input must be strings, its predicted class one of 'labels'"
        raise TypeError(msg)
    logits = _logits(name, numbers, len(labels))
    if logits[labels.index(predicted)] != max(logits):
        msg = f"the logits of {name[:40]!r} do not give the predicted class"
        raise ValueError(msg)
    return Row(name, content, predicted, logits)


def _logits(name: str, numbers: list[Any], classes: int) -> tuple[float, ...]:
    if not all(type(number) in (int, float) for number in numbers) or len(numbers) != classes:
        msg = f"the logits of {name[:40]!r} must be {classes} numbers"
        raise TypeError(msg)
    logits = tuple(float(number) for number in numbers)
    if max(map(abs, logits)) > _MAX_LOGIT:
        msg = f"the logits of {name[:40]!r} are not finite"
        raise ValueError(msg)
    return logits


def _metrics(document: dict[str, Any]) -> dict[str, float]:
    metrics = _mapping(document, "metrics", float)
    if not all(map(math.isfinite, metrics.values())):
        msg = "'metrics' must be finite"
        raise ValueError(msg)
    return metrics


def _latency(found: dict[str, Any]) -> dict[str, Any]:
    fields = {name: _count(found, name) for name in ("n", "batch", "tokens", "threads")}
    values = {name: _typed(found, name, float) for name in _TIMED}
    confidence = _typed(found, "noise_confidence", float)  # 0 of a single round
    positive = all(0 < value < math.inf for value in (*fields.values(), *values.values()))
    if not positive or not 0 <= confidence <= 1:
        msg = "the numbers in 'latency' must be above 0, its confidence from 0 to 1"
        raise ValueError(msg)
    return fields | values | {"noise_confidence": confidence, "device": _device(found)}


def _cpu(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": _typed(found, "name", str),
        "features": _mapping(found, "features", bool),
        "usable": _count(found, "usable"),
    }


def _device(document: dict[str, Any]) -> str:
    device = _typed(document, "device", str)
    if device not in _DEVICES:
        msg = f"'device' must be one of {', '.join(_DEVICES)}, got {device[:20]!r}"
        raise ValueError(msg)
    return device


def _typed(document: dict[str, Any], name: str, kind: type[Kind]) -> Kind:
    value = document[name]
    if type(value) is not kind:
        msg = f"{name!r} must be of type {kind.__name__}, got {type(value).__name__}"
        raise TypeError(msg)
    return value


def _count(document: dict[str, Any], name: str) -> int:
    value = _typed(document, name, int)
    if value < 0:
        msg = f"{name!r} must not be negative, got {value}"
        raise ValueError(msg)
    return value


def _positive(document: dict[str, Any], name: str) -> int:
    if (value := _count(document, name)) == 0:
        msg = f"{name!r} must be above 0"
        raise ValueError(msg)
    return value


def _strings(document: dict[str, Any], name: str) -> tuple[str, ...]:
    values = _typed(document, name, list)
    if not values or not all(isinstance(value, str) for value in values):
        msg = f"{name!r} must be a list of strings"
        raise TypeError(msg)
    return tuple(values)


def _mapping(document: dict[str, Any], name: str, kind: type[Kind]) -> dict[str, Kind]:
    values: dict[str, Any] = _typed(document, name, dict)
    return {key: _typed(values, key, kind) for key in values}
