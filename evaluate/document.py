"""The report as one JSON document."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from tcompress.console import Console
from tcompress.data import Examples
from tcompress.errors import ArtifactError, StorageError
from tcompress.intake import read_json
from tcompress.machine import describe_machine

from .conditions import CpuClock, read_conditions
from .measurement import CONFIDENCE, Measurement, SpeedVerdict, Subject
from .pareto import Point, pareto_front
from .slices import slice_notes
from .task_quality import is_labelled
from .tradeoff import NoiseFloor, Settings, measure_tradeoff

SCHEMA_VERSION = 1


def measure_document(
    baseline: Subject,
    candidates: Sequence[Subject],
    examples: Examples,
    settings: Settings,
    console: Console,
    *,
    margin: float,
    split: str | None = None,
    gpu: str | None = None,
    scores_file: Path | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure, and put the result into the form that the report and other programs read.

    Args:
        baseline: What the others are compared with.
        candidates: What is compared with it.
        examples: The examples that accuracy is measured on.
        settings: How to measure.
        console: Where to show the progress.
        margin: Smallest drop in the deciding metric that is not acceptable.
        split: The workspace's split that the examples are; None where they were named.
        gpu: Why no GPU is measured; None where one is.
        scores_file: What `score` wrote, or None.
        notes: Lines that come before those of the measuring itself.

    Raises:
        TcompressError: If an artifact cannot be opened, does not fit the examples, or breaks.
    """
    started, load, clock = datetime.now(UTC).isoformat(), list(psutil.getloadavg()), CpuClock.read()
    tradeoff = measure_tradeoff(baseline, candidates, examples, settings, console)
    if tradeoff.truncated:
        console.warn(
            f"{tradeoff.truncated} of {len(examples)} examples are longer than the model's "
            "positions and were cut off there"
        )
    measured = tradeoff.measurements
    return {
        "schema_version": SCHEMA_VERSION,
        "baseline": baseline.name,
        "margin": margin,
        "environment": describe_machine()
        | {
            "threads": measured[0].engine.threads,
            "load_before": load,
            "load_after": list(psutil.getloadavg()),
            "started": started,
            "conditions": read_conditions(clock, tradeoff.foreign_load, gpu=tradeoff.gpu).to_json(),
            **_noise(tradeoff.noise),
        },
        "data": {
            "origin": examples.origin,
            "split": split,
            "examples": len(examples),
            "task": measured[0].engine.task,
            "labelled": is_labelled(measured[0].engine.task, examples),
            "digest": examples.digest,
            "truncated": tradeoff.truncated,
        },
        "gpu": gpu,
        "measurements": _judged(measured, baseline, margin),
        "mixes": list(tradeoff.mixes),
        "operators": list(tradeoff.operators),
        "heads": None if scores_file is None else head_map(scores_file, measured),
        "flipped": _flipped(measured),
        "earlier": [],
        "notes": [*notes, *slice_notes(examples), *tradeoff.notes],
    }


def head_map(scores_file: Path, measurements: Sequence[Measurement]) -> dict[str, Any] | None:
    """Return the importance of every head and which heads the most compressed artifact keeps.

    Args:
        scores_file: What `score` wrote.
        measurements: What was measured.

    Returns:
        Criterion, scores and kept heads per layer; None where there are no scores that fit.
    """
    try:
        document = read_json(scores_file, error=ArtifactError)
        criterion = str(document["criterion"])
        scores = [[float(value) for value in layer] for layer in document["heads"]]
    except (ArtifactError, StorageError, ValueError, KeyError, TypeError):
        return None  # never scored, or by another version: the report does without
    plan = min(measurements, key=lambda m: math.inf if m.macs is None else m.macs).plan
    if tuple(len(layer) for layer in scores) != plan.source_heads:
        return None
    kept = [list(layer.heads) for layer in plan.layers]
    return {"criterion": criterion, "scores": scores, "kept": kept}


def _judged(
    measurements: Sequence[Measurement], baseline: Subject, margin: float
) -> list[dict[str, Any]]:
    """Return the entries, each with its standing among those of the same device and shape."""
    settings: dict[tuple[str, int, int], list[Measurement]] = {}
    for measurement in measurements:
        setting = (measurement.engine.device, measurement.batch, measurement.tokens)
        settings.setdefault(setting, []).append(measurement)
    entries = []
    for together in settings.values():
        points = [_point(measurement, baseline) for measurement in together]
        front = pareto_front(points, margin)
        entries += [
            measurement.to_json() | {"not_inferior": point.not_inferior(margin), "pareto": best}
            for measurement, point, best in zip(together, points, front, strict=True)
        ]
    return entries


def _point(measurement: Measurement, baseline: Subject) -> Point:
    subject, quality = measurement.subject, measurement.quality
    return Point(
        latency_ms=measurement.latency.median_ms,
        quality=quality.metrics[quality.main],
        drop_upper=None if quality.drop_interval is None else quality.drop_interval.high,
        is_faster=measurement.speedup.verdict is SpeedVerdict.FASTER,
        is_baseline=(subject.name, measurement.precision) == (baseline.name, baseline.precision),
        is_stale=subject.stale,
    )


def _flipped(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Return what flipped in each artifact, as measured first: at one shape, on one device."""
    first: dict[str, Measurement] = {}
    for measurement in measurements:
        first.setdefault(measurement.subject.name, measurement)
    return [
        {"artifact": name} | asdict(flip)
        for name, measurement in first.items()
        for flip in measurement.quality.flipped
    ]


def _noise(floors: Sequence[NoiseFloor]) -> dict[str, Any]:
    """Return every noise floor, and one that is not known, or else the widest, to quote."""

    def doubt(floor: NoiseFloor) -> tuple[bool, float]:
        return floor.speedup.interval.confidence < CONFIDENCE, floor.speedup.half_width

    widest = max(floors, key=doubt)
    return {
        "noise_floor": widest.speedup.to_json(),
        "noise_floors": [floor.to_json() for floor in floors],
    }
