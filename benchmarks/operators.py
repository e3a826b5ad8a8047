"""Where the time of an ONNX file goes, operator by operator, and how far that is from a floor.

The floor is the multiply-accumulates of the graph's matrix products over the rate that the same
runtime reaches on this machine in one large product: int8 products at the rate of
DynamicQuantizeMatMul, the others at that of MatMul. Work that is not a product is not in it.
"""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from tcompress.errors import ModelError
from tcompress.evaluate.profile_worker import Call, Shape, Trace
from tcompress.machine import usable_cpus

Feed = dict[str, np.ndarray[Any, Any]]
_SIDE = 1024  # of the large product
_WARMUP = 10
_INT8 = {"MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}


@dataclass(frozen=True)
class Kind:
    """All operators of a type, in one run of the graph.

    Attributes:
        name: The type.
        calls: Operators.
        ms: Their time.
        macs: Their multiply-accumulates.
    """

    name: str
    calls: float
    ms: float
    macs: float


@dataclass(frozen=True)
class Profile:
    """Where the time goes, for one run of the graph.

    Attributes:
        kinds: By type of operator, the most expensive first.
        products_ms: Time of the operators that hold matrix products.
        int8_macs: Multiply-accumulates in int8.
        float_macs: Multiply-accumulates in floating point.
        run_ms: A whole run, while it was profiled.
    """

    kinds: tuple[Kind, ...]
    products_ms: float
    int8_macs: int
    float_macs: int
    run_ms: float

    def floor_ms(self, rates: Mapping[bool, float]) -> float:
        """Return the time of the products at given rates.

        Args:
            rates: Multiply-accumulates per second, in int8 (True) and in floating point (False).
        """
        return 1e3 * (self.int8_macs / rates[True] + self.float_macs / rates[False])


def _product_macs(shapes: Sequence[Shape], output: Shape) -> int:
    return math.prod(output) * shapes[0][-1]


def _attention_macs(shapes: Sequence[Shape], _: Shape) -> int:
    """Scores and mixing: query `(batch, queries, width)`, key and value `(batch, keys, width)`."""
    query, key, value = shapes[:3]
    return math.prod(query[:2]) * key[1] * (query[2] + value[-1])


_MACS: dict[str, Callable[[Sequence[Shape], Shape], int]] = {
    **dict.fromkeys(("Attention", "MultiHeadAttention"), _attention_macs),
    **dict.fromkeys(("MatMul", "FusedMatMul", "Gemm", "FusedGemm", *_INT8), _product_macs),
}


def _macs(call: Call) -> int:
    """Return the multiply-accumulates of its matrix products; 0 where it has none."""
    count = _MACS.get(call.kind)
    return 0 if count is None else count(call.shapes, call.output)


def feed_of(session: onnxruntime.InferenceSession, batch: int, tokens: int) -> Feed:
    """Return inputs without padding; which tokens they are does not change the work.

    Args:
        session: The graph.
        batch: Examples.
        tokens: Tokens per example.

    Raises:
        ModelError: If an input is not of `(batch, tokens, ...)`.
    """
    feed = {}
    for item in session.get_inputs():
        if len(item.shape) < 2 or not all(isinstance(size, int) for size in item.shape[2:]):
            msg = f"input {item.name!r} has shape {item.shape}, not (batch, tokens, ...)"
            raise ModelError(msg)
        dtype = np.int64 if "int64" in item.type else np.float32
        value = 0 if "type" in item.name else 1  # a table of token types may have one row
        feed[item.name] = np.full((batch, tokens, *item.shape[2:]), value, dtype)
    return feed


def open_session(
    model: Path | bytes, threads: int, *, profile_into: Path | None = None
) -> onnxruntime.InferenceSession:
    """Open a graph.

    Args:
        model: A file, or what would be in it.
        threads: Threads.
        profile_into: Directory to profile into, or None.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if profile_into is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_into / "profile")
    content = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def time_ms(session: onnxruntime.InferenceSession, feed: Feed, calls: int) -> float:
    """Return the median duration of a run.

    Args:
        session: The graph.
        feed: Its inputs.
        calls: Measured runs.
    """
    samples = []
    for _ in range(_WARMUP + calls):
        start = time.perf_counter_ns()
        session.run(None, feed)
        samples.append(time.perf_counter_ns() - start)
    return median(samples[_WARMUP:]) / 1e6


def profile(model: Path, threads: int, batch: int, tokens: int, calls: int) -> Profile:
    """Profile a graph with the runtime's profiler.

    Args:
        model: The file.
        threads: Threads.
        batch: Examples.
        tokens: Tokens per example.
        calls: Profiled runs.
    """
    with tempfile.TemporaryDirectory() as directory:
        session = open_session(model, threads, profile_into=Path(directory))
        run_ms = time_ms(session, feed_of(session, batch, tokens), calls)
        trace = Trace.read(Path(session.end_profiling()), _WARMUP)
    return _summed(trace.calls, calls, run_ms)


def _summed(found: Sequence[Call], runs: int, run_ms: float) -> Profile:
    ordered = sorted(found, key=lambda call: call.kind)
    groups = {name: list(group) for name, group in groupby(ordered, lambda call: call.kind)}
    kinds = [
        Kind(
            name,
            len(group) / runs,
            sum(call.us for call in group) / 1e3 / runs,
            sum(map(_macs, group)) / runs,
        )
        for name, group in groups.items()
    ]
    return Profile(
        tuple(sorted(kinds, key=lambda kind: -kind.ms)),
        sum(kind.ms for kind in kinds if kind.macs),
        sum(_macs(call) for call in found if call.kind in _INT8) // runs,
        sum(_macs(call) for call in found if call.kind not in _INT8) // runs,
        run_ms,
    )


def measure_rate(threads: int, *, int8: bool, side: int = _SIDE) -> float:
    """Return the multiply-accumulates per second of one large product in this runtime.

    Args:
        threads: Threads.
        int8: DynamicQuantizeMatMul with one scale per channel, or MatMul in fp32.
        side: Rows and columns of both matrices.
    """
    session = open_session(_product(side, int8=int8), threads)
    x = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
    return float(side**3 / (1e-3 * time_ms(session, {"x": x}, 20)))


def _product(side: int, *, int8: bool) -> bytes:
    rng = np.random.default_rng(1)
    floats = rng.standard_normal((side, side), dtype=np.float32)
    if int8:
        weight = np.clip(32 * floats, -127, 127).astype(np.int8)
        arrays: Feed = {"w": weight, "scale": np.full(side, 1 / 32, np.float32)}
        node = helper.make_node(
            "DynamicQuantizeMatMul", ["x", *arrays], ["y"], domain="com.microsoft"
        )
    else:
        arrays = {"w": floats}
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [side, side]) for n in "xy")
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph([node], "product", [x], [y], weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    content: bytes = model.SerializeToString()
    return content


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--batch", type=click.IntRange(min=1), default=1, help="Examples.")
@click.option("--tokens", type=click.IntRange(min=1), default=128, help="Tokens per example.")
@click.option("--calls", type=click.IntRange(min=1), default=50, help="Measured runs.")
@click.option("--threads", type=click.IntRange(min=1), help="Else all CPUs.")
def main(model: Path, batch: int, tokens: int, calls: int, threads: int | None) -> None:
    """Print where the time of MODEL goes; wants a quiet machine."""
    threads = threads or usable_cpus()
    session = open_session(model, threads)
    plain_ms = time_ms(session, feed_of(session, batch, tokens), calls)
    del session  # its threads spin
    found = profile(model, threads, batch, tokens, calls)
    rates = {int8: measure_rate(threads, int8=int8) for int8 in (True, False)}
    print(report(found, plain_ms, rates))


def report(found: Profile, plain_ms: float, rates: Mapping[bool, float]) -> str:
    """Return what is printed.

    Args:
        found: The profile.
        plain_ms: A run without the profiler.
        rates: As for `Profile.floor_ms`.
    """
    total = sum(kind.ms for kind in found.kinds)
    floor = found.floor_ms(rates)
    lines = [f"{'operator':28}{'calls':>7}{'ms':>10}{'share':>8}{'MMAC':>10}{'GMAC/s':>8}"]
    for kind in found.kinds:
        rate = f"{kind.macs / kind.ms / 1e6:8.0f}" if kind.macs else ""
        macs = f"{kind.macs / 1e6:10.1f}" if kind.macs else f"{'':10}"
        lines.append(
            f"{kind.name:28}{kind.calls:7.0f}{kind.ms:10.3f}{kind.ms / total:8.1%}{macs}{rate}"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"run: {plain_ms:.3f} ms; {found.run_ms:.3f} ms with the profiler, of which "
            f"{total:.3f} ms in operators",
            f"products: {found.int8_macs / 1e6:.1f} MMAC in int8, {found.float_macs / 1e6:.1f} in "
            f"fp32; rates {rates[True] / 1e9:.0f} and {rates[False] / 1e9:.0f} GMAC/s",
            f"floor: {floor:.3f} ms; operators with products take {found.products_ms / floor:.2f} "
            f"times that, the whole run {plain_ms / floor:.2f} times",
        ]
    )


if __name__ == "__main__":
    main()
