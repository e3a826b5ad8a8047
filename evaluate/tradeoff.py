"""Accuracy against latency: every artifact on its own engine, beside the source model."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tcompress.console import Console
from tcompress.data import Examples
from tcompress.plan import CompressionPlan, unit_macs

from .accuracy import Predictions, Watch, asked_inputs, input_lengths, predict
from .answers import AnswerBook, Question
from .conditions import BUSY, foreign_load, read_gpu
from .engine_info import EngineInfo
from .engine_process import EngineProcess
from .entrants import Entrant, enter
from .label_order import check_label_order
from .latency import FEWEST_ROUNDS, WARMUP, Race, Turn, race
from .measurement import Latency, Measurement, Speedup, Subject
from .profiling import profile_operators
from .quality import Quality, judge
from .sessions import Seat, open_session
from .stability import Stability, describe
from .workloads import Mix, Scenario, race_mix

_CONTROL = "the baseline again"
_USUAL_TOKENS = 128
_MIX_SHARE = 1 / 3
# How many times a race's budget may be spent where that makes enough rounds for an interval.
_OVERRUN = 2.0
_KERNEL_TURNS, _KERNEL_CALLS = 6, 10


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        devices: `cpu`, `cuda` or both, in the order to measure.
        batches: Examples per call; each is measured with each of `tokens`.
        tokens: Tokens per example; None for 128, or the longest example of tensor data.
        budget_s: Time for all latencies together; where six rounds need more, twice as much.
        processes: Sets of processes that share that time.
        mix: Whether to measure the data's own lengths as well, in a third of the time, and where
            the time goes.
        threads: Threads of every engine on the CPU; None for all CPUs that may be used.
        seed: Seed of inputs, orders and bootstraps.
        answers: Directory to keep every answer in.
    """

    answers: Path
    devices: tuple[str, ...] = ("cpu",)
    batches: tuple[int, ...] = (1,)
    tokens: tuple[int, ...] | None = None
    budget_s: float = 30.0
    processes: int = 1
    mix: bool = True
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
        mixes: Entries of the report's `mixes`: latencies on the data's own lengths.
        operators: Entries of the report's `operators`: where the time goes.
        foreign_load: Most of the CPUs that other programs kept busy before or after a race, a
            fraction.
        gpu: What `read_gpu` found right after the last race on a GPU.
        truncated: How many examples were longer than the source model's positions.
        notes: What a reader should know, one line each.
    """

    measurements: tuple[Measurement, ...]
    noise: tuple[NoiseFloor, ...]
    mixes: tuple[dict[str, Any], ...]
    operators: tuple[dict[str, Any], ...]
    foreign_load: float
    gpu: dict[str, Any]
    truncated: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Answered:
    """What is known of an entrant before its latency."""

    entrant: Entrant
    info: EngineInfo
    predictions: Predictions
    quality: Quality
    memory_peak_bytes: int
    gpu_memory_peak_bytes: int | None
    loads_ms: list[float]


@dataclass(frozen=True)
class _Found:
    """What was measured on a device.

    Attributes:
        answered: Everyone, the baseline first.
        races: Latencies, by batch and tokens.
        loads: How busy other programs were before and after each race, as fractions of the CPUs.
        mixes: Latencies on the data's own lengths, as the report has them.
        gpu: What a GPU was like right after the last race.
    """

    answered: list[_Answered]
    races: dict[tuple[int, int], Race]
    loads: list[float]
    mixes: list[dict[str, Any]]
    gpu: dict[str, Any]


@dataclass
class _Purse:
    """Time that races left over, because all was known before it was up.

    Attributes:
        spare_s: How much; the next race gets it.
    """

    spare_s: float = 0.0

    @contextmanager
    def share(self, own_s: float) -> Iterator[float]:
        """Give a race its own time and what is spare, and keep what it leaves.

        Args:
            own_s: Its own time.
        """
        start, given_s = time.perf_counter(), own_s + self.spare_s
        yield given_s
        self.spare_s = max(0.0, given_s - (time.perf_counter() - start))


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
    measured, noise, mixes, operators, notes = [], [], [], [], []
    truncated, load = 0, 0.0
    gpu: dict[str, Any] = {}
    for device in settings.devices:
        entrants, left_out = enter(device, baseline, candidates)
        if left_out:
            notes.append(f"measured on the CPU only: {', '.join(left_out)}")
        found = _measure_device(entrants, examples, settings, console)
        source = found.answered[0]
        truncated = source.predictions.truncated
        for shape, result in found.races.items():
            measured += [_measurement(item, source, result, shape) for item in found.answered]
            noise.append(NoiseFloor(device, *shape, result.speedups[_CONTROL]))
            notes += _doubts(device, shape, result) + _drift_doubts(device, shape, result)
        mixes += found.mixes
        gpu |= found.gpu
        load = max(load, *found.loads)
        notes += _load_doubts(device, max(found.loads))
        if settings.mix and device == "cpu":
            operators += _profile(entrants, found.races, settings, console)
    return Tradeoff(
        measurements=tuple(measured),
        noise=tuple(noise),
        mixes=tuple(mixes),
        operators=tuple(operators),
        foreign_load=load,
        gpu=gpu,
        truncated=truncated,
        notes=tuple(notes),
    )


def _measure_device(
    entrants: Sequence[Entrant], examples: Examples, settings: Settings, console: Console
) -> _Found:
    """Ask everyone once, and race them in several sets of processes."""
    answered: list[_Answered] = []
    races: dict[tuple[int, int], Race] = {}
    loads: list[float] = []
    mixes: list[dict[str, Any]] = []
    gpu: dict[str, Any] = {}
    device_s = settings.budget_s / len(settings.devices)
    shapes_s = device_s * (1 - _MIX_SHARE if settings.mix else 1)
    purse = _Purse()

    def first_shape(info: EngineInfo) -> tuple[int, int]:
        return _shapes(settings, examples, info)[0]

    for number in range(settings.processes):
        seed = settings.seed + number
        with open_session(
            entrants, first_shape, console, threads=settings.threads, seed=seed
        ) as seats:
            if not answered:
                answered = _ask(seats[:-1], examples, AnswerBook(settings.answers), console)
            else:
                for item, seat in zip(answered, seats[:-1], strict=True):
                    item.loads_ms.append(seat.load_ms)
            shapes = _shapes(settings, examples, seats[0].engine.info)
            loads.append(foreign_load())
            for shape in shapes:
                with purse.share(shapes_s / len(shapes) / settings.processes) as budget_s:
                    result = _time(seats, shape, budget_s, seed, console)
                races[shape] = races[shape].then(result) if shape in races else result
                loads.append(foreign_load())
            if entrants[0].device == "cuda":
                gpu = read_gpu()
            if settings.mix and number == 0:
                budget_s = device_s * _MIX_SHARE
                mixes = _time_mixes(seats[:-1], examples, budget_s, purse, seed, console)
                loads.append(foreign_load())
    return _Found(answered, races, loads, mixes, gpu)


def _time_mixes(
    seats: Sequence[Seat],
    examples: Examples,
    budget_s: float,
    purse: _Purse,
    seed: int,
    console: Console,
) -> list[dict[str, Any]]:
    """Measure latencies on the data's own lengths: one by one, and in batches."""
    asked = asked_inputs(seats[0].engine, examples)
    lengths, owners = input_lengths(seats[0].engine, asked)
    engines = {seat.entrant.key: seat.engine for seat in seats}
    entries = []
    for scenario in Scenario:
        what = f"latency on the data's own lengths, {scenario.value.replace('_', ' ')}"
        with (
            purse.share(budget_s / len(Scenario)) as scenario_s,
            console.step(f"{what} (about {scenario_s:.0f} s)"),
        ):
            found = race_mix(
                engines,
                seats[0].entrant.key,
                Mix.of(scenario, lengths, seed),
                asked,
                budget_s=scenario_s,
                overrun=_OVERRUN,
                owners=owners,
                seed=seed,
                watch=partial(console.track, what=what),
            )
        entries += [
            found[seat.entrant.key].to_json(
                artifact=seat.entrant.subject.name,
                device=seat.entrant.device,
                precision=seat.entrant.precision,
                backend=seat.engine.info.backend,
            )
            for seat in seats
        ]
    return entries


