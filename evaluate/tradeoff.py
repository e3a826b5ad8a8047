"""Accuracy against latency: every artifact on its own engine, beside the source model."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tcompress.artifact import ENCODER_KIND
from tcompress.console import Console
from tcompress.data import Examples
from tcompress.plan import CompressionPlan

from .accuracy import Predictions, Watch, predict
from .answers import AnswerBook, Question
from .engine_info import EngineInfo
from .engine_process import EngineProcess
from .latency import FEWEST_ROUNDS, Race, race
from .measurement import Latency, Measurement, Speedup, Subject
from .quality import Quality, judge

_CONTROL = "the baseline again"
_USUAL_TOKENS = 128
_GPU_FORMATS = ("fp32", "bf16")
# Load by other programs from which on a report warns, and how long to listen for it.
_FOREIGN_LOAD = 0.15
_LISTEN_S = 0.5


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        devices: `cpu`, `cuda` or both, in the order to measure.
        batches: Examples per call; each is measured with each of `tokens`.
        tokens: Tokens per example; None for 128, or the longest example of tensor data.
        budget_s: Time for all latencies together.
        threads: Threads of every engine on the CPU; None for all CPUs that may be used.
        seed: Seed of inputs, orders and bootstraps.
        answers: Directory to keep every answer in.
    """

    answers: Path
    devices: tuple[str, ...] = ("cpu",)
    batches: tuple[int, ...] = (1,)
    tokens: tuple[int, ...] | None = None
    budget_s: float = 12.0
    threads: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class NoiseFloor:
    """Speed-up of the baseline over itself in a second process: what noise alone shows.

    Attributes:
        device: `cpu` or `cuda`.
        batch: Examples per call.
        tokens: Tokens per example.
        speedup: Would be exactly 1 without noise.
    """

    device: str
    batch: int
    tokens: int
    speedup: Speedup

    def to_json(self) -> dict[str, Any]:
        """Return device, shape and the speed-up's numbers, side by side."""
        shape = {"device": self.device, "batch": self.batch, "tokens": self.tokens}
        return shape | self.speedup.to_json()


@dataclass(frozen=True)
class Tradeoff:
    """What was measured.

    Attributes:
        measurements: One per artifact, engine and input shape.
        noise: One per device and input shape.
        truncated: How many examples were longer than the source model's positions.
        notes: What a reader should know, one line each.
    """

    measurements: tuple[Measurement, ...]
    noise: tuple[NoiseFloor, ...]
    truncated: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Entrant:
    """A subject in one number format: what an engine is opened for.

    Attributes:
        subject: The artifact.
        precision: Number format on the device.
        device: `cpu` or `cuda`.
    """

    subject: Subject
    precision: str
    device: str

    @property
    def key(self) -> str:
        """Name that no other entrant on the device has."""
        return f"{self.subject.name} ({self.precision})"


@dataclass(frozen=True)
class _Answered:
    """What is known of an entrant before its latency."""

    entrant: Entrant
    info: EngineInfo
    predictions: Predictions
    quality: Quality
    memory_peak_bytes: int


def measure_tradeoff(
    baseline: Subject,
    candidates: Sequence[Subject],
    examples: Examples,
    settings: Settings,
    console: Console,
) -> Tradeoff:
    """Measure candidates beside the baseline, on each device.

    Args:
        baseline: The source model, in fp32.
        candidates: What is compared with it.
        examples: The examples that accuracy is measured on.
        settings: How to measure.
        console: Where to show the progress.

    Raises:
        TcompressError: If an artifact cannot be opened, does not fit the examples, or breaks.
    """
    measured, noise, notes, truncated = [], [], [], 0
    book = AnswerBook(settings.answers)
    for device in settings.devices:
        entrants, left_out = enter(device, baseline, candidates)
        if left_out:
            notes.append(f"measured on the CPU only: {', '.join(left_out)}")
        with _engines(entrants, settings, console) as (engines, control):
            shapes = _shapes(settings, examples, engines[0].info.max_tokens)
            for engine in engines:
                engine.fix(*shapes[0], seed=settings.seed)
            answered = _ask(entrants, engines, examples, book, console)
            truncated = answered[0].predictions.truncated
            for shape in shapes:
                load = _foreign_load()
                result = _time(answered, (*engines, control), shape, settings, console, len(shapes))
                measured += [_measurement(item, answered[0], result, shape) for item in answered]
                noise.append(NoiseFloor(device, *shape, result.speedups[_CONTROL]))
                notes += _doubts(device, shape, result, load)
    return Tradeoff(tuple(measured), tuple(noise), truncated, tuple(notes))


