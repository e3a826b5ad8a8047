"""ONNX graphs written for ONNX Runtime, operator by operator.

Nothing is traced and nothing is left to pattern matching: the writer emits the operators that the
runtime runs fastest, with the head count of each layer, so uneven layers cost nothing, and it
knows what the file holds.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import Tensor, nn

from tcompress import storage
from tcompress.anatomy import Activation
from tcompress.compress.product_inputs import Product
from tcompress.compress.static_inputs import StaticInput, StaticInputs
from tcompress.errors import ExportError
from tcompress.plain import PlainEmbedding, PlainEncoder, PlainHead, PlainLayer
from tcompress.plan import Precision
from tcompress.preprocessing import TOKEN_TYPES
from tcompress.transformer import Pooling

from . import (  # they register their operators
    terms_disentangled,  # noqa: F401
    terms_relative,  # noqa: F401
    terms_rotary,  # noqa: F401
)
from .onnx_patches import patches
from .onnx_terms import HIDDEN, rotated, scaled, term_bias
from .onnx_writer import CONTRIB, GraphWriter, Quantized

OPSET = 23  # the first with Attention
_IR_VERSION = 11
_ACTIVATION_OPS: dict[Activation, tuple[str, str]] = {
    Activation.RELU: ("Relu", ""),
    Activation.GELU: ("Gelu", CONTRIB),
    Activation.GELU_TANH: ("FastGelu", CONTRIB),
    Activation.TANH: ("Tanh", ""),
}
# What torch.nn.functional.normalize divides by at least.
_LEAST_LENGTH = np.array(1e-12, np.float32)
_Inputs = dict[Product, StaticInput | None]


def write_onnx(
    deployed: PlainEncoder,
    path: Path,
    *,
    metadata: dict[str, str],
    reduce_range: bool = False,
    static: StaticInputs | None = None,
) -> None:
    """Write the encoder as one ONNX file with dynamic batch, and length where it varies.

    Args:
        deployed: The encoder.
        path: The file.
        metadata: What `session.get_modelmeta().custom_metadata_map` is to say.
        reduce_range: Whether int8 weights use 7 bits, for CPUs whose int8 products saturate.
        static: How the inputs of int8 products are quantized; None for the range in each call.

    Raises:
        ExportError: If the plan asks for bf16, or the file does not hold the operators that the
            plan asks for.
    """
    if deployed.linears_in(Precision.BF16):
        msg = (
            "ONNX Runtime has no bf16 products on a CPU, so parity could not be checked; quantize "
            "--precision fp16, or export --format torchscript or program"
        )
        raise ExportError(msg)
    writer = GraphWriter(reduce_range=reduce_range)
    with writer.scope("embedding"):
        x = _embedding(writer, deployed)
    with writer.scope("mask"):
        masks = _Masks.of(writer) if deployed.masked else None
    for index, layer in zip(deployed.order, deployed.applied, strict=True):
        with writer.scope(f"layer.{index}"):
            known = {product: (static or {}).get((index, product)) for product in Product}
            x = _layer(writer, layer, x, masks, known)
    if deployed.final_norm is not None:
        x = writer.layer_norm(x, "final_norm", deployed.final_norm)
    with writer.scope("head"):
        _head(writer, deployed.head, x, masked=deployed.masked)
    model = _model(writer, deployed, metadata)
    _check_operators(deployed, writer.nodes)
    onnx.checker.check_model(model)
    storage.write_bytes(path, model.SerializeToString(deterministic=True))


def expected_operators(deployed: PlainEncoder) -> Counter[str]:
    """Return how many operators of each kind that matters the file has to hold.

    Args:
        deployed: The encoder.
    """
    return Counter(
        {
            "Attention": sum(layer.num_heads > 0 for layer in deployed.applied),
            "MatMulIntegerToFloat": sum(
                len(layer.linears_in(Precision.INT8)) for layer in deployed.applied
            ),
        }
    )


def _check_operators(deployed: PlainEncoder, nodes: Sequence[onnx.NodeProto]) -> None:
    found = Counter(node.op_type for node in nodes)
    for op, count in expected_operators(deployed).items():
        if found[op] != count:
            msg = f"the ONNX graph has {found[op]} {op} nodes, the plan asks for {count}"
            raise ExportError(msg)


def _embedding(writer: GraphWriter, deployed: PlainEncoder) -> str:
    module, main = deployed.embedding, deployed.main_input
    int8 = bool(deployed.linears_in(Precision.INT8))
    if isinstance(module.tokens, nn.Embedding):
        x = writer.rows("tokens", module.tokens.weight, main, int8=int8)
    elif isinstance(module.tokens, nn.Conv2d):
        x = patches(writer, module, main)
    else:
        x = writer.linear(main, "tokens", module.tokens)
    if module.scale != 1:
        x = writer.node("Mul", x, writer.weight("scale", np.array(module.scale, np.float32)))
    if module.positions is not None and module.fixed_tokens is None:
        positions = _positions(writer, module, main)
        table = cast("Tensor", module.positions)
        x = writer.node("Add", x, writer.rows("positions", table, positions, int8=int8))
    if module.token_types is not None:
        x = writer.node("Add", x, _token_types(writer, module.token_types))
    if module.projects_first and module.projection is not None:
        x = writer.linear(x, "projection", module.projection)
    x = writer.layer_norm(x, "norm", module.norm)
    if module.projection is not None and not module.projects_first:
        x = writer.linear(x, "projection", module.projection)
    return x


def _positions(writer: GraphWriter, module: PlainEmbedding, main: str) -> str:
    """Row numbers in the table of positions, `(tokens,)` or `(batch, tokens)`."""
    if module.padding_id is None:
        zero, one = (writer.weight(f"{n}", np.array(n)) for n in (0, 1))
        length = writer.node("Gather", writer.node("Shape", main), one)
        return writer.node("Range", zero, length, one)
    padding = writer.weight("padding_id", np.array(module.padding_id))
    is_padding = writer.node("Equal", main, padding)
    real = writer.cast(writer.node("Not", is_padding), TensorProto.INT64)
    counted = writer.node("CumSum", real, writer.weight("token_axis", np.array(1)))
    return writer.node("Add", writer.node("Mul", counted, real), padding)


def _range(writer: GraphWriter, start: int, stop: int) -> tuple[str, str]:
    return (
        writer.weight(f"index_{start}", np.array([start])),
        writer.weight(f"index_{stop}", np.array([stop])),
    )


def _token_types(writer: GraphWriter, table: nn.Embedding) -> str:
    return writer.rows("token_types", table.weight, TOKEN_TYPES, int8=False)


@dataclass(frozen=True)
class _Masks:
    """What is added to attention scores: 0 at real tokens, hugely negative at padding.

    Attributes:
        one_query: `(batch, 1, 1, tokens)`, for one token that attends to all.
        every_query: `(batch, 1, tokens, tokens)`.
    """

    one_query: str
    every_query: str

    @classmethod
    def of(cls, writer: GraphWriter) -> "_Masks":
        """Write both from the attention mask."""
        padding = writer.node("Equal", "attention_mask", writer.weight("zero", np.array(0)))
        hidden = writer.weight("hidden", np.array(HIDDEN, np.float32))
        bias = writer.node("Mul", writer.cast(padding, TensorProto.FLOAT), hidden)
        bias = writer.node("Unsqueeze", bias, writer.weight("head_axes", np.array([1, 2])))
        shape = writer.node("Shape", "attention_mask")
        tokens = writer.node("Slice", shape, *_range(writer, 1, 2))
        one = writer.weight("one", np.array([1]))
        size = writer.node("Concat", one, one, tokens, one, axis=0)
        return cls(bias, writer.node("Expand", bias, size))

    def of_layer(self, layer: PlainLayer) -> str:
        """Return the one that a layer needs."""
        return self.one_query if layer.first_only else self.every_query


def _layer(
    writer: GraphWriter, layer: PlainLayer, x: str, masks: _Masks | None, inputs: _Inputs
) -> str:
    stream = _read_tokens(writer, layer, x)
    if layer.norm_first:
        normed = writer.layer_norm(x, "attention_norm", layer.attention_norm)
        source = _read_tokens(writer, layer, normed)
        attended = _attention(writer, layer, normed, source, masks, inputs)
        normed, stream = writer.added(attended, stream, "ffn_norm", layer.ffn_norm)
        return writer.node("Add", stream, _feed_forward(writer, layer, normed, inputs))
    attended = _attention(writer, layer, x, stream, masks, inputs)
    x, _ = writer.added(stream, attended, "attention_norm", layer.attention_norm)
    fed = _feed_forward(writer, layer, x, inputs)
    return writer.added(x, fed, "ffn_norm", layer.ffn_norm)[0]


def _read_tokens(writer: GraphWriter, layer: PlainLayer, x: str) -> str:
    """The tokens whose output is read: all, or the first."""
    if not layer.first_only:
        return x
    axis = writer.weight("token_axis", np.array([1]))
    return writer.node("Slice", x, *_range(writer, 0, 1), axis)


def _attention(
    writer: GraphWriter,
    layer: PlainLayer,
    x: str,
    source: str,
    masks: _Masks | None,
    inputs: _Inputs,
) -> str:
    """Attend from the tokens in `source` to those in `x`."""
    with writer.scope("attention"):
        if layer.num_heads == 0:
            return _constant(writer, layer.output)
        products = _Products(writer, layer.attention_precision)
        read = products.enter(x, "input", inputs[Product.ATTENTION_INPUT])
        asking = read
        if source != x:
            asking = products.enter(source, "first_input", inputs[Product.ATTENTION_INPUT])
        q = products.linear(asking, "query", layer.query)
        k, v = products.linear(read, "key", layer.key), products.linear(read, "value", layer.value)
        mask = None if masks is None else products.enter_as_is(masks.of_layer(layer))
        attrs: dict[str, Any] = {"q_num_heads": layer.num_heads, "kv_num_heads": layer.num_heads}
        if layer.terms is not None:
            attrs |= scaled(layer.terms)
            extra = term_bias(layer.terms, writer, layer, q, k)
            q, k = rotated(layer.terms, writer, layer, q, k)
            if extra is not None:
                mask = _sum(writer, mask, extra)
        mixed = writer.node("Attention", q, k, v, *(() if mask is None else (mask,)), **attrs)
        joined = products.inner(mixed, "mixed", inputs[Product.MIXED])
        return products.leave(products.linear(joined, "output", layer.output))


def _sum(writer: GraphWriter, mask: str | None, extra: str) -> str:
    """Return the mask with a term on top; layers that share both share the sum."""
    if mask is None:
        return extra
    return writer.shared(f"{mask}+{extra}", lambda: writer.node("Add", mask, extra))


def _feed_forward(writer: GraphWriter, layer: PlainLayer, x: str, inputs: _Inputs) -> str:
    with writer.scope("feed_forward"):
        if layer.num_neurons == 0:
            return _constant(writer, layer.ffn_out)
        products = _Products(writer, layer.ffn_precision)
        read = products.enter(x, "input", inputs[Product.FFN_INPUT])
        hidden = _activation(writer, layer.activation, products.linear(read, "in", layer.ffn_in))
        if layer.gate is not None:
            hidden = writer.node("Mul", hidden, products.linear(read, "gate", layer.gate))
        gathered = products.inner(hidden, "hidden", inputs[Product.HIDDEN])
        return products.leave(products.linear(gathered, "out", layer.ffn_out))


@dataclass(frozen=True)
class _Products:
    """The matrix products of one sublayer, in its precision; the stream around them is fp32.

    Attributes:
        writer: Collects the operators.
        precision: `fp32`, `int8` or `fp16`.
    """

    writer: GraphWriter
    precision: Precision

    def enter(self, x: str, name: str, static: StaticInput | None) -> str | Quantized:
        """Turn a part of the stream into what the first products read."""
        if self.precision is Precision.INT8:
            return self.writer.quantized(x, name, static)
        return self.enter_as_is(x)

    def enter_as_is(self, x: str) -> str:
        """Turn a part of the stream into what floating-point operators of the sublayer read."""
        half = self.precision is Precision.FP16
        return self.writer.cast(x, TensorProto.FLOAT16) if half else x

    def inner(self, x: str, name: str, static: StaticInput | None) -> str | Quantized:
        """Turn a result from inside the sublayer into what its last product reads."""
        int8 = self.precision is Precision.INT8
        return self.writer.quantized(x, name, static) if int8 else x

    def linear(self, x: str | Quantized, name: str, linear: nn.Module | None) -> str:
        """Multiply."""
        half = self.precision is Precision.FP16
        return self.writer.linear(x, name, cast("nn.Linear", linear), half=half)

    def leave(self, x: str) -> str:
        """Turn the result into a part of the stream."""
        half = self.precision is Precision.FP16
        return self.writer.cast(x, TensorProto.FLOAT) if half else x


def _constant(writer: GraphWriter, linear: nn.Linear) -> str:
    """What remains of a dropped sublayer: its output bias, the same for every token."""
    bias = np.zeros(linear.out_features, np.float32) if linear.bias is None else linear.bias
    return writer.weight("constant", bias)


def _activation(writer: GraphWriter, activation: Activation, x: str) -> str:
    if activation is Activation.SILU:
        return writer.node("Mul", x, writer.node("Sigmoid", x))
    op, domain = _ACTIVATION_OPS[activation]
    return writer.node(op, x, domain=domain)


def _head(writer: GraphWriter, head: PlainHead, x: str, *, masked: bool) -> None:
    pooled = _pooled(writer, head.pooling, x, masked=masked)
    pooled = writer.layer_norm(pooled, "norm", head.norm)
    for index, stage in enumerate(head.stages):
        pooled = writer.linear(pooled, f"{index}", stage.linear)
        if stage.activation is not None:
            pooled = _activation(writer, stage.activation, pooled)
        pooled = writer.layer_norm(pooled, f"{index}.norm", stage.norm)
    if head.normalize:
        pooled = _normalized(writer, pooled)
    writer.nodes.append(helper.make_node("Identity", [pooled], ["logits"], name="logits"))


def _pooled(writer: GraphWriter, pooling: Pooling, x: str, *, masked: bool) -> str:
    if pooling is Pooling.NONE:
        return x
    if pooling is Pooling.FIRST:
        return writer.node("Gather", x, writer.weight("first", np.array(0)), axis=1)
    axes = writer.weight("axes", np.array([1]))
    if pooling in (Pooling.FIRST_TWO, Pooling.FIRST_PAIR):
        x = writer.node("Slice", x, *_range(writer, 0, 2), axes)
    if pooling is Pooling.FIRST_PAIR:
        return writer.node("Flatten", x, axis=1)
    if not masked or pooling is Pooling.FIRST_TWO:
        op = "ReduceMax" if pooling is Pooling.MAX else "ReduceMean"
        return writer.node(op, x, axes, keepdims=0)
    weights = writer.cast("attention_mask", TensorProto.FLOAT)
    weights = writer.node("Unsqueeze", weights, writer.weight("last_axis", np.array([-1])))
    if pooling is Pooling.MAX:
        real = writer.cast(weights, TensorProto.BOOL)
        lowest = writer.weight("lowest", np.array(np.finfo(np.float32).min))
        return writer.node("ReduceMax", writer.node("Where", real, x, lowest), axes, keepdims=0)
    total = writer.node("ReduceSum", writer.node("Mul", x, weights), axes, keepdims=0)
    count = writer.node("ReduceSum", weights, axes, keepdims=0)
    count = writer.node("Max", count, writer.weight("one", np.array(1, np.float32)))
    return writer.node("Div", total, count)


def _normalized(writer: GraphWriter, x: str) -> str:
    """Scale to length 1."""
    length = writer.node("ReduceL2", x, writer.weight("last_axis", np.array([-1])), keepdims=1)
    return writer.node("Div", x, writer.node("Max", length, writer.weight("least", _LEAST_LENGTH)))


def _model(
    writer: GraphWriter, deployed: PlainEncoder, metadata: dict[str, str]
) -> onnx.ModelProto:
    inputs = []
    for name in deployed.input_names:
        shape: list[str | int] = ["batch", "tokens"]
        kind = TensorProto.INT64
        if name == deployed.main_input and isinstance(deployed.embedding.tokens, nn.Linear):
            shape.append(deployed.embedding.tokens.in_features)
            kind = TensorProto.FLOAT
        if input_shape := deployed.embedding.input_shape:
            shape, kind = ["batch", *input_shape], TensorProto.FLOAT
        inputs.append(helper.make_tensor_value_info(name, kind, shape))
    stages = deployed.head.stages
    channels = stages[-1].linear.out_features if stages else deployed.hidden_size
    shape = ["batch", deployed.embedding.fixed_tokens or "tokens", channels]
    if deployed.head.pooling is not Pooling.NONE:
        del shape[1]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
    graph = helper.make_graph(
        writer.nodes, "encoder", inputs, [logits], initializer=list(writer.weights.values())
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="tcompress"
    )
    helper.set_model_props(model, metadata)
    return model
