"""What `evaluate` measured in former runs: one JSON line each, in `history.jsonl` of the report.

A line stands under what its numbers depend on: the digests of the artifact, of the baseline and of
the data, the engine, the input shape and the machine. Of equal ones the newest stays.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tcompress.console import Console
from tcompress.digests import document_digest
from tcompress.errors import ArtifactError, ModelError
from tcompress.intake import parse_json
from tcompress.locking import lock_file, locked
from tcompress.staging import write_text_atomically
from tcompress.workspace import reference_to

from .entry import metric_of

HISTORY_FILE = "history.jsonl"
SCHEMA_VERSION = 1
MOST_LINES = 1000
MOST_SHOWN = 100
"""Most points of former runs in one document; a report draws a dozen."""
_ENGINE = ("backend", "device", "precision", "batch", "tokens")
# Details of single examples and classes, and what only holds among the points of one run.
_LEFT_OUT = ("classes", "slices", "lengths", "not_inferior", "pareto")


@dataclass(frozen=True)
class PastPoint:
    """One line of the history.

    Attributes:
        artifact: Digest of what was measured.
        baseline: Digest of what it was compared with.
        data: Digest of the examples.
        machine: CPU, its instruction sets and the threads; on a GPU that too.
        measured: When, UTC, ISO 8601.
        measurement: The entry of the report's `measurements`, without its details.
    """

    artifact: str
    baseline: str
    data: str
    machine: dict[str, Any]
    measured: str
    measurement: dict[str, Any]

    @classmethod
    def from_line(cls, line: str) -> Self:
        """Read a line.

        Args:
            line: The line.

        Raises:
            ValueError: If it is damaged, or of a version that is not known.
        """
        try:
            document = parse_json(line.encode(), "line", error=ArtifactError)
        except ArtifactError as error:
            raise ValueError(str(error)) from error
        if document.pop("schema_version", 0) != SCHEMA_VERSION:
            msg = f"not a line of schema_version {SCHEMA_VERSION}"
            raise ValueError(msg)
        try:
            point = cls(**document)
            _check_types(point)
        except (AttributeError, KeyError, TypeError) as error:
            msg = f"a key is missing or of the wrong type: {error!r}"
            raise ValueError(msg) from error
        return point

    def to_line(self) -> str:
        """Return the line, without its end."""
        return json.dumps({"schema_version": SCHEMA_VERSION} | vars(self), sort_keys=True)

    @property
    def key(self) -> str:
        """Digest of all that the numbers depend on."""
        engine = [self.measurement[name] for name in _ENGINE]
        return document_digest([self.artifact, self.baseline, self.data, self.machine, engine])

    @property
    def is_gone(self) -> bool:
        """Whether the artifact no longer stands where it was measured."""
        try:
            return reference_to(Path(self.measurement["path"])).digest != self.artifact
        except (ArtifactError, ModelError, OSError, ValueError):
            return True

    def shown(self) -> dict[str, Any]:
        """Return it as an entry of the report's `earlier`."""
        return self.measurement | {"pareto": False, "measured": self.measured}


def remember(document: dict[str, Any], path: Path, console: Console) -> list[dict[str, Any]]:
    """Add what was just measured to the history, and return what became of former artifacts.

    Args:
        document: The document of `evaluate`.
        path: The history; created when missing.
        console: Where to warn of lines that cannot be read; they stay in the file.

    Returns:
        The entry of each measurement in the history whose artifact is gone or replaced, newest
        first: of the same baseline, data and machine.

    Raises:
        StorageError: If the file system refuses.
    """
    now = points_of(document)
    with locked(lock_file(path), console.say):
        kept = _kept_with(now, path, console)
    return [point.shown() for point in earlier_points(kept, now)]


def _kept_with(now: list[PastPoint], path: Path, console: Console) -> list[PastPoint]:
    past, damaged = _read(path)
    if damaged:
        console.warn(
            f"{path}: {len(damaged)} damaged lines are skipped, and stay; to be rid of them, "
            "delete them or the file"
        )
    points = {point.key: point for point in (*past, *now)}
    newest = sorted(points.values(), key=lambda point: point.measured)
    kept = newest[-max(MOST_LINES - len(damaged), len(now)) :]
    lines = [*damaged, *(point.to_line() for point in kept)]
    write_text_atomically(path, "".join(f"{line}\n" for line in lines))
    return kept


def points_of(document: dict[str, Any]) -> list[PastPoint]:
    """Return what a document will be remembered by.

    Args:
        document: The document of `evaluate`.
    """
    entries, machine = document["measurements"], document["environment"]
    baseline = next(e["digest"] for e in entries if e["artifact"] == document["baseline"])
    return [
        PastPoint(
            artifact=entry["digest"],
            baseline=baseline,
            data=document["data"]["digest"],
            machine=_machine_class(machine, entry["device"]),
            measured=machine["started"],
            measurement=_condensed(entry),
        )
        for entry in entries
    ]


def earlier_points(past: Iterable[PastPoint], now: Sequence[PastPoint]) -> list[PastPoint]:
    """Return what compares with a run and cannot be measured again, newest first.

    Args:
        past: Points of former runs.
        now: The points of this run.
    """
    settings = {(point.baseline, point.data, document_digest(point.machine)) for point in now}
    present = {point.artifact for point in now}
    found = [
        point
        for point in past
        if point.artifact not in present
        and (point.baseline, point.data, document_digest(point.machine)) in settings
        and point.is_gone
    ]
    return sorted(found, key=lambda point: point.measured, reverse=True)[:MOST_SHOWN]


def _check_types(point: PastPoint) -> None:
    """Raise KeyError or TypeError unless what is read from the point later on has its type."""
    entry = point.measurement
    texts = [point.artifact, point.baseline, point.data, point.measured]
    texts += [entry[name] for name in ("artifact", "path", "stage", *_ENGINE[:3])]
    numbers = [*(entry["speedup"][name] for name in ("value", "low", "high")), entry["size_bytes"]]
    numbers += [entry["latency_ms"]["median"], entry["batch"], entry["tokens"]]
    numbers += entry["metrics"].values()
    for values, kind in ((texts, str), (numbers, int | float), ([point.machine], dict)):
        if wrong := [value for value in values if not isinstance(value, kind)]:
            msg = f"{wrong[0]!r} is out of place"
            raise TypeError(msg)
    if metric_of(entry) not in entry["metrics"] or not all(map(math.isfinite, numbers)):
        msg = "a number is not finite, or the metric that decides is missing"
        raise TypeError(msg)


def _read(path: Path) -> tuple[list[PastPoint], list[str]]:
    """Return the points in a file and its damaged lines; none of either without a file."""
    if not path.is_file():
        return [], []
    points, damaged = [], []
    text = path.read_text(encoding="utf-8", errors="backslashreplace")
    for line in text.split("\n"):
        try:
            points += [PastPoint.from_line(line)] if line else []
        except ValueError:
            damaged.append(line)
    return points, damaged


def _machine_class(environment: dict[str, Any], device: str) -> dict[str, Any]:
    names = ("cpu", "cpu_features", "threads", *(() if device == "cpu" else ("gpu",)))
    return {name: environment[name] for name in names}


def _condensed(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of bounded size, whose path holds from any directory."""
    kept = {name: value for name, value in entry.items() if name not in _LEFT_OUT}
    path = str(Path(entry["path"]).resolve())
    return kept | {"path": path, "latency_ms": entry["latency_ms"] | {"samples": []}}
