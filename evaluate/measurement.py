"""The nouns of measuring: what was measured, how fast it was, how good it was."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import numpy as np
from scipy import stats

from tcompress.plan import CompressionPlan

from .engine_info import EngineInfo
from .quality import Quality
from .stability import Stability
from .statistics import Interval, ratio_interval

# A percentile is shown from so many samples on that its 95 % interval lies inside the sample.
_SAMPLES_FOR = {90: 64, 99: 662}
_NS_PER_MS = 1e6
EQUIVALENCE = 0.02
"""Difference in latency, as a fraction, that is of no use."""
CONFIDENCE = 0.95
"""Confidence without which nothing is said about a speed-up."""
PROCESS_SD = 0.016
"""Standard deviation of a speed-up between sets of processes, a fraction, where they are too few to
tell: what `python benchmarks/noise.py control` found on two virtual CPUs of a Zen 4."""
# Of two, Student's interval is so wide (12.7 standard errors) that it says nothing.
_FEWEST_PROCESSES = 3


@dataclass(frozen=True)
class Subject:
    """A model directory or artifact that is measured.

    Attributes:
        name: How the report calls it.
        directory: Where it is.
        stage: Stage that wrote it; `source` for the unpruned model.
        kind: `encoder`, `onnx`, `torchscript`, `program` or `openvino`.
        precision: Number format of its matrix products on a CPU.
        size_bytes: Size of its weights or model file, without tokenizer and configuration.
        digest: Digest of the artifact or model.
        source_digest: That of the unpruned model it stems from; its own for a model directory.
        plan: What it keeps of the source; None for a model directory, which keeps everything.
        stale: Whether what it was made from has been replaced since.
    """

    name: str
    directory: Path
    stage: str
    kind: str
    precision: str
    size_bytes: int
    digest: str
    source_digest: str
    plan: CompressionPlan | None = None
    stale: bool = False


@dataclass(frozen=True)
class Latency:
    """How long single calls took: closed loop, one caller, copies to and from a GPU included.

    Attributes:
        samples_ns: Duration of every measured call, in the order they were made.
        warmup: Unmeasured calls at the start of every turn.
        threads: Threads of the engine.
        device: `cpu` or `cuda`.
        versions: Versions of the libraries that computed.
        stability: How steady the calls were; None where they were not timed in turns.
        kernels_ns: Duration of calls by the GPU's own clock, without copies; none on a CPU.
        inputs: How many different inputs the calls had; None where all had the same, so that they
            differ by the machine's noise alone.
    """

    samples_ns: tuple[int, ...]
    warmup: int
    threads: int
    device: str
    versions: Mapping[str, str]
    stability: Stability | None = None
    kernels_ns: tuple[int, ...] = ()
    inputs: int | None = None

    @property
    def n(self) -> int:
        """Number of measured calls."""
        return len(self.samples_ns)

    @property
    def median_ms(self) -> float:
        """Median duration of a call."""
        return float(np.median(self.samples_ns)) / _NS_PER_MS

    def percentiles_ms(self) -> dict[str, float]:
        """Return `p90` and `p99`, each only where there are enough samples for it.

        A call that is repeated with its input is no other sample of the inputs.
        """
        enough = self.n if self.inputs is None else min(self.n, self.inputs)
        return {
            f"p{percent}": float(np.percentile(self.samples_ns, percent)) / _NS_PER_MS
            for percent, needed in _SAMPLES_FOR.items()
            if enough >= needed
        }

    def to_json(self) -> dict[str, Any]:
        """Return the numbers in milliseconds, samples included."""
        figures = {"median": self.median_ms} | self.percentiles_ms()
        steady = {} if self.stability is None else self.stability.to_json()
        return (
            {name: round(value, 5) for name, value in figures.items()}
            | steady
            | self._kernels_to_json()
            | {
                "n": self.n,
                "warmup": self.warmup,
                "threads": self.threads,
                "versions": dict(self.versions),
                "samples": [round(sample / _NS_PER_MS, 4) for sample in self.samples_ns],
            }
        )

    def _kernels_to_json(self) -> dict[str, Any]:
        if not self.kernels_ns:
            return {}
        median = round(float(np.median(self.kernels_ns)) / _NS_PER_MS, 5)
        return {"kernels": {"median": median, "n": len(self.kernels_ns)}}


class SpeedVerdict(StrEnum):
    """What the blocks prove about a speed-up."""

    FASTER = "faster"
    SLOWER = "slower"
    EQUIVALENT = "equivalent"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Speedup:
    """Latency of the baseline over that of the candidate; above 1 the candidate is faster.

    Attributes:
        value: Median over the blocks.
        interval: Interval of that median, with the confidence it really has.
        blocks: Number of blocks.
        processes: Number of processes that each of the two was measured in.
        rounds_half_width: Half of the interval's width as far as the rounds tell, as a fraction.
    """

    value: float
    interval: Interval
    blocks: int
    processes: int = 1
    rounds_half_width: float = 0.0

    @classmethod
    def of(cls, *sessions: Sequence[float], seed: int = 0) -> Self:
        """Estimate a speed-up from one ratio per block.

        Two processes of one engine differ: each has its own place in memory. From three on, the
        interval therefore covers the median of every one, and Student's interval of their mean;
        before, the interval of the rounds is widened by `PROCESS_SD`.

        Args:
            sessions: For each pair of processes, the baseline's latency over the candidate's, per
                block.
            seed: Seed of the bootstrap.
        """
        ratios = [ratio for session in sessions for ratio in session]
        value, within = ratio_interval(ratios, seed=seed)
        medians = [float(np.median(session)) for session in sessions if len(session)]
        around = _between_processes(medians, value, within)
        bounds = (within.low, within.high, *medians, *around)
        interval = Interval(min(bounds), max(bounds), within.confidence)
        half_width = (within.high - within.low) / 2 / value
        return cls(value, interval, len(ratios), len(medians), half_width)

    @classmethod
    def of_baseline(cls) -> Self:
        """Return the speed-up of the baseline over itself: exactly 1, by definition."""
        return cls(1.0, Interval(1.0, 1.0, 1.0), 0)

    @property
    def half_width(self) -> float:
        """Half of the interval's width, as a fraction of the value."""
        return (self.interval.high - self.interval.low) / 2 / self.value

    @property
    def verdict(self) -> SpeedVerdict | None:
        """What is proved; None for the baseline itself.

        Equivalent is an interval that lies within `EQUIVALENCE` of 1 (two one-sided tests), even
        where it does not contain 1: a difference of that size is of no use.
        """
        if self.blocks == 0:
            return None
        low, high = self.interval.low, self.interval.high
        if self.interval.confidence < CONFIDENCE:
            return SpeedVerdict.INCONCLUSIVE
        if low >= 1 / (1 + EQUIVALENCE) and high <= 1 + EQUIVALENCE:
            return SpeedVerdict.EQUIVALENT
        if low > 1:
            return SpeedVerdict.FASTER
        return SpeedVerdict.SLOWER if high < 1 else SpeedVerdict.INCONCLUSIVE

    def to_json(self) -> dict[str, Any]:
        """Return value, bounds, confidence, verdict, and how much they rest on."""
        return (
            {"value": self.value}
            | asdict(self.interval)
            | {"blocks": self.blocks, "processes": self.processes, "verdict": self.verdict}
        )


