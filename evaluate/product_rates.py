"""How fast this machine multiplies matrices in each number format, measured in the engines.

Instruction sets say what a processor could do; what a library makes of them is another matter. The
product is that of a feed-forward layer of MiniLM, eight of them in a row, as in an encoder,
so that weights come from the same level of memory. It runs as `python -m
tcompress.evaluate.product_rates`, an engine and a format per process; nothing heavy may be imported
at the top of this module.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tcompress.worker_process import WorkerProcess, serve

from .worker import time_calls

TOKENS, WIDTH, NEURONS = 128, 384, 1536
"""Rows of the activations, and the shape of the matrices."""

_COPIES = 8
_CALLS, _WARMUP = 40, 5
_FORMATS = (
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("pytorch", "fp32"),
    ("pytorch", "bf16"),
    ("pytorch", "fp16"),
)


@dataclass(frozen=True)
class ProductRate:
    """Rate of matrix products in one format.

    Attributes:
        engine: `pytorch` or `onnxruntime`.
        precision: `fp32`, `bf16`, `fp16` or `int8`.
        gmacs_per_s: Multiply-accumulates per second, in thousands of millions; higher is better.
    """

    engine: str
    precision: str
    gmacs_per_s: float


class ProductWorker:
    """One engine in one format; every public method answers one request."""

    def __init__(self) -> None:
        self._run: Callable[[Any], Any] | None = None

    def open(self, engine: str, precision: str, threads: int) -> None:
        """Prepare the products.

        Args:
            engine: `pytorch` or `onnxruntime`.
            precision: Number format.
            threads: Threads of the products.
        """
        opened = _in_pytorch if engine == "pytorch" else _in_onnxruntime
        self._run = opened(precision, threads)

    def time(self) -> list[int]:
        """Return the duration of each measured call, in ns."""
        assert self._run is not None, "asked before opened"
        return time_calls(self._run, {}, _CALLS, _WARMUP)


def product_rates(threads: int | None = None) -> list[ProductRate]:
    """Measure every engine and format, one after the other.

    Args:
        threads: Threads of the products; None for all CPUs that may be used.

    Raises:
        MeasurementError: If an engine fails.
    """
    return [_rate(engine, precision, threads) for engine, precision in _FORMATS]


def main() -> None:
    """Serve one engine in one format."""
    serve(ProductWorker())


def _rate(engine: str, precision: str, threads: int | None) -> ProductRate:
    import numpy as np

    process = WorkerProcess(
        "tcompress.evaluate.product_rates",
        name=f"{precision} products in {engine}",
        threads=threads,
        opening={"engine": engine, "precision": precision},
    )
    with process as worker:
        ns = float(np.median(worker.ask("time")))
    return ProductRate(engine, precision, _COPIES * TOKENS * WIDTH * NEURONS / ns)


def _in_pytorch(precision: str, threads: int) -> Callable[[Any], Any]:
    import torch

    torch.set_num_threads(threads)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, WIDTH, generator=generator).to(kind)
    matrices = [torch.randn(NEURONS, WIDTH, generator=generator).to(kind) for _ in range(_COPIES)]

    def run(_: Any) -> None:
        with torch.inference_mode():
            for matrix in matrices:
                torch.nn.functional.linear(x, matrix)

    return run


def _in_onnxruntime(precision: str, threads: int) -> Callable[[Any], Any]:
    import numpy as np

    from tcompress.runtime import import_onnxruntime

    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        _graph(precision), options, providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(0).standard_normal((TOKENS, WIDTH), dtype=np.float32)
    return lambda _: session.run(None, {"x": x})


def _graph(precision: str) -> bytes:
    """Write products that all read one input; int8 quantizes it once, as exported files do."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights = [], []
    if precision == "int8":
        nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]))
        weights.append(numpy_helper.from_array(np.full(NEURONS, 1e-3, np.float32), "scales"))
    for i in range(_COPIES):
        if precision == "int8":
            matrix: Any = rng.integers(-64, 64, (WIDTH, NEURONS)).astype(np.int8)
            inputs = ["q", f"w{i}", "scale", "scales", "zero"]
            nodes.append(
                helper.make_node("MatMulIntegerToFloat", inputs, [f"y{i}"], domain="com.microsoft")
            )
        else:
            matrix = rng.standard_normal((WIDTH, NEURONS), dtype=np.float32)
            nodes.append(helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]))
        weights.append(numpy_helper.from_array(matrix, f"w{i}"))

    def tensor(name: str, width: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, (TOKENS, width))

    outputs = [tensor(f"y{i}", NEURONS) for i in range(_COPIES)]
    graph = helper.make_graph(nodes, "products", [tensor("x", WIDTH)], outputs, weights)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    main()