def enter(
    device: str, baseline: Subject, candidates: Sequence[Subject]
) -> tuple[list[Entrant], list[str]]:
    """List what runs on a device, the baseline in fp32 first.

    Exported files and int8 run on the CPU only; on a GPU, each fp32 encoder also runs in bf16.

    Args:
        device: `cpu` or `cuda`.
        baseline: The source model.
        candidates: What is compared with it.

    Returns:
        The entrants, and the names of those that cannot run there.
    """
    subjects = (baseline, *candidates)
    if device == "cpu":
        return [Entrant(subject, subject.precision, device) for subject in subjects], []
    fitting = [subject for subject in subjects if runs_on_gpu(subject)]
    left_out = [subject.name for subject in subjects if subject not in fitting]
    return [Entrant(s, name, device) for s in fitting for name in _GPU_FORMATS], left_out


def runs_on_gpu(subject: Subject) -> bool:
    """Tell whether a subject can be measured on a GPU: exported files and int8 cannot.

    Args:
        subject: A subject.
    """
    return (subject.kind, subject.precision) == (ENCODER_KIND, "fp32")


def input_tokens(examples: Examples, wanted: tuple[int, ...] | None, max_tokens: int) -> list[int]:
    """Return the input lengths to measure, each once, none longer than the model allows.

    Args:
        examples: The examples, whose longest counts for tensor data.
        wanted: Lengths that were asked for, or None.
        max_tokens: Longest input of the model.
    """
    if wanted is None:
        wanted = (_longest(examples) or _USUAL_TOKENS,)
    return list(dict.fromkeys(min(tokens, max_tokens) for tokens in wanted))


def plan_macs(plan: CompressionPlan, geometry: EngineInfo, tokens: int) -> int:
    """Count what `Anatomy.macs` counts, for an artifact whose layers cannot be looked at.

    Args:
        plan: What is kept of the source.
        geometry: An engine that knows the source's widths.
        tokens: Length of the example.
    """
    width = geometry.hidden_size
    counts = zip(plan.head_counts, plan.neuron_counts, geometry.head_sizes, strict=True)
    return sum(
        heads * size * (4 * tokens * width + 2 * tokens**2) + neurons * 2 * tokens * width
        for heads, neurons, size in counts
    )


@contextmanager
def _engines(
    entrants: Sequence[Entrant], settings: Settings, console: Console
) -> Iterator[tuple[list[EngineProcess], EngineProcess]]:
    """Open every entrant in a process of its own, and the baseline in a second one."""
    with ExitStack() as stack:
        # They start side by side: most of the time goes into importing libraries.
        opened = [
            stack.enter_context(
                EngineProcess(
                    entrant.subject.directory,
                    name=entrant.subject.name,
                    device=entrant.device,
                    precision=entrant.precision,
                    threads=settings.threads,
                )
            )
            for entrant in (*entrants, entrants[0])
        ]
        for engine in console.track(opened, f"opening engines on {entrants[0].device}"):
            _ = engine.info
        *engines, control = opened
        yield engines, control


def _ask(
    entrants: Sequence[Entrant],
    engines: Sequence[EngineProcess],
    examples: Examples,
    book: AnswerBook,
    console: Console,
) -> list[_Answered]:
    """Measure accuracy; memory is read before, as the examples themselves take some."""
    answered: list[_Answered] = []
    for entrant, engine in zip(entrants, engines, strict=True):
        memory = engine.memory_peak_bytes()
        what = f"accuracy of {entrant.key} on {entrant.device}"
        with console.step(what):
            found = _answers(entrant, engine, examples, book, partial(console.track, what=what))
        baseline = answered[0].predictions if answered else found
        quality = judge(found, baseline, examples)
        answered.append(_Answered(entrant, engine.info, found, quality, memory))
    return answered


def _answers(
    entrant: Entrant, engine: EngineProcess, examples: Examples, book: AnswerBook, watch: Watch
) -> Predictions:
    question = Question.about(
        entrant.subject.directory,
        examples,
        device=entrant.device,
        precision=entrant.precision,
        threads=engine.info.threads,
    )
    answers = book.find(question, examples) or predict(engine, examples, watch=watch)
    # Those that were found too: the examples may have other slices than they had then.
    book.keep(question, examples, answers)
    return answers