def _profile(
    entrants: Sequence[Entrant],
    races: Mapping[tuple[int, int], Race],
    settings: Settings,
    console: Console,
) -> list[dict[str, Any]]:
    """Say where everyone's time goes at the first shape, as far as its engine tells.

    A profiler takes time itself, so the latency that was timed without one stands beside.
    """
    (batch, tokens), timed = next(iter(races.items()))
    entries = []
    for entrant in console.track(entrants, "latency by operator"):
        profile = profile_operators(
            entrant.subject.directory,
            batch=batch,
            tokens=tokens,
            precision=entrant.precision,
            threads=settings.threads,
            seed=settings.seed,
        )
        if profile is not None:
            place = {"artifact": entrant.subject.name, "device": entrant.device}
            timed_ms = float(np.median(timed.samples_ns[entrant.key])) / 1e6
            beside = {"batch": batch, "tokens": tokens, "timed_ms": round(timed_ms, 5)}
            entries.append(place | beside | profile.to_json())
    return entries


def input_tokens(examples: Examples, wanted: tuple[int, ...] | None, info: EngineInfo) -> list[int]:
    """Return the input lengths to measure, each once, none longer than the model allows.

    Args:
        examples: The examples, whose longest counts for tensor data.
        wanted: Lengths that were asked for, or None.
        info: What the model reads.

    Raises:
        RequestError: If all inputs are equally long, and otherwise than asked for.
    """
    usual = _longest(examples) or _USUAL_TOKENS
    return list(dict.fromkeys(info.tokens_for(tokens, usual) for tokens in wanted or (None,)))


