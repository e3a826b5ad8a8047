"""OpenVINO models: the ONNX graph in fp32, converted, and calibrated to int8 where it is planned.

The plan decides alone: NNCF gets every other operator as ignored. Left to its rules it also
quantizes the classifier and the inputs of the attention products, which costs accuracy and wins no
time on a CPU.
"""

import logging
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, cast

import onnx
from torch import nn

from tcompress import storage
from tcompress.errors import CalibrationError, ExportError
from tcompress.plain import PlainEncoder, PlainLayer
from tcompress.plan import CompressionPlan, Precision
from tcompress.preprocessing import Batch
from tcompress.runtime import import_nncf, import_openvino

from .onnx_graph import write_onnx

_ATTENTION, _FEED_FORWARD = "attention", "feed_forward"
_TOKEN_TABLE = "embedding.tokens.weight"
# Operators that pass int8 values on as they are.
_TRANSPARENT = ("Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "VariadicSplit")
_DEQUANTIZING = ("Convert", "Multiply", "Reshape", "Subtract", "Transpose")


@dataclass(frozen=True)
class Converted:
    """An encoder as an OpenVINO model in fp32, with what it takes to lower parts of it.

    Attributes:
        model: The `openvino.Model`, with dynamic batch and length.
        products: The sublayer of each matrix product with weights, by the product's name.
        look_ups: Names of the operators that read the token table.
    """

    model: Any
    products: dict[str, str]
    look_ups: tuple[str, ...]


def convert(deployed: PlainEncoder) -> Converted:
    """Make an OpenVINO model of an encoder.

    Args:
        deployed: The encoder, every sublayer in fp32.

    Raises:
        MissingExtraError: If OpenVINO is not installed.
    """
    openvino = import_openvino()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        write_onnx(deployed, path, metadata={})
        graph = onnx.load(path).graph
        model = openvino.convert_model(path)
    look_ups = [n.name for n in graph.node if n.op_type == "Gather" and n.input[0] == _TOKEN_TABLE]
    return Converted(model, _sublayer_of_products(graph), tuple(look_ups))


def quantize(
    converted: Converted,
    planned: Counter[str],
    calibration: Sequence[Batch],
    *,
    reduce_range: bool = False,
) -> Any:
    """Lower the planned sublayers to int8.

    The token table goes along, with a scale per row: rows are looked up, not multiplied, and the
    table is most of a small encoder.

    Args:
        converted: The encoder in fp32.
        planned: Weights to be multiplied in int8, per sublayer, from `planned_int8_weights`.
        calibration: Inputs to take the ranges of activations from.
        reduce_range: Whether int8 weights use 7 bits, for CPUs whose int8 products saturate.

    Returns:
        The lowered `openvino.Model`.

    Raises:
        CalibrationError: If there is nothing to calibrate on.
        ExportError: If the model does not hold what is planned.
        MissingExtraError: If NNCF is not installed.
    """
    if not calibration:
        msg = "OpenVINO's int8 takes ranges of activations from examples, and got none; pass some"
        raise CalibrationError(msg)
    names = [name for name, sublayer in converted.products.items() if sublayer in planned]
    model = _lower(converted.model, [*names, *converted.look_ups], calibration, reduce_range)
    _check_int8_weights(int8_weights(model, converted.products), planned)
    return model


def save(model: Any, path: Path, metadata: dict[str, str]) -> None:
    """Write a model.

    Args:
        model: The `openvino.Model`.
        path: The `.xml` file; the weights go beside it, as `.bin`.
        metadata: What its `rt_info` is to say; dots in a key separate the levels.
    """
    for key, value in metadata.items():
        model.set_rt_info(value, key.split("."))
    save_model = partial(import_openvino().save_model, model, compress_to_fp16=False)
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    storage.write_with(path, save_model, sum(op.get_byte_size() for op in constants))


def check_precisions(plan: CompressionPlan) -> None:
    """Raise unless OpenVINO can run a plan's precisions.

    Args:
        plan: The plan.

    Raises:
        ExportError: If it cannot.
    """
    used = {p for layer in plan.layers for p in (layer.attention, layer.feed_forward)}
    if used <= {Precision.FP32, Precision.INT8} or used == {Precision.BF16}:
        return
    msg = (
        "OpenVINO runs fp32 and int8 side by side, or the whole encoder in bf16; the plan asks for "
        f"{', '.join(sorted(used))}: quantize to something of that, or export to another format"
    )
    raise ExportError(msg)


def planned_int8_weights(deployed: PlainEncoder, plan: CompressionPlan) -> Counter[str]:
    """Return how many weights the plan multiplies in int8, per sublayer that has any.

    Args:
        deployed: The encoder.
        plan: Its precisions.
    """
    planned: Counter[str] = Counter()
    for index, (module, precisions) in enumerate(zip(deployed.layers, plan.layers, strict=True)):
        layer = cast("PlainLayer", module)
        if layer.num_heads and precisions.attention is Precision.INT8:
            linears = (layer.query, layer.key, layer.value, layer.output)
            weights = sum(cast("nn.Linear", linear).weight.numel() for linear in linears)
            planned[f"layer.{index}.{_ATTENTION}"] = weights * deployed.order.count(index)
        if layer.num_neurons and precisions.feed_forward is Precision.INT8:
            weights = sum(linear.weight.numel() for linear in layer.ffn_linears)
            planned[f"layer.{index}.{_FEED_FORWARD}"] = weights * deployed.order.count(index)
    return planned


def int8_weights(model: Any, products: dict[str, str]) -> Counter[str]:
    """Return how many weights the model multiplies in int8, per sublayer that has any.

    A product counts when its weights are stored in int8 and its other input is quantized: the
    engine needs both.

    Args:
        model: An `openvino.Model`.
        products: The sublayer of each matrix product, by its name.
    """
    found: Counter[str] = Counter()
    for op in model.get_ops():
        if op.get_type_name() != "MatMul":
            continue
        weights = _origin(op.input_value(1), _DEQUANTIZING)
        is_int8 = weights.get_type_name() == "Constant" and weights.get_element_type().size == 1
        if is_int8 and _origin(op.input_value(0), _TRANSPARENT).get_type_name() == "FakeQuantize":
            name = op.get_friendly_name()
            found[products.get(name, name)] += math.prod(weights.get_output_shape(0))
    return found


def _origin(output: Any, passing: tuple[str, ...]) -> Any:
    """Walk up through operators of the given types; return the first of another type."""
    node = output.get_node()
    while node.get_type_name() in passing:
        node = node.input_value(0).get_node()
    return node


def _check_int8_weights(found: Counter[str], planned: Counter[str]) -> None:
    for name in sorted({*found, *planned}):
        if found[name] != planned[name]:
            msg = (
                f"the OpenVINO model multiplies {found[name]} weights of {name} in int8, "
                f"the plan asks for {planned[name]}"
            )
            raise ExportError(msg)


def _sublayer_of_products(graph: onnx.GraphProto) -> dict[str, str]:
    """Return to which sublayer each product with weights belongs, by the product's name."""
    weights = {tensor.name for tensor in graph.initializer}
    products = {
        node.name: node.input[1]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in weights
    }
    return {
        name: ".".join(weight.split(".")[:3])  # layer.0.attention.query.weight
        for name, weight in products.items()
        if weight.startswith("layer.")
    }


def _lower(
    model: Any, names: Sequence[str], calibration: Sequence[Batch], reduce_range: bool
) -> Any:
    """Lower the named operators to int8, and no other."""
    nncf = import_nncf()
    kept = {*names}
    ignored = [
        op.get_friendly_name()
        for op in model.get_ops()
        if op.get_type_name() not in ("Constant", "Parameter", "Result")
        and op.get_friendly_name() not in kept
    ]
    fix = nncf.OverflowFix.ENABLE if reduce_range else nncf.OverflowFix.DISABLE
    with _silenced(nncf):
        return nncf.quantize(
            model,
            nncf.Dataset(calibration),
            subset_size=len(calibration),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=ignored),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
        )


@contextmanager
def _silenced(nncf: Any) -> Iterator[None]:
    """Keep NNCF's bars and notes off stdout, which belongs to the command's result."""
    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(StringIO()):
        yield
