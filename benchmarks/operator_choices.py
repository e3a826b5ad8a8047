"""Which of ONNX Runtime's operators the exported graphs are written in, and what others would take.

`python benchmarks/operator_choices.py`: every piece of an encoder layer in each way to write it, in
graphs of several copies after one another, in turns in one process. The ways of a piece compute the
same; the first named is what `tcompress export` writes.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tcompress.console import Console
from tcompress.export.onnx_graph import OPSET
from tcompress.export.onnx_writer import CONTRIB
from tcompress.machine import usable_cpus

_COPIES = 6
_HEAD_SIZE = 32
_HIDDEN = 384
_WIDE = 4 * _HIDDEN
_TURN_S = 0.15
Array = npt.NDArray[Any]


@dataclass
class Graph:
    """A graph under construction; it reads `x`, `(batch, tokens, hidden)`, and `mask`.

    Attributes:
        heads: Heads of the attention pieces.
        nodes: Its operators.
        constants: Its weights, by name.
    """

    heads: int
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        """Add an operator and return the names of its outputs."""
        names = [f"{op}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names

    def constant(self, name: str, value: Any) -> str:
        """Add a weight, once per name."""
        self.constants.setdefault(name, np.asarray(value))
        return name

    def matrix(self, rows: int, columns: int) -> tuple[str, str]:
        """Add an int8 matrix with its scales; a new one each time, as in a real encoder."""
        name = f"matrix_{len(self.constants)}"
        values = np.random.default_rng(len(self.constants)).integers(-127, 128, (rows, columns))
        scale = np.full(columns, 1e-3, np.float32)
        return self.constant(name, values.astype(np.int8)), self.constant(f"{name}_s", scale)

    def product(self, x: str, rows: int, columns: int) -> str:
        """Multiply in int8; the runtime makes one operator of both where nothing else reads."""
        return self.shared(self.node("DynamicQuantizeLinear", x, outputs=3), rows, columns)

    def shared(self, quantized: Sequence[str], rows: int, columns: int) -> str:
        """Multiply what is quantized already."""
        values, scale, zero = quantized
        matrix, scales = self.matrix(rows, columns)
        inputs = (values, matrix, scale, scales, zero)
        return self.node("MatMulIntegerToFloat", *inputs, domain=CONTRIB)[0]

    @property
    def width(self) -> int:
        """Channels of all heads."""
        return self.heads * _HEAD_SIZE


Piece = Callable[[Graph, str], str]
"""Adds one copy that reads a tensor, and returns what the next copy reads."""


def attention(graph: Graph, x: str) -> str:
    """The operator of opset 23, its mask spread over the queries once for all layers."""
    q, k, v = _heads(graph, x)
    if "hidden" not in graph.constants:
        _spread_mask(graph)
    heads = graph.heads
    return graph.node("Attention", q, k, v, "mask_bias", q_num_heads=heads, kv_num_heads=heads)[0]


def multi_head_attention(graph: Graph, x: str) -> str:
    """The runtime's own operator, with a mask of keys."""
    q, k, v = _heads(graph, x)
    inputs = (q, k, v, "", "mask")
    return graph.node("MultiHeadAttention", *inputs, domain=CONTRIB, num_heads=graph.heads)[0]


def separate_projections(graph: Graph, x: str) -> str:
    """Quantize once, multiply three times."""
    quantized = graph.node("DynamicQuantizeLinear", x, outputs=3)
    return graph.node("Sum", *(graph.shared(quantized, _HIDDEN, _HIDDEN) for _ in range(3)))[0]


def merged_projections(graph: Graph, x: str) -> str:
    """Multiply once, split."""
    merged = graph.product(x, _HIDDEN, 3 * _HIDDEN)
    parts = graph.node("Split", merged, outputs=3, axis=-1, num_outputs=3)
    return graph.node("Sum", *parts)[0]