def plan_macs(plan: CompressionPlan, geometry: EngineInfo, tokens: int) -> int:
    """Count what `Anatomy.macs` counts, for an artifact whose layers cannot be looked at.

    Args:
        plan: What is kept of the source.
        geometry: An engine that knows the source's widths.
        tokens: Length of the example.
    """
    total = 0
    counts = zip(plan.head_counts, plan.neuron_counts, geometry.geometry, strict=True)
    for heads, neurons, (size, *rest) in counts:
        per_head, per_neuron = unit_macs(geometry.hidden_size, size, tokens, *rest)
        total += heads * per_head + neurons * per_neuron
    return total


def _ask(
    seats: Sequence[Seat], examples: Examples, book: AnswerBook, console: Console
) -> list[_Answered]:
    """Measure quality; memory is read before, as the examples themselves take some."""
    answered: list[_Answered] = []
    for seat in seats:
        entrant, engine = seat.entrant, seat.engine
        memory, on_gpu = engine.memory_peak_bytes(), engine.gpu_memory_peak_bytes()
        what = f"answers of {entrant.key} on {entrant.device}"
        with console.step(what):
            found = _answers(entrant, engine, examples, book, partial(console.track, what=what))
        baseline = answered[0].predictions if answered else found
        if not answered:
            check_label_order(found, examples)
        quality = judge(found, baseline, examples)
        answered.append(
            _Answered(entrant, engine.info, found, quality, memory, on_gpu, [seat.load_ms])
        )
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
    seats: Sequence[Seat], shape: tuple[int, int], budget_s: float, seed: int, console: Console
) -> Race:
    """Measure latencies at one input shape in one set of processes; the control sits last."""
    names = [*(seat.entrant.key for seat in seats[:-1]), _CONTROL]
    for seat in seats:
        seat.engine.fix(*shape, seed=seed)
    what = f"latency on {seats[0].entrant.device} at batch {shape[0]}, {shape[1]} tokens"
    engines = dict(zip(names, (seat.engine for seat in seats), strict=True))
    with console.step(f"{what} (about {budget_s:.0f} s)"):
        result = race(
            engines,
            names[0],
            budget_s=budget_s,
            overrun=_OVERRUN,
            seed=seed,
            warmup=WARMUP[seats[0].entrant.device],
            watch=partial(console.track, what=what),
        )
        return replace(result, kernels_ns=_kernels(engines))


