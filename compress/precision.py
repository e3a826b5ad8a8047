"""Precisions in a plan, and what they mean in PyTorch."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Self, TypeVar, cast

import torch
from torch import Tensor, nn

from tcompress.encoder import Encoder
from tcompress.plain import HALVES, PlainEncoder, PlainLayer, plain
from tcompress.plan import Precision

ToInt8 = Callable[[nn.Linear], nn.Module]
PlainT = TypeVar("PlainT", PlainEncoder, PlainLayer)


class HalfLinear(nn.Linear):
    """A linear layer that multiplies in half, between modules that compute in fp32."""

    @classmethod
    def of(cls, linear: nn.Linear, dtype: torch.dtype) -> Self:
        """Make it of another layer.

        Args:
            linear: The layer; not changed.
            dtype: The half format.
        """
        made = cls(linear.in_features, linear.out_features, device="meta")
        made.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
        made.bias = linear.bias
        if linear.bias is not None:
            made.bias = nn.Parameter(linear.bias.detach().to(dtype), requires_grad=False)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Multiply.

        Args:
            x: `(..., in)`.

        Returns:
            `(..., out)`, in the format of `x`.
        """
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class RuntimeInt8Linear(nn.Linear):
    """A linear layer with the rounding of ONNX Runtime's dynamic int8, computed in fp32.

    Weights are s8 per output channel, activations u8 per tensor as they come, in all 8 bits;
    torch's own kernels keep activations to 7.

    Args:
        linear: The layer; not changed.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight = _rounded(linear.weight)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Multiply.

        Args:
            x: `(..., in)`.

        Returns:
            `(..., out)`.
        """
        low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
        scale = ((high - low) / 255).clamp(min=torch.finfo(x.dtype).tiny)
        zero = (-low / scale).round().to(torch.int32)
        return super().forward(torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255))


def _rounded(matrix: Tensor) -> nn.Parameter:
    """Round a matrix to s8 with one scale per row."""
    matrix = matrix.detach()
    scale = (matrix.abs().amax(1) / 127).clamp(min=torch.finfo(matrix.dtype).tiny)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    rounded = torch.fake_quantize_per_channel_affine(matrix, scale, zero, 0, -127, 127)
    return nn.Parameter(rounded, requires_grad=False)


def runtime_int8(module: PlainEncoder) -> PlainEncoder:
    """Make the precisions of a plan real as an ONNX file has them, tables in int8 included.

    Args:
        module: The module; not changed.

    Returns:
        A copy; the module itself where all of it runs in fp32.
    """
    made = lowered(module, RuntimeInt8Linear)
    if module.linears_in(Precision.INT8):
        embedding = made.embedding
        if isinstance(embedding.tokens, nn.Embedding):
            embedding.tokens.weight = _rounded(embedding.tokens.weight)
        if embedding.positions is not None and embedding.fixed_tokens is None:
            embedding.positions = _rounded(cast("Tensor", embedding.positions)).data
    return made


def dynamic_int8(linear: nn.Linear) -> nn.Module:
    """Return torch's dynamic int8 form of a linear layer.

    Weights are s8 per output channel; activations u8 per tensor as they come, always kept to 7
    bits (`reduce_range`), so that no CPU saturates.

    Args:
        linear: The layer, with at least one input and one output channel.
    """
    from torch.ao.nn.quantized import dynamic
    from torch.ao.quantization import per_channel_dynamic_qconfig

    with _ignoring_quantization_deprecation():
        linear.qconfig = per_channel_dynamic_qconfig  # type: ignore[assignment]
        try:
            made: nn.Module = dynamic.Linear.from_float(linear)
        finally:
            del linear.qconfig
    return made


def lowered(module: PlainT, to_int8: ToInt8) -> PlainT:
    """Make the precisions of a plan real in a plain module.

    Args:
        module: The module; not changed.
        to_int8: Makes the int8 form of a linear layer.

    Returns:
        A copy; the module itself where all of it runs in fp32.
    """
    if not any(module.linears_in(p) for p in Precision if p is not Precision.FP32):
        return module
    module = copy.deepcopy(module)
    for layer in module.modules():
        # before weights lose precision: positions that they project are constants in every file
        if isinstance(layer, PlainLayer) and layer.terms is not None:
            layer.terms = layer.terms.folded()
    int8 = {linear: to_int8(linear) for linear in module.linears_in(Precision.INT8)}
    module.halve_()
    replace_modules_(module, int8)
    return module


def apply_precision_(encoder: Encoder) -> None:
    """Make the plan's precisions real in PyTorch, in place.

    int8 products run in torch's dynamic int8 kernels. Half products convert what they read and
    write, and the library's attention between them stays in fp32; exported files run it in half.

    Args:
        encoder: The encoder; its lowered projections are replaced and can no longer be trained,
            pruned or saved.
    """
    module = plain(encoder, whole=False)
    replacements = {linear: dynamic_int8(linear) for linear in module.linears_in(Precision.INT8)}
    for precision, dtype in HALVES.items():
        for linear in module.linears_in(precision):
            replacements[linear] = HalfLinear.of(linear, dtype)
    replace_modules_(encoder.model, replacements)


def replace_modules_(model: nn.Module, replacements: Mapping[nn.Linear, nn.Module]) -> None:
    """Put other modules in the places of linear layers, in place.

    Args:
        model: The module that holds them.
        replacements: From the old module to the new one.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module in replacements:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, replacements[module])


@contextmanager
def _ignoring_quantization_deprecation() -> Iterator[None]:
    """Silence torch's notice that its eager quantization moves to torchao."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*quantiz.*deprecated")
        yield
