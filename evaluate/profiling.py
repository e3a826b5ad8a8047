"""Where the time of one call goes, operator by operator, as the engine's own profiler tells."""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tcompress.artifact import ENCODER_KIND, Manifest, is_artifact
from tcompress.runtime import ONNX_KIND
from tcompress.worker_process import WorkerProcess

_PROFILED_KINDS = (ENCODER_KIND, ONNX_KIND)


@dataclass(frozen=True)
class OperatorTime:
    """All operators of a name, in one call.

    Attributes:
        name: As the engine calls it.
        ms: Their time.
        share: That of the whole call.
        calls: How many there are.
    """

    name: str
    ms: float
    share: float
    calls: int


@dataclass(frozen=True)
class OperatorProfile:
    """Where the time of one call goes: of the median one of those that were profiled.

    Attributes:
        total_ms: The call, under the profiler; what no operator took is the engine's own.
        operators: By name, the most expensive first.
        runs: How many calls were profiled.
    """

    total_ms: float
    operators: tuple[OperatorTime, ...]
    runs: int

    def to_json(self) -> dict[str, Any]:
        """Return the whole and its parts, in milliseconds and as fractions."""
        return {
            "runs": self.runs,
            "total_ms": round(self.total_ms, 5),
            "operators": [asdict(operator) for operator in self.operators],
        }


def profile_operators(
    directory: Path,
    *,
    batch: int,
    tokens: int,
    precision: str = "fp32",
    threads: int | None = None,
    seed: int = 0,
) -> OperatorProfile | None:
    """Profile an artifact on the CPU, in a process of its own that is gone afterwards.

    Takes about a second beside opening it, and nine calls where these take longer than that.
    Only ONNX Runtime and PyTorch tell; of anything else nothing is opened.

    Args:
        directory: A model directory or an artifact.
        batch: Examples per call.
        tokens: Tokens per example.
        precision: `bf16` or `fp16` to convert an encoder; otherwise its plan counts.
        threads: Threads of the engine; else all that this process may use.
        seed: Seed of the inputs' values.

    Returns:
        The profile; None for a kind of file whose engine does not tell.

    Raises:
        TcompressError: If the artifact cannot be opened.
        MeasurementError: If the engine fails.
    """
    kind = Manifest.read(directory).kind if is_artifact(directory) else ENCODER_KIND
    if kind not in _PROFILED_KINDS:
        return None
    with (
        tempfile.TemporaryDirectory() as temporary,
        WorkerProcess(
            "tcompress.evaluate.profile_worker",
            name=f"profile of {directory.name}",
            threads=threads,
            opening={"directory": directory.resolve(), "temporary": Path(temporary)},
        ) as process,
    ):
        profile: OperatorProfile = process.ask(
            "profile", batch=batch, tokens=tokens, seed=seed, precision=precision
        )
    return profile