def sum_and_norm(graph: Graph, x: str) -> str:
    """Two operators."""
    total = graph.node("Add", x, _skip(graph, x))[0]
    return graph.node("LayerNormalization", total, *_norm(graph), axis=-1)[0]


def skip_norm(graph: Graph, x: str) -> str:
    """One operator."""
    inputs = (x, _skip(graph, x), *_norm(graph))
    return graph.node("SkipLayerNormalization", *inputs, domain=CONTRIB)[0]


def dynamic_ffn(graph: Graph, x: str) -> str:
    """Ranges of activations in each call."""
    hidden = graph.node("Gelu", graph.product(x, _HIDDEN, _WIDE), domain=CONTRIB)[0]
    return graph.product(hidden, _WIDE, _HIDDEN)


def static_ffn(graph: Graph, x: str) -> str:
    """Fixed scales, the channels evened out before, as `--activations static` writes it."""
    wide = graph.shared(_fixed(graph, x, _HIDDEN), _HIDDEN, _WIDE)
    hidden = graph.node("Gelu", wide, domain=CONTRIB)[0]
    return graph.shared(_fixed(graph, hidden, _WIDE), _WIDE, _HIDDEN)


def eight_bit_blocks_ffn(graph: Graph, x: str) -> str:
    """Blocks of 128 with a scale each, activations quantized per token and block."""
    hidden = graph.node("Gelu", _blocks(graph, x, _HIDDEN, _WIDE), domain=CONTRIB)[0]
    return _blocks(graph, hidden, _WIDE, _HIDDEN)


PIECES: dict[str, dict[str, Piece]] = {
    "attention": {"Attention": attention, "MultiHead": multi_head_attention},
    "q, k, v": {"3 products": separate_projections, "1, split": merged_projections},
    "sum, norm": {"2 operators": sum_and_norm, "SkipLayer": skip_norm},
    "FFN": {"dynamic": dynamic_ffn, "static": static_ffn, "blocks": eight_bit_blocks_ffn},
}


def _heads(graph: Graph, x: str) -> Iterator[str]:
    factor = graph.constant("factor", np.float32(0.5))
    for op in ("Mul", "Add", "Sub"):  # three different tensors, or the runtime computes one
        yield graph.node(op, x, factor)[0]


def _spread_mask(graph: Graph) -> None:
    wanted = graph.constant("hidden", np.float32(-30_000))
    padding = graph.node("Equal", "mask", graph.constant("zero", np.int32(0)))[0]
    bias = graph.node("Mul", graph.node("Cast", padding, to=TensorProto.FLOAT)[0], wanted)[0]
    bias = graph.node("Unsqueeze", bias, graph.constant("axes", np.array([1, 2])))[0]
    ends = graph.constant("one", np.array([1])), graph.constant("two", np.array([2]))
    tokens = graph.node("Slice", graph.node("Shape", "mask")[0], *ends)[0]
    size = graph.node("Concat", ends[0], ends[0], tokens, ends[0], axis=0)[0]
    graph.nodes.append(helper.make_node("Expand", [bias, size], ["mask_bias"]))


def _skip(graph: Graph, x: str) -> str:
    return graph.node("Mul", x, graph.constant("factor", np.float32(0.5)))[0]


def _norm(graph: Graph) -> tuple[str, str]:
    ones, zeros = np.ones(_HIDDEN, np.float32), np.zeros(_HIDDEN, np.float32)
    return graph.constant("gamma", ones), graph.constant("beta", zeros)


def _fixed(graph: Graph, x: str, width: int) -> tuple[str, str, str]:
    factors = graph.constant(f"factors_{width}", np.full(width, 0.9, np.float32))
    scale = graph.constant("scale", np.float32(0.03))
    zero = graph.constant("zero_point", np.uint8(128))
    even = graph.node("Mul", x, factors)[0]
    return graph.node("QuantizeLinear", even, scale, zero)[0], scale, zero


