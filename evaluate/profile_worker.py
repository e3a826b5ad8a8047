"""The process behind `profile_operators`: one artifact under its engine's profiler.

Nothing heavy may be imported at the top of this module.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tcompress.worker_process import serve

if TYPE_CHECKING:
    from tcompress.encoder import Encoder
    from tcompress.preprocessing import Batch
    from tcompress.runtime import ExportedEncoder

    from .profiling import OperatorProfile

Shape = tuple[int, ...]
_WARMUP = 2
_BUDGET_S = 0.5
_MOST_RUNS = 20
_NODE_EVENT, _RUN_EVENT = "_kernel_time", "model_run"


@dataclass(frozen=True)
class Call:
    """One execution of one operator of an ONNX graph.

    Attributes:
        kind: Type of the operator.
        us: Duration.
        shapes: Shapes of the inputs that are there; not of weights that the runtime repacked.
        output: Shape of its first output; empty where it is not a tensor.
    """

    kind: str
    us: float
    shapes: tuple[Shape, ...]
    output: Shape


@dataclass(frozen=True)
class Trace:
    """What ONNX Runtime's profiler wrote.

    Attributes:
        runs_us: Duration of every run.
        calls: Every execution of an operator in these runs.
    """

    runs_us: tuple[float, ...]
    calls: tuple[Call, ...]

    @classmethod
    def read(cls, path: Path, warmup: int) -> Self:
        """Read a profile.

        Args:
            path: The file that `InferenceSession.end_profiling` named.
            warmup: Runs at the start to leave out.
        """
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        runs = sorted((e["ts"], e["dur"]) for e in events if e["name"] == _RUN_EVENT)[warmup:]
        # A node may be named as it likes: what kind of event this is, its category says.
        nodes = (e for e in events if e["cat"] == "Node" and e["name"].endswith(_NODE_EVENT))
        calls = (_call(node) for node in nodes if node["ts"] >= runs[0][0])
        return cls(tuple(dur for _, dur in runs), tuple(calls))


class ProfileWorker:
    """One opened artifact; every public method answers one request."""

    def open(self, directory: Path, temporary: Path, threads: int) -> None:
        """Open the artifact.

        Args:
            directory: A model directory, or an artifact that holds an encoder or an ONNX file.
            temporary: Directory for the profiler's files.
            threads: Threads of its matrix products.
        """
        import torch

        from tcompress.loading import load

        torch.set_num_threads(threads)
        self._opened = load(directory)
        self._temporary = temporary

    def profile(self, batch: int, tokens: int, seed: int) -> "OperatorProfile":
        """Profile calls with a batch of a fixed shape.

        Args:
            batch: Examples.
            tokens: Tokens per example.
            seed: Seed of the values.
        """
        from tcompress.encoder import Encoder

        inputs = self._opened.preprocessor.random_batch(batch, tokens, seed)
        if isinstance(self._opened, Encoder):
            return _profile_pytorch(self._opened, inputs)
        return _profile_onnx(self._opened, inputs, self._temporary)


def _profile_onnx(
    exported: "ExportedEncoder", inputs: "Batch", temporary: Path
) -> "OperatorProfile":
    from tcompress.runtime import MODEL_FILES, open_onnx_session

    path = exported.directory / MODEL_FILES[exported.kind]
    del exported.predict  # closes its session, which has threads of its own
    session = open_onnx_session(path, profile=temporary / "profile")
    feed = {item.name: inputs[item.name] for item in session.get_inputs()}
    _run_often(lambda: session.run(None, feed))
    trace = Trace.read(Path(session.end_profiling()), _WARMUP)
    runs = len(trace.runs_us)
    ordered = sorted(trace.calls, key=attrgetter("kind"))
    groups = ((kind, list(group)) for kind, group in groupby(ordered, attrgetter("kind")))
    times = ((kind, sum(call.us for call in group), len(group)) for kind, group in groups)
    return _averaged(sum(trace.runs_us), times, runs)


def _profile_pytorch(encoder: "Encoder", inputs: "Batch") -> "OperatorProfile":
    from torch.profiler import ProfilerActivity, profile

    from .torch_engine import open_pytorch

    predict = open_pytorch(encoder, "cpu", "plan")
    runs = _run_count(lambda: predict(inputs))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter_ns()
        for _ in range(runs):
            predict(inputs)
        total_us = (time.perf_counter_ns() - start) / 1e3
    times = (
        (event.key.removeprefix("aten::"), event.self_cpu_time_total, event.count)
        for event in profiler.key_averages()
    )
    return _averaged(total_us, times, runs)


def _run_often(run: Callable[[], Any]) -> None:
    for _ in range(_run_count(run)):
        run()


def _run_count(run: Callable[[], Any]) -> int:
    """Warm up, and return how many runs the budget has room for."""
    for _ in range(_WARMUP):
        start = time.perf_counter()
        run()
        run_s = time.perf_counter() - start
    return max(1, min(_MOST_RUNS, int(_BUDGET_S / run_s)))


def _averaged(
    total_us: float, times: Iterable[tuple[str, float, int]], runs: int
) -> "OperatorProfile":
    """Give the average run, from names, durations and executions over all runs."""
    from .profiling import OperatorProfile, OperatorTime

    operators = (
        OperatorTime(name, us / 1e3 / runs, us / total_us, round(count / runs))
        for name, us, count in times
    )
    ordered = sorted(operators, key=attrgetter("ms"), reverse=True)
    return OperatorProfile(total_us / 1e3 / runs, tuple(ordered))


def _call(event: dict[str, Any]) -> Call:
    arguments = event["args"]
    inputs, outputs = (_shapes(arguments[f"{side}_type_shape"]) for side in ("input", "output"))
    return Call(arguments["op_name"], event["dur"], tuple(inputs), next(outputs, ()))


def _shapes(items: Iterable[dict[str, list[int]]]) -> Iterator[Shape]:
    return (tuple(shape) for item in items for shape in item.values())


def main() -> None:
    """Serve one artifact."""
    serve(ProfileWorker())


if __name__ == "__main__":
    main()