def _time(
    answered: Sequence[_Answered],
    engines: Sequence[EngineProcess],
    shape: tuple[int, int],
    settings: Settings,
    console: Console,
    shapes: int,
) -> Race:
    """Measure latencies at one input shape; the last engine is the control."""
    names = [*(item.entrant.key for item in answered), _CONTROL]
    for engine in engines:
        engine.fix(*shape, seed=settings.seed)
    budget_s = settings.budget_s / shapes / len(settings.devices)
    what = f"latency on {answered[0].info.device} at batch {shape[0]}, {shape[1]} tokens"
    with console.step(f"{what} (at most {budget_s:.0f} s)"):
        return race(
            dict(zip(names, engines, strict=True)),
            names[0],
            budget_s=budget_s,
            seed=settings.seed,
            watch=partial(console.track, what=what),
        )


def _measurement(
    item: _Answered, source: _Answered, result: Race, shape: tuple[int, int]
) -> Measurement:
    subject, info, key = item.entrant.subject, item.info, item.entrant.key
    batch, tokens = shape
    plan = subject.plan or info.plan
    assert plan is not None, "an encoder always has a plan"
    geometry = _geometry(item, source)
    return Measurement(
        subject=subject,
        engine=info,
        precision=item.entrant.precision,
        batch=batch,
        tokens=tokens,
        latency=Latency(
            samples_ns=result.samples_ns[key],
            warmup=result.paces[key].warmup,
            threads=info.threads,
            device=info.device,
            versions=info.versions,
        ),
        speedup=result.speedups.get(key) or Speedup.of_baseline(),
        quality=item.quality,
        plan=plan,
        macs=None if geometry is None else plan_macs(plan, geometry, tokens),
        memory_peak_bytes=item.memory_peak_bytes,
    )


def _geometry(item: _Answered, source: _Answered) -> EngineInfo | None:
    """Return an engine that knows the widths of a model: its own, or one of the same source."""
    same = item.entrant.subject.source_digest == source.entrant.subject.source_digest
    known = [item.info, source.info] if same else [item.info]
    return next((info for info in known if info.head_sizes), None)


def _doubts(device: str, shape: tuple[int, int], result: Race, foreign_load: float) -> list[str]:
    """Say why a reader should not take the latencies at their word."""
    where = f"{device}, batch {shape[0]}, {shape[1]} tokens"
    doubts = []
    if foreign_load > _FOREIGN_LOAD:
        doubts.append(
            f"{where}: other programs kept {foreign_load:.0%} of the CPUs busy; latencies are "
            "too long and speed-ups uncertain, measure again on a quiet machine"
        )
    if result.settled:
        return doubts
    rounds = min(speedup.blocks for speedup in result.speedups.values())
    worst = max(speedup.half_width for speedup in result.speedups.values())
    known = (
        f"known to ±{worst:.1%}"
        if rounds >= FEWEST_ROUNDS
        else f"from {rounds} of {FEWEST_ROUNDS} rounds"
    )
    doubts.append(
        f"{where}: the time was up with the least certain speed-up {known}; "
        "a larger --budget-s tells more"
    )
    return doubts


def _foreign_load() -> float:
    """Return the fraction of the usable CPUs that is busy while all engines sleep."""
    busy = psutil.cpu_percent(interval=_LISTEN_S, percpu=True)
    if hasattr(os, "sched_getaffinity"):
        usable = os.sched_getaffinity(0)
        busy = [share for cpu, share in enumerate(busy) if cpu in usable] or busy
    return float(np.mean(busy)) / 100


def _shapes(settings: Settings, examples: Examples, max_tokens: int) -> list[tuple[int, int]]:
    lengths = input_tokens(examples, settings.tokens, max_tokens)
    return [(batch, tokens) for batch in dict.fromkeys(settings.batches) for tokens in lengths]


def _longest(examples: Examples) -> int:
    """Return the length of the longest tensor example; 0 for texts."""
    if examples.inputs is None:
        return 0
    if examples.mask is None:
        return int(examples.inputs.shape[1])
    used = np.flatnonzero(np.asarray(examples.mask).any(axis=0))
    return int(used[-1]) + 1 if len(used) else 1