def _kernels(engines: Mapping[str, EngineProcess]) -> dict[str, tuple[int, ...]]:
    """Measure everyone by the GPU's own clock, in turns; on a CPU there is nothing to measure."""
    taken: dict[str, list[int]] = {name: [] for name in engines}
    for turn in range(_KERNEL_TURNS):
        for name in sorted(engines, reverse=turn % 2 == 1):
            taken[name] += engines[name].kernels(_KERNEL_CALLS, warmup=WARMUP["cuda"])
    return {name: tuple(samples) for name, samples in taken.items()}


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
            stability=_stability(result.turns[key]),
            kernels_ns=result.kernels_ns.get(key, ()),
        ),
        speedup=result.speedups.get(key) or Speedup.of_baseline(),
        quality=item.quality,
        plan=plan,
        macs=None if geometry is None else plan_macs(plan, geometry, tokens),
        memory_peak_bytes=item.memory_peak_bytes,
        gpu_memory_peak_bytes=item.gpu_memory_peak_bytes,
        loads_ms=tuple(item.loads_ms),
    )


def _geometry(item: _Answered, source: _Answered) -> EngineInfo | None:
    """Return an engine that knows the widths of a model: its own, or one of the same source."""
    same = item.entrant.subject.source_digest == source.entrant.subject.source_digest
    known = [item.info, source.info] if same else [item.info]
    return next((info for info in known if info.geometry), None)


def _doubts(device: str, shape: tuple[int, int], result: Race) -> list[str]:
    """Say why a reader should not take the latencies at their word."""
    if result.settled:
        return []
    rounds = min(speedup.blocks for speedup in result.speedups.values())
    worst = max(speedup.half_width for speedup in result.speedups.values())
    told = (
        f"with the least certain speed-up known to ±{worst:.1%}"
        if rounds >= FEWEST_ROUNDS
        else f"after {rounds} of the {FEWEST_ROUNDS} rounds that an interval takes"
    )
    return [
        f"{device}, batch {shape[0]}, {shape[1]} tokens: the time was up {told}; a larger "
        "--budget-s tells more"
    ]


def _stability(turns: Sequence[Turn]) -> Stability:
    """Describe all calls; a drift is the worst within a process, as two processes differ anyway."""
    everything = describe([(turn.start_s, turn.samples_ns) for turn in turns])
    drifts = [
        describe([(t.start_s, t.samples_ns) for t in turns if t.process == process]).drift
        for process in {turn.process for turn in turns}
    ]
    worst = max(drifts, key=lambda drift: (drift.flagged, abs(drift.slope_per_minute or 0)))
    return replace(everything, drift=worst)


def _drift_doubts(device: str, shape: tuple[int, int], result: Race) -> list[str]:
    """Say whose calls took ever longer, or ever shorter, in the course of measuring."""
    drifts = {name: _stability(turns).drift for name, turns in result.turns.items()}
    flagged = {name: drift.slope_per_minute for name, drift in drifts.items() if drift.flagged}
    if not flagged:
        return []
    told = ", ".join(f"{name} by {slope:+.0%} a minute" for name, slope in flagged.items())
    return [
        f"{device}, batch {shape[0]}, {shape[1]} tokens: latencies drifted ({told}); the turns "
        "even out what is linear within a round"
    ]


def _load_doubts(device: str, load: float) -> list[str]:
    if load <= BUSY:
        return []
    return [
        f"{device}: other programs kept up to {load:.0%} of the CPUs busy; latencies are "
        "too long and speed-ups uncertain, measure again on a quiet machine"
    ]


def _shapes(settings: Settings, examples: Examples, info: EngineInfo) -> list[tuple[int, int]]:
    lengths = input_tokens(examples, settings.tokens, info)
    return [(batch, tokens) for batch in dict.fromkeys(settings.batches) for tokens in lengths]


def _longest(examples: Examples) -> int:
    """Return the length of the longest tensor example; 0 for texts."""
    if examples.inputs is None:
        return 0
    if examples.mask is None:
        return int(examples.inputs.shape[1])
    used = np.flatnonzero(np.asarray(examples.mask).any(axis=0))
    return int(used[-1]) + 1 if len(used) else 1
