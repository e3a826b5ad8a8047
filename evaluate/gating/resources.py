"""Checks on what a candidate takes: time, disk and memory.

Times are taken side by side with the baseline, each on its own engine in a process of its own, and
held against a limit as an interval: a limit inside the interval is neither kept nor broken.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tcompress.console import Console
from tcompress.errors import InputError, RequestError

from ..engine_process import EngineProcess
from ..latency import race
from ..measurement import CONFIDENCE, Speedup
from ..noninferiority import Verdict
from ..statistics import Interval, ratio_interval
from ..subjects import named_subjects
from .baseline import TOKENS, Baseline, RecordedLatency, measure_latency
from .policy import Policy
from .verdict import Check, Unit

THROUGHPUT_BATCH = 32
"""Examples per call of the throughput, unless a larger batch is asked for."""

# Fewer starts cannot give a 95 % interval of their median.
_STARTS = 6
_NEED_MODEL = ("min_throughput_ratio", "max_memory_ratio")


@dataclass(frozen=True)
class Estimate:
    """What was measured.

    Attributes:
        value: The best guess.
        interval: Where the truth lies, with the confidence that this really has.
        n: Number of measurements.
    """

    value: float
    interval: Interval
    n: int

    @classmethod
    def exactly(cls, value: float) -> "Estimate":
        """Return what is known without doubt.

        Args:
            value: The value.
        """
        return cls(value, Interval(value, value, 1.0), 1)

    @classmethod
    def of_speedup(cls, speedup: Speedup) -> "Estimate":
        """Return a speed-up.

        Args:
            speedup: The speed-up.
        """
        return cls(speedup.value, speedup.interval, speedup.blocks)

    @classmethod
    def of_median(cls, values: NDArray[np.float64]) -> "Estimate":
        """Return the median of positive values.

        Args:
            values: One per measurement, `(measurements,)`.
        """
        return cls(*ratio_interval(values), len(values))

    @property
    def inverse(self) -> "Estimate":
        """The estimate of one over it."""
        low, high = 1 / self.interval.high, 1 / self.interval.low
        return Estimate(1 / self.value, Interval(low, high, self.interval.confidence), self.n)


@dataclass(frozen=True)
class Bench:
    """Where and how the two are measured.

    Attributes:
        baseline: A model directory or an artifact, or a recorded baseline.
        candidate: A model directory or an artifact.
        device: `cpu` or `cuda`.
        seed: Seed of inputs, orders and bootstraps.
        console: Where to show the progress.
    """

    baseline: Path | Baseline
    candidate: Path
    device: str
    seed: int
    console: Console

    @property
    def model(self) -> Path:
        """Directory of the baseline; `check_measurable` has seen to it that there is one."""
        if isinstance(self.baseline, Baseline):
            msg = f"{self.baseline.path} is a recorded baseline, its model is not there"
            raise RequestError(msg)
        return self.baseline


def check_measurable(policy: Policy, baseline: Path | Baseline) -> None:
    """Raise if a limit needs more of the baseline than is there, before anything is measured.

    Args:
        policy: The limits.
        baseline: A directory, or a recorded baseline.

    Raises:
        RequestError: If a limit needs the baseline's model.
        InputError: If a recorded latency is missing, or was measured elsewhere or otherwise.
    """
    if not isinstance(baseline, Baseline):
        return
    for name in _NEED_MODEL:
        if name in policy.limits:
            msg = (
                f"{name} compares with the baseline's model, and {baseline.path} is a recorded "
                "one; name the model's directory with --baseline, or drop the limit"
            )
            raise RequestError(msg)
    if policy.times:
        baseline.latency_here()


def check_resources(policy: Policy, bench: Bench) -> list[Check]:
    """Measure what is limited, and nothing else.

    Args:
        policy: The limits.
        bench: What is measured where.

    Raises:
        DeviceError: If the device is not there.
        InputError: If a recorded latency is of another device or shape than asked for.
        MeasurementError: If an engine fails.
        RequestError: If a model cannot read inputs as long as asked for.
    """
    return [
        *_check_sizes(policy, bench),
        *(_check_times(policy, bench) if policy.times else []),
        *_check_starts(policy, bench),
    ]


def hold(
    name: str,
    found: Estimate,
    limit: float,
    what: str,
    *,
    at_least: bool = False,
    unit: Unit = Unit.RATIO,
) -> Check:
    """Hold an estimate against a limit.

    Args:
        name: Name of the check.
        found: What was measured.
        limit: The limit; to reach it exactly is to keep it.
        what: What was measured, with `{}` where the value stands.
        at_least: Whether the limit is the least that is allowed, and not the most.
        unit: Unit of both.

    Returns:
        The check: pass or regression only if the whole interval, at 95 %, is on that side.
    """
    low, high = found.interval.low, found.interval.high
    worst, best = (low, high) if at_least else (high, low)
    keeps = worst >= limit if at_least else worst <= limit
    breaks = best < limit if at_least else best > limit
    known = found.interval.confidence >= CONFIDENCE
    verdict = Verdict.INCONCLUSIVE
    if known and (keeps or breaks):
        verdict = Verdict.PASS if keeps else Verdict.REGRESSION
    bound = best if verdict is Verdict.REGRESSION else worst
    between = "" if low == high else f" ({unit.text(low)} to {unit.text(high)})"
    words = (
        f"{what.format(unit.text(found.value))}{between}, {'least' if at_least else 'most'} "
        f"allowed {unit.text(limit)}"
    )
    return Check(name, verdict, found.value, bound, limit, found.n, unit, words)


def _check_sizes(policy: Policy, bench: Bench) -> list[Check]:
    checks = []
    if policy.max_size_bytes is not None:
        size, limit = Estimate.exactly(_model_bytes(bench.candidate)), policy.max_size_bytes
        checks.append(hold("size", size, limit, "the model file has {}", unit=Unit.BYTES))
    if policy.max_size_ratio is not None:
        recorded = bench.baseline.record if isinstance(bench.baseline, Baseline) else None
        before = _model_bytes(bench.model) if recorded is None else recorded.size_bytes
        ratio = Estimate.exactly(_model_bytes(bench.candidate) / before)
        what = "the model file has {} of the baseline's size"
        checks.append(hold("size_ratio", ratio, policy.max_size_ratio, what))
    return checks


def _model_bytes(directory: Path) -> int:
    [subject], _ = named_subjects([directory], directory)
    return subject.size_bytes


def _check_times(policy: Policy, bench: Bench) -> list[Check]:
    if isinstance(bench.baseline, Baseline):
        recorded = bench.baseline.latency_here()
        _check_same_shape(policy, bench, bench.baseline.path, recorded)
        found = _speedup_over(recorded, policy, bench)
        return _check_latency(policy, found, (recorded.batch, recorded.tokens))
    checks = []
    batches = [policy.batch] if {"min_speedup", "max_latency_ratio"} & policy.limits.keys() else []
    large = max(THROUGHPUT_BATCH, policy.batch)
    if policy.min_throughput_ratio is not None:
        batches = list(dict.fromkeys([*batches, large]))
    tokens, found_by_batch = _race(batches, policy, bench)
    if policy.batch in found_by_batch:
        checks += _check_latency(policy, found_by_batch[policy.batch], (policy.batch, tokens))
    if policy.min_throughput_ratio is not None:
        what = f"{{}} times the baseline's throughput at batch {large}, {tokens} tokens"
        found, limit = found_by_batch[large], policy.min_throughput_ratio
        checks.append(hold("throughput_ratio", found, limit, what, at_least=True))
    return checks


def _check_latency(policy: Policy, found: Estimate, shape: tuple[int, int]) -> list[Check]:
    checks = []
    where = "at batch {}, {} tokens".format(*shape)
    if policy.min_speedup is not None:
        what = f"{{}} times as fast as the baseline {where}"
        checks.append(hold("speedup", found, policy.min_speedup, what, at_least=True))
    if policy.max_latency_ratio is not None:
        what = f"{{}} of the baseline's latency {where}"
        checks.append(hold("latency_ratio", found.inverse, policy.max_latency_ratio, what))
    return checks


def _race(batches: Sequence[int], policy: Policy, bench: Bench) -> tuple[int, dict[int, Estimate]]:
    """Time the candidate beside the baseline; return the tokens and the speed-up per batch."""
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(EngineProcess(side, device=bench.device))
            for name, side in (("baseline", bench.model), ("candidate", bench.candidate))
        }
        tokens = _tokens(policy, list(engines.values()))
        found = {}
        for batch in batches:
            for engine in engines.values():
                engine.fix(batch, tokens, seed=bench.seed)
            what = f"gate: timing at batch {batch}, {tokens} tokens"
            outcome = race(
                engines,
                "baseline",
                budget_s=policy.budget_s / len(batches),
                seed=bench.seed,
                watch=partial(bench.console.track, what=what),
            )
            found[batch] = Estimate.of_speedup(outcome.speedups["candidate"])
    return tokens, found


def _speedup_over(recorded: RecordedLatency, policy: Policy, bench: Bench) -> Estimate:
    """Time the candidate against itself, and compare with a recorded latency.

    Nothing can be measured in turns with a number in a file, so the interval is widened by what
    noise alone shows, there and here.
    """
    with bench.console.step(f"gate: timing at batch {recorded.batch}, {recorded.tokens} tokens"):
        here = measure_latency(
            bench.candidate,
            batch=recorded.batch,
            tokens=recorded.tokens,
            device=bench.device,
            budget_s=policy.budget_s,
            seed=bench.seed,
        )
    value = recorded.median_ms / here.median_ms
    spread = _spread(recorded) * _spread(here)
    confidence = min(recorded.noise_confidence, here.noise_confidence)
    return Estimate(value, Interval(value / spread, value * spread, confidence), here.n)


def _spread(latency: RecordedLatency) -> float:
    return max(1 / latency.noise_low, latency.noise_high, 1.0)


def _check_same_shape(policy: Policy, bench: Bench, path: Path, recorded: RecordedLatency) -> None:
    asked = {"device": bench.device, "batch": policy.batch, "tokens": policy.tokens}
    for name, value in asked.items():
        was = getattr(recorded, name)
        if value not in (None, was):
            msg = (
                f"{path}: its latency was recorded with {name} {was}, {value} is asked for; "
                "ask for the same, or record it again with `tcompress gate record --latency`"
            )
            raise InputError(msg)


def _tokens(policy: Policy, engines: Sequence[EngineProcess]) -> int:
    longest = min(engine.info.max_tokens for engine in engines)
    if policy.tokens is not None and policy.tokens > longest:
        msg = f"--tokens {policy.tokens}: the models read at most {longest}; ask for fewer"
        raise RequestError(msg)
    return min(engine.info.tokens_for(policy.tokens, TOKENS) for engine in engines)


def _check_starts(policy: Policy, bench: Bench) -> list[Check]:
    """Check what is known of fresh processes: time to the first answer, and memory."""
    sides = []
    if {"max_load_ms", "max_memory_bytes", "max_memory_ratio"} & policy.limits.keys():
        sides = [bench.candidate]
    if policy.max_memory_ratio is not None:
        sides = [bench.candidate, bench.model]
    if not sides:
        return []
    rounds = bench.console.track(range(_STARTS), "gate: starting fresh processes")
    # (starts, sides, 2): time to the first answer, memory at its peak
    starts = np.asarray([[_start(side, policy, bench) for side in sides] for _ in rounds])
    loads, peaks = starts[:, 0, 0], starts[:, :, 1]
    checks = []
    if policy.max_load_ms is not None:
        what = "a fresh process answers after {}"
        found = Estimate.of_median(loads)
        checks.append(hold("load", found, policy.max_load_ms, what, unit=Unit.MS))
    if policy.max_memory_bytes is not None:
        what = "the engine's process holds {}"
        found = Estimate.of_median(peaks[:, 0])
        checks.append(hold("memory", found, policy.max_memory_bytes, what, unit=Unit.BYTES))
    if policy.max_memory_ratio is not None:
        what = "the engine's process holds {} of the baseline's memory"
        found = Estimate.of_median(peaks[:, 0] / peaks[:, 1])
        checks.append(hold("memory_ratio", found, policy.max_memory_ratio, what))
    return checks


def _start(directory: Path, policy: Policy, bench: Bench) -> tuple[float, float]:
    """Return the time in ms that a fresh process takes to answer, and its memory in bytes."""
    begin = time.perf_counter()
    with EngineProcess(directory, device=bench.device) as engine:
        engine.fix(policy.batch, _tokens(policy, [engine]), seed=bench.seed)
        return 1e3 * (time.perf_counter() - begin), engine.memory_peak_bytes()
