"""Files traced from a user's own module, where its pieces are not all that it computes.

The plain form cannot stand for such a module, so its own forward is recorded, with dynamic batch
and length. What the plan runs in int8 becomes the format's dynamic int8.
"""

import copy
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.export import Dim

from tcompress import storage
from tcompress.compress.precision import HalfLinear, dynamic_int8, replace_modules_
from tcompress.encoder import Encoder, logits_of
from tcompress.errors import ExportError, MissingExtraError
from tcompress.plain import HALVES, plain
from tcompress.plan import Precision
from tcompress.runtime import (
    ONNX_KIND,
    OPENVINO_KIND,
    TORCHSCRIPT_KIND,
    ignoring_torchscript_deprecation,
)

from .program import Int8Linear, save_program

_OPSET = 18
_UNLIMITED = 512


class Positional(nn.Module):
    """A model that takes its inputs in order.

    Args:
        model: The model.
        input_names: Names of its inputs.
    """

    def __init__(self, model: nn.Module, input_names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.input_names = input_names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Answer.

        Args:
            inputs: The inputs in the order of `input_names`.

        Returns:
            Logits, `(batch, labels)`.
        """
        return logits_of(self.model, dict(zip(self.input_names, inputs, strict=True)))


def write_traced(encoder: Encoder, kind: str, path: Path, metadata: dict[str, str]) -> None:
    """Write an encoder by recording its own forward.

    Args:
        encoder: The encoder, on the CPU; not changed.
        kind: `onnx`, `torchscript` or `program`.
        path: The file.
        metadata: What an ONNX file is to say about itself.

    Raises:
        ExportError: If the format or a precision cannot be written that way, or the module cannot
            be recorded with varying batch and length.
        MissingExtraError: If onnxscript is not installed and an ONNX file is asked for.
    """
    _check(encoder, kind)
    examples = encoder.example_tensors(3, 7)
    module = Positional(_lowered(encoder, kind), tuple(examples)).eval()
    inputs = tuple(examples.values())
    with _recording(encoder, kind), torch.no_grad():
        if kind == TORCHSCRIPT_KIND:
            with ignoring_torchscript_deprecation():
                traced = torch.jit.trace(module, inputs, check_trace=False)
                frozen = torch.jit.freeze(traced)
            storage.write_stream(path, partial(torch.jit.save, frozen))
            return
        program = torch.export.export(module, inputs, dynamic_shapes=_shapes(encoder, len(inputs)))
        if kind == ONNX_KIND:
            _write_onnx(encoder, program, module.input_names, path, metadata)
        else:
            save_program(program, path)


def _check(encoder: Encoder, kind: str) -> None:
    used = encoder.plan.precisions
    if kind == OPENVINO_KIND or (kind == ONNX_KIND and used & HALVES.keys()):
        what = "OpenVINO" if kind == OPENVINO_KIND else "a half ONNX file"
        msg = (
            f"{what} is written from plain encoders only, and this module's own forward does "
            "more; export --format onnx in fp32 or int8, torchscript or program"
        )
        raise ExportError(msg)
    if kind == ONNX_KIND and find_spec("onnxscript") is None:
        raise MissingExtraError("own-modules", "an ONNX file traced from a module of your own")


def _lowered(encoder: Encoder, kind: str) -> nn.Module:
    """Return a copy of the model with the plan's precisions; ONNX files get their int8 later."""
    made = copy.deepcopy(encoder)
    linears = plain(made, whole=False)
    replacements: dict[nn.Linear, nn.Module] = {}
    for precision, dtype in HALVES.items():
        for linear in linears.linears_in(precision):
            replacements[linear] = HalfLinear.of(linear, dtype)
    if kind != ONNX_KIND:
        to_int8 = dynamic_int8 if kind == TORCHSCRIPT_KIND else Int8Linear
        for linear in linears.linears_in(Precision.INT8):
            replacements[linear] = to_int8(linear)
    replace_modules_(made.model, replacements)
    return made.model


def _shapes(encoder: Encoder, count: int) -> tuple[tuple[dict[int, Any], ...]]:
    longest = encoder.anatomy.embedding.max_tokens or _UNLIMITED
    shape = {0: Dim("batch"), 1: Dim("tokens", max=longest)}
    return ((shape,) * count,)


def _write_onnx(
    encoder: Encoder,
    program: Any,
    input_names: tuple[str, ...],
    path: Path,
    metadata: dict[str, str],
) -> None:
    exported = torch.onnx.export(
        program,
        input_names=list(input_names),
        output_names=["logits"],
        opset_version=_OPSET,
        dynamo=True,
        optimize=False,  # folding would rename the weights that int8 has to find
        verbose=False,
    )
    model = cast("Any", exported).model_proto
    weights = {id(linear) for linear in plain(encoder, whole=False).linears_in(Precision.INT8)}
    names = [f"model.{name}" for name, m in encoder.model.named_modules() if id(m) in weights]
    if names:
        model = _quantized(model, names)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    storage.write_bytes(path, model.SerializeToString(deterministic=True))


def _quantized(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """Lower the products of some projections to ONNX Runtime's dynamic int8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _transpose_weights_(model, {f"{name}.weight" for name in names})
    del model.graph.value_info[:]  # the exporter's shapes and the quantizer's contradict
    weights = {f"{name}.weight" for name in names}
    products = [
        node.name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm") and weights & set(node.input)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        before, after = Path(scratch) / "fp32.onnx", Path(scratch) / "int8.onnx"
        storage.write_with(before, partial(onnx.save, model))
        quantize_dynamic(
            before,
            after,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=products,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        made = onnx.load(after)
    integer = sum(node.op_type == "MatMulInteger" for node in made.graph.node)
    if integer != len(names):
        msg = f"the traced graph has {integer} int8 products, the plan asks for {len(names)}"
        raise ExportError(msg)
    return made


def _transpose_weights_(model: onnx.ModelProto, names: set[str]) -> None:
    """Put transposed weights in the places of weights that are only read transposed."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type == "Transpose" and node.input[0] in names:
            name, alias = node.input[0], node.output[0]
            turned = np.ascontiguousarray(numpy_helper.to_array(stored[name]).T)
            stored[name].CopyFrom(numpy_helper.from_array(turned, name))
            model.graph.node.remove(node)
            for reader in model.graph.node:
                inputs = [name if given == alias else given for given in reader.input]
                reader.input[:] = inputs


@contextmanager
def _recording(encoder: Encoder, kind: str) -> Iterator[None]:
    """Silence what the recorders warn of, and say whose fault a failure is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ExportError:
        raise
    except Exception as error:  # the recorders and the user's code raise many kinds
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        msg = (
            f"{encoder.directory}: its forward cannot be recorded as {kind} with varying batch "
            f"and length: {reason}"
        )
        raise ExportError(msg) from error
