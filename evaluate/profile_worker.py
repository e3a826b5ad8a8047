"""The process behind `profile_operators`: one artifact under its engine's profiler.

Nothing heavy may be imported at the top of this module.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
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
_FEWEST_RUNS, _MOST_RUNS = 5, 20
_NODE_EVENT, _RUN_EVENT = "_kernel_time", "model_run"
_TORCH_RUN = "tcompress: one run"


@dataclass(frozen=True)
class Call:
    """One execution of one operator of an ONNX graph.

    Attributes:
        kind: Type of the operator.
        start_us: When it began.
        us: Duration.
        shapes: Shapes of the inputs that are there; not of weights that the runtime repacked.
        output: Shape of its first output; empty where it is not a tensor.
    """

    kind: str
    start_us: float
    us: float
    shapes: tuple[Shape, ...]
    output: Shape


@dataclass(frozen=True)
class Trace:
    """What ONNX Runtime's profiler wrote.

    Attributes:
        starts_us: When every run began.
        runs_us: Duration of every run.
        calls: Every execution of an operator in these runs.
    """

    starts_us: tuple[float, ...]
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
        return cls(tuple(ts for ts, _ in runs), tuple(dur for _, dur in runs), tuple(calls))


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

    def profile(self, batch: int, tokens: int, seed: int, precision: str) -> "OperatorProfile":
        """Profile calls with a batch of a fixed shape.

        Args:
            batch: Examples.
            tokens: Tokens per example.
            seed: Seed of the values.
            precision: `bf16` or `fp16` to convert an encoder; otherwise its plan counts.
        """
        from tcompress.encoder import Encoder

        inputs = self._opened.preprocessor.random_batch(batch, tokens, seed)
        if isinstance(self._opened, Encoder):
            return _profile_pytorch(self._opened, inputs, precision)
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
    calls = ((call.kind, call.start_us, call.us) for call in trace.calls)
    return _of_median_run(list(zip(trace.starts_us, trace.runs_us, strict=True)), calls)


def _profile_pytorch(encoder: "Encoder", inputs: "Batch", precision: str) -> "OperatorProfile":
    from torch.profiler import ProfilerActivity, profile, record_function

    from .torch_engine import open_pytorch

    predict = open_pytorch(encoder, "cpu", precision)
    runs = _run_count(lambda: predict(inputs))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        # The profiler needs a warm-up of its own: its first run can take a hundred times as long.
        for _ in range(_WARMUP + runs):
            with record_function(_TORCH_RUN):
                predict(inputs)
    events = sorted(profiler.events() or (), key=lambda event: event.time_range.start)
    marks = [event for event in events if event.name == _TORCH_RUN][_WARMUP:]
    calls = (
        (event.name.removeprefix("aten::"), event.time_range.start, event.self_cpu_time_total)
        for event in events
        if event.name != _TORCH_RUN
    )
    return _of_median_run([(m.time_range.start, m.time_range.elapsed_us()) for m in marks], calls)


def _run_often(run: Callable[[], Any]) -> None:
    for _ in range(_run_count(run)):
        run()


def _run_count(run: Callable[[], Any]) -> int:
    """Warm up, and return how many runs the budget has room for; a few in any case."""
    for _ in range(_WARMUP):
        start = time.perf_counter()
        run()
        run_s = time.perf_counter() - start
    return max(_FEWEST_RUNS, min(_MOST_RUNS, int(_BUDGET_S / run_s)))


def _of_median_run(
    runs: Sequence[tuple[float, float]], calls: Iterable[tuple[str, float, float]]
) -> "OperatorProfile":
    """Tell where the time of the median run goes: a mean would be that of its worst outlier.

    Args:
        runs: When each run began and how long it took, in us.
        calls: Of every execution in these runs, the operator, when it began and its time, in us.
    """
    from .profiling import OperatorProfile, OperatorTime

    start_us, total_us = sorted(runs, key=lambda run: run[1])[(len(runs) - 1) // 2]
    times: dict[str, list[float]] = defaultdict(list)
    for name, began_us, us in calls:
        if start_us <= began_us <= start_us + total_us:
            times[name].append(us)
    operators = (
        OperatorTime(name, sum(taken) / 1e3, sum(taken) / total_us, len(taken))
        for name, taken in times.items()
    )
    ordered = sorted(operators, key=attrgetter("ms"), reverse=True)
    return OperatorProfile(total_us / 1e3, tuple(ordered), len(runs))


def _call(event: dict[str, Any]) -> Call:
    arguments = event["args"]
    inputs, outputs = (_shapes(arguments[f"{side}_type_shape"]) for side in ("input", "output"))
    kind, start_us, us = arguments["op_name"], event["ts"], event["dur"]
    return Call(kind, start_us, us, tuple(inputs), next(outputs, ()))


def _shapes(items: Iterable[dict[str, list[int]]]) -> Iterator[Shape]:
    return (tuple(shape) for item in items for shape in item.values())


def main() -> None:
    """Serve one artifact."""
    serve(ProfileWorker())


if __name__ == "__main__":
    main()
