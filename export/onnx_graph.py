"""ONNX graphs written for ONNX Runtime, operator by operator.

Nothing is traced and nothing is left to pattern matching: the writer emits the fused operators of
the runtime with the head count of each layer, so uneven layers cost nothing, and it knows what
the file holds.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from tcompress.anatomy import Activation
from tcompress.errors import ExportError
from tcompress.plain import PlainEmbedding, PlainEncoder, PlainHead, PlainLayer
from tcompress.plan import Precision
from tcompress.preprocessing import TOKEN_TYPES
from tcompress.transformer import Pooling

from .onnx_int8 import quantize_weight

OPSET = 17
_IR_VERSION = 8
_CONTRIB = "com.microsoft"
_ACTIVATION_OPS: dict[Activation, tuple[str, str]] = {
    Activation.RELU: ("Relu", ""),
    Activation.GELU: ("Gelu", _CONTRIB),
    Activation.GELU_TANH: ("FastGelu", _CONTRIB),
    Activation.TANH: ("Tanh", ""),
}
Array = npt.NDArray[Any]


class GraphWriter:
    """Collects nodes and weights; names nodes by where they belong.

    Args:
        reduce_range: Whether int8 weights use 7 bits, for CPUs whose int8 products saturate.
    """

    def __init__(self, *, reduce_range: bool = False) -> None:
        self.reduce_range = reduce_range
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.scope = ""

    def weight(self, name: str, value: Tensor | Array | Sequence[Any]) -> str:
        """Add a constant.

        Args:
            name: Its name below the scope.
            value: Its value.

        Returns:
            Its full name.
        """
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        full = f"{self.scope}{name}"
        if full not in self.weights:
            self.weights[full] = numpy_helper.from_array(np.array(array, order="C"), full)
        return full

    def node(self, op: str, *inputs: str, domain: str = "", outputs: int = 1, **attrs: Any) -> str:
        """Add an operator.

        Args:
            op: Its type.
            inputs: Names of its inputs; empty for one that is left out.
            domain: Its domain; empty for standard ONNX.
            outputs: How many outputs it has.
            attrs: Its attributes.

        Returns:
            Name of its first output; output i > 0 is that name with `:i` behind it.
        """
        name = f"{self.scope}{op}_{len(self.nodes)}"
        names = [name, *(f"{name}:{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(op, inputs, names, name=name, domain=domain, **attrs))
        return name

    def linear(self, x: str, name: str, weight: Tensor, bias: Tensor | None, *, int8: bool) -> str:
        """Add a linear layer.

        Args:
            x: Its input, `(..., in)`.
            name: Name of its weights below the scope.
            weight: `(out, in)`, as PyTorch keeps it.
            bias: `(out,)`, or None.
            int8: Whether to multiply in int8, with activations quantized as they come.

        Returns:
            Its output, `(..., out)`.
        """
        bias_name = "" if bias is None else self.weight(f"{name}.bias", bias)
        if int8:
            quantized, scale = quantize_weight(weight, reduce_range=self.reduce_range)
            b = self.weight(f"{name}.weight_int8", quantized)
            s = self.weight(f"{name}.weight_scale", scale)
            return self.node("DynamicQuantizeMatMul", x, b, s, "", bias_name, domain=_CONTRIB)
        product = self.node("MatMul", x, self.weight(f"{name}.weight", weight.t()))
        return product if bias is None else self.node("Add", product, bias_name)

    def layer_norm(self, x: str, name: str, norm: nn.LayerNorm) -> str:
        """Add a layer norm.

        Args:
            x: Its input.
            name: Name of its weights below the scope.
            norm: The norm.
        """
        gamma, beta = self._norm_weights(name, norm)
        return self.node("LayerNormalization", x, gamma, beta, axis=-1, epsilon=norm.eps)

    def added(self, x: str, skip: str, name: str, norm: nn.LayerNorm) -> tuple[str, str]:
        """Add a residual sum and its layer norm.

        Two operators: the runtime's fused SkipLayerNormalization takes three times as long on a
        CPU as the sum and the norm one after the other (ONNX Runtime 1.31).

        Args:
            x: One summand.
            skip: The other.
            name: Name of the norm's weights below the scope.
            norm: The norm.

        Returns:
            The normed sum, and the sum itself.
        """
        total = self.node("Add", x, skip)
        return self.layer_norm(total, name, norm), total

    def _norm_weights(self, name: str, norm: nn.LayerNorm) -> tuple[str, str]:
        gamma = self.weight(f"{name}.weight", norm.weight)
        bias = np.zeros(norm.normalized_shape, np.float32) if norm.bias is None else norm.bias
        return gamma, self.weight(f"{name}.bias", bias)


def write_onnx(
    deployed: PlainEncoder,
    path: Path,
    *,
    metadata: dict[str, str],
    reduce_range: bool = False,
) -> None:
    """Write the encoder as one ONNX file with dynamic batch and length.

    Args:
        deployed: The encoder.
        path: The file.
        metadata: What `session.get_modelmeta().custom_metadata_map` is to say.
        reduce_range: Whether int8 weights use 7 bits, for CPUs whose int8 products saturate.

    Raises:
        ExportError: If the file does not hold the operators that the plan asks for.
    """
    writer = GraphWriter(reduce_range=reduce_range)
    x = _embedding(writer, deployed.embedding, deployed.main_input)
    mask = writer.node("Cast", "attention_mask", to=TensorProto.INT32)
    for index, layer in enumerate(deployed.layers):
        writer.scope = f"layer.{index}."
        x = _layer(writer, cast("PlainLayer", layer), x, mask)
    writer.scope = "head."
    if deployed.final_norm is not None:
        x = writer.layer_norm(x, "norm", deployed.final_norm)
    _head(writer, deployed.head, x)
    model = _model(writer, deployed, metadata)
    _check_operators(deployed, writer.nodes)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def expected_operators(deployed: PlainEncoder) -> Counter[str]:
    """Return how many operators of each kind that matters the file has to hold.

    Args:
        deployed: The encoder.
    """
    layers = [cast("PlainLayer", layer) for layer in deployed.layers]
    products = 0
    for layer in layers:
        if layer.attention_precision is Precision.INT8 and layer.num_heads:
            products += 4 if layer.first_only else 2
        if layer.ffn_precision is Precision.INT8 and layer.num_neurons:
            products += 2
    return Counter(
        {
            "MultiHeadAttention": sum(layer.num_heads > 0 for layer in layers),
            "DynamicQuantizeMatMul": products,
        }
    )


def _check_operators(deployed: PlainEncoder, nodes: Sequence[onnx.NodeProto]) -> None:
    found = Counter(node.op_type for node in nodes)
    for op, count in expected_operators(deployed).items():
        if found[op] != count:
            msg = f"the ONNX graph has {found[op]} {op} nodes, the plan asks for {count}"
            raise ExportError(msg)


def _embedding(writer: GraphWriter, module: PlainEmbedding, main: str) -> str:
    writer.scope = "embedding."
    if isinstance(module.tokens, nn.Embedding):
        x = writer.node("Gather", writer.weight("tokens", module.tokens.weight), main)
    else:
        x = writer.linear(main, "tokens", module.tokens.weight, module.tokens.bias, int8=False)
    if module.positions is not None:
        x = writer.node("Add", x, _positions(writer, module, main))
    if module.token_types is not None:
        x = writer.node("Add", x, _token_types(writer, module.token_types))
    if module.norm is not None:
        x = writer.layer_norm(x, "norm", module.norm)
    if module.projection is not None:
        linear = module.projection
        x = writer.linear(x, "projection", linear.weight, linear.bias, int8=False)
    return x


def _positions(writer: GraphWriter, module: PlainEmbedding, main: str) -> str:
    table = writer.weight("positions", cast("Tensor", module.positions))
    if module.padding_id is None:
        length = writer.node("Slice", writer.node("Shape", main), *_range(writer, 1, 2))
        start, axis = writer.weight("zero", np.array([0])), writer.weight("axis", np.array([0]))
        return writer.node("Slice", table, start, length, axis)
    padding = writer.weight("padding_id", np.array(module.padding_id))
    is_padding = writer.node("Equal", main, padding)
    real = writer.node("Cast", writer.node("Not", is_padding), to=TensorProto.INT64)
    counted = writer.node("CumSum", real, writer.weight("token_axis", np.array(1)))
    positions = writer.node("Add", writer.node("Mul", counted, real), padding)
    return writer.node("Gather", table, positions)


def _range(writer: GraphWriter, start: int, stop: int) -> tuple[str, str]:
    return (
        writer.weight(f"index_{start}", np.array([start])),
        writer.weight(f"index_{stop}", np.array([stop])),
    )


def _token_types(writer: GraphWriter, table: nn.Embedding) -> str:
    return writer.node("Gather", writer.weight("token_types", table.weight), TOKEN_TYPES)


def _layer(writer: GraphWriter, layer: PlainLayer, x: str, mask: str) -> str:
    stream = _read_tokens(writer, layer, x)
    if layer.norm_first:
        normed = writer.layer_norm(x, "attention_norm", layer.attention_norm)
        source = _read_tokens(writer, layer, normed)
        attended = _attention(writer, layer, normed, source, mask)
        normed, stream = writer.added(attended, stream, "ffn_norm", layer.ffn_norm)
        return writer.node("Add", stream, _feed_forward(writer, layer, normed))
    attended = _attention(writer, layer, x, stream, mask)
    x, _ = writer.added(stream, attended, "attention_norm", layer.attention_norm)
    fed = _feed_forward(writer, layer, x)
    return writer.added(x, fed, "ffn_norm", layer.ffn_norm)[0]


def _read_tokens(writer: GraphWriter, layer: PlainLayer, x: str) -> str:
    """The tokens whose output is read: all, or the first."""
    if not layer.first_only:
        return x
    axis = writer.weight("token_axis", np.array([1]))
    return writer.node("Slice", x, *_range(writer, 0, 1), axis)


def _attention(writer: GraphWriter, layer: PlainLayer, x: str, source: str, mask: str) -> str:
    """Attend from the tokens in `source` to those in `x`."""
    if layer.num_heads == 0:
        return _constant(writer, "output.bias", layer.output)
    int8 = layer.attention_precision is Precision.INT8
    query, key, value = (
        cast("nn.Linear", linear) for linear in (layer.query, layer.key, layer.value)
    )
    if layer.first_only:
        q = writer.linear(source, "query", query.weight, query.bias, int8=int8)
        k = writer.linear(x, "key", key.weight, key.bias, int8=int8)
        v = writer.linear(x, "value", value.weight, value.bias, int8=int8)
    else:
        q, k, v = _merged_projections(writer, (query, key, value), x, int8=int8)
    mixed = writer.node(
        "MultiHeadAttention", q, k, v, "", mask, domain=_CONTRIB, num_heads=layer.num_heads
    )
    return writer.linear(mixed, "output", layer.output.weight, layer.output.bias, int8=int8)


def _merged_projections(
    writer: GraphWriter, linears: Sequence[nn.Linear], x: str, *, int8: bool
) -> tuple[str, str, str]:
    """Multiply by query, key and value matrices at once: one pass over the input.

    Only queries have a bias. The int8 product adds it as it rescales, zeros for the others
    included; in fp32 an addition is a pass of its own, over the queries only.
    """
    query, key, value = linears
    weight = torch.cat([linear.weight.detach() for linear in linears])
    bias = None if query.bias is None else query.bias.detach()
    if int8 and bias is not None:
        bias = functional.pad(bias, (0, key.out_features + value.out_features))
    merged = writer.linear(x, "qkv", weight, bias if int8 else None, int8=int8)
    q = writer.node("Split", merged, outputs=3, axis=-1)
    k, v = f"{q}:1", f"{q}:2"
    if bias is not None and not int8:
        q = writer.node("Add", q, writer.weight("query.bias", bias))
    return q, k, v


def _feed_forward(writer: GraphWriter, layer: PlainLayer, x: str) -> str:
    if layer.num_neurons == 0:
        return _constant(writer, "ffn_out.bias", layer.ffn_out)
    int8 = layer.ffn_precision is Precision.INT8
    hidden = writer.linear(x, "ffn_in", layer.ffn_in.weight, layer.ffn_in.bias, int8=int8)
    hidden = _activation(writer, layer.activation, hidden)
    return writer.linear(hidden, "ffn_out", layer.ffn_out.weight, layer.ffn_out.bias, int8=int8)


def _constant(writer: GraphWriter, name: str, linear: nn.Linear) -> str:
    """What remains of a dropped sublayer: its output bias, the same for every token."""
    bias = np.zeros(linear.out_features, np.float32) if linear.bias is None else linear.bias
    return writer.weight(name, bias)


def _activation(writer: GraphWriter, activation: Activation, x: str) -> str:
    if activation is Activation.SILU:
        return writer.node("Mul", x, writer.node("Sigmoid", x))
    op, domain = _ACTIVATION_OPS[activation]
    return writer.node(op, x, domain=domain)


def _head(writer: GraphWriter, head: PlainHead, x: str) -> None:
    pooled = _pooled(writer, head.pooling, x)
    stages = list(zip(head.linears, head.activations, strict=True))
    for index, (module, activation) in enumerate(stages):
        linear = cast("nn.Linear", module)
        pooled = writer.linear(pooled, f"{index}", linear.weight, linear.bias, int8=False)
        if activation is not None:
            pooled = _activation(writer, activation, pooled)
    writer.nodes.append(helper.make_node("Identity", [pooled], ["logits"], name="logits"))


def _pooled(writer: GraphWriter, pooling: Pooling, x: str) -> str:
    if pooling is Pooling.FIRST:
        return writer.node("Gather", x, writer.weight("first", np.array(0)), axis=1)
    axes = writer.weight("axes", np.array([1]))
    weights = writer.node("Cast", "attention_mask", to=TensorProto.FLOAT)
    weights = writer.node("Unsqueeze", weights, writer.weight("last_axis", np.array([-1])))
    total = writer.node("ReduceSum", writer.node("Mul", x, weights), axes, keepdims=0)
    count = writer.node("ReduceSum", weights, axes, keepdims=0)
    count = writer.node("Max", count, writer.weight("one", np.array(1, np.float32)))
    return writer.node("Div", total, count)


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
        inputs.append(helper.make_tensor_value_info(name, kind, shape))
    labels = cast("nn.Linear", deployed.head.linears[-1]).out_features
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", labels])
    graph = helper.make_graph(
        writer.nodes, "encoder", inputs, [logits], initializer=list(writer.weights.values())
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_CONTRIB, 1)]
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="tcompress"
    )
    helper.set_model_props(model, metadata)
    return model