def _blocks(graph: Graph, x: str, rows: int, columns: int) -> str:
    block = 128
    name = f"blocks_{len(graph.constants)}"
    shape = (columns, rows // block, block)
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    scales = np.full(shape[:2], 1e-3, np.float32)
    inputs = (x, graph.constant(name, values), graph.constant(f"{name}_s", scales))
    size = {"K": rows, "N": columns, "bits": 8, "block_size": block, "accuracy_level": 4}
    return graph.node("MatMulNBits", *inputs, domain=CONTRIB, **size)[0]


def session_of(piece: Piece, heads: int, threads: int) -> onnxruntime.InferenceSession:
    """Open a graph of several copies of a piece.

    Args:
        piece: The piece.
        heads: Its heads, where it has any.
        threads: Threads of the runtime.
    """
    graph, x = Graph(heads), "x"
    for _ in range(_COPIES):
        x = piece(graph, x)
    inputs = [
        # without a shape, as inside an encoder: or the runtime turns Add, LayerNormalization into
        # its SkipLayerNormalization
        helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("mask", TensorProto.INT32, ["batch", "tokens"]),
    ]
    outputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, None)]
    weights = [numpy_helper.from_array(v, name) for name, v in graph.constants.items()]
    proto = helper.make_graph(graph.nodes, piece.__name__, inputs, outputs, weights)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(proto, opset_imports=opsets, ir_version=11)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)


def turn_us(session: onnxruntime.InferenceSession, inputs: dict[str, Array]) -> float:
    """Return the median time of one copy in one turn, in microseconds.

    Args:
        session: The graph.
        inputs: What it reads.
    """
    session.run(None, inputs)
    samples, deadline = [], time.perf_counter() + _TURN_S
    while len(samples) < 3 or time.perf_counter() < deadline:
        start = time.perf_counter()
        session.run(None, inputs)
        samples.append(time.perf_counter() - start)
    return statistics.median(samples) / _COPIES * 1e6


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option(
    "--settings", multiple=True, default=("1x32", "1x128", "8x128", "32x64"), help="BATCHxTOKENS."
)
@click.option("--heads", type=click.IntRange(min=1), default=12, help="Of the attention pieces.")
@click.option("--turns", type=click.IntRange(min=1), default=6, help="Of each way, alternating.")
@click.option("--threads", type=click.IntRange(min=1), help="Else all CPUs.")
def main(settings: tuple[str, ...], heads: int, turns: int, threads: int | None) -> None:
    """Time every piece of an encoder layer in each way to write it, in microseconds."""
    rows = []
    for title, ways in PIECES.items():
        sessions = [session_of(way, heads, threads or usable_cpus()) for way in ways.values()]
        width = heads * _HEAD_SIZE if title == "attention" else _HIDDEN
        columns = [_times(sessions, setting, width, turns) for setting in settings]
        cells = zip(*columns, strict=True)
        rows += [(title, name, *cell) for name, cell in zip(ways, cells, strict=True)]
    Console().table(("piece", "written as", *settings), rows)


def _times(
    sessions: Sequence[onnxruntime.InferenceSession], setting: str, width: int, turns: int
) -> list[str]:
    """Time graphs in turns; per graph the median, and its ratio to the first graph's."""
    batch, tokens = (int(number) for number in setting.split("x"))
    x = np.random.default_rng(0).standard_normal((batch, tokens, width)).astype(np.float32)
    inputs = {"x": x, "mask": np.ones((batch, tokens), np.int32)}
    places = range(len(sessions))
    times = np.empty((turns, len(sessions)))
    for turn in range(turns):
        for place in places if turn % 2 == 0 else reversed(places):
            times[turn, place] = turn_us(sessions[place], inputs)
    ratios = np.median(times / times[:, :1], axis=0)
    medians = np.median(times, axis=0)
    return [f"{us:.0f} ({ratio:.2f})" for us, ratio in zip(medians, ratios, strict=True)]


if __name__ == "__main__":
    main()