@dataclass(frozen=True)
class Measurement:
    """One artifact on one engine and device, at one input shape.

    Attributes:
        subject: What was measured.
        engine: What it ran on.
        precision: Number format of its matrix products on that device.
        batch: Examples per call.
        tokens: Tokens per example.
        latency: How long calls took.
        speedup: Against the baseline on the same device.
        quality: How good the answers on that engine are.
        plan: What it keeps of the source.
        macs: Multiply-accumulates of the layers' matrix products, for one example; None where the
            engine does not know the model's widths.
        memory_peak_bytes: Most memory that its process had held by its first answers,
            libraries included.
        loads_ms: From the start of each of its processes to the first answer.
        gpu_memory_peak_bytes: Most of the GPU's memory that its tensors had taken by its first
            answers; None on a CPU.
    """

    subject: Subject
    engine: EngineInfo
    precision: str
    batch: int
    tokens: int
    latency: Latency
    speedup: Speedup
    quality: Quality
    plan: CompressionPlan
    macs: int | None
    memory_peak_bytes: int
    loads_ms: tuple[float, ...]
    gpu_memory_peak_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the report's `measurements`."""
        subject = self.subject
        return {
            "artifact": subject.name,
            "path": str(subject.directory),
            "digest": subject.digest,
            "stage": subject.stage,
            "backend": self.engine.backend,
            "device": self.engine.device,
            "precision": self.precision,
            "batch": self.batch,
            "tokens": self.tokens,
            "latency_ms": self.latency.to_json(),
            "speedup": self.speedup.to_json(),
            "throughput_per_s": 1e3 * self.batch / self.latency.median_ms,
            "load_ms": {"median": float(np.median(self.loads_ms)), "n": len(self.loads_ms)},
            **self.quality.to_json(),
            "macs": self.macs,
            "size_bytes": subject.size_bytes,
            "memory_peak_bytes": self.memory_peak_bytes,
            **self._gpu_memory_to_json(),
            "heads": list(self.plan.head_counts),
            "neurons": list(self.plan.neuron_counts),
            "stale": subject.stale,
        }

    def _gpu_memory_to_json(self) -> dict[str, int]:
        peak = self.gpu_memory_peak_bytes
        return {} if peak is None else {"gpu_memory_peak_bytes": peak}


def _between_processes(
    medians: Sequence[float], value: float, within: Interval
) -> tuple[float, float]:
    """Bound the median over all processes that there could be, on a logarithmic scale."""
    logs = np.log(medians)
    if len(logs) >= _FEWEST_PROCESSES:
        reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(logs) - 1) * stats.sem(logs))
        middle = float(logs.mean())
        return math.exp(middle - reach), math.exp(middle + reach)
    reach = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * PROCESS_SD / math.sqrt(len(logs))
    down, up = (math.hypot(math.log(bound / value), reach) for bound in (within.low, within.high))
    return value * math.exp(-down), value * math.exp(up)
