"""Precisions in a plan, and what they mean in PyTorch."""

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from tcompress.encoder import Encoder
from tcompress.plan import Precision


def int8_linears(encoder: Encoder) -> list[nn.Linear]:
    """Return the projections that the encoder's plan runs in int8.

    Projections of sublayers that were dropped are left out; there is nothing to multiply.

    Args:
        encoder: The encoder.
    """
    linears: list[nn.Linear] = []
    for layer, plan in zip(encoder.anatomy.layers, encoder.plan.layers, strict=True):
        if plan.attention is Precision.INT8:
            linears += [*layer.projections(), layer.output]
        if plan.feed_forward is Precision.INT8:
            linears += [layer.ffn_in, layer.ffn_out]
    return [linear for linear in linears if linear.in_features and linear.out_features]


def apply_precision_(encoder: Encoder) -> None:
    """Make the plan's int8 real in PyTorch, in place, with torch's dynamic int8 kernels.

    Args:
        encoder: The encoder; its int8 projections are replaced and can no longer be trained,
            pruned or saved.
    """
    quantize_linears_(encoder.model, int8_linears(encoder))


def quantize_linears_(model: nn.Module, linears: Collection[nn.Linear]) -> None:
    """Replace linear layers by torch's dynamic int8 ones, in place.

    Weights are int8, per output channel; activations are quantized per tensor as they come.

    Args:
        model: The module that holds them.
        linears: Which ones; each has at least one input and one output channel.
    """
    from torch.ao.nn.quantized import dynamic
    from torch.ao.quantization import per_channel_dynamic_qconfig

    lowered: dict[nn.Module, nn.Module] = {}
    with _ignoring_quantization_deprecation():
        for linear in linears:
            linear.qconfig = per_channel_dynamic_qconfig  # type: ignore[assignment]
            lowered[linear] = dynamic.Linear.from_float(linear)
            del linear.qconfig
    replace_modules_(model, lowered)


def replace_modules_(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put other modules in the places of some, in place.

    Args:
        model: The module that holds them.
        replacements: From the old module to the new one.
    """
    for name, module in list(model.named_modules()):
        if module in replacements:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, replacements[module])


@contextmanager
def _ignoring_quantization_deprecation() -> Iterator[None]:
    """Silence torch's notice that its eager quantization moves to torchao."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*quantiz.*deprecated")
        yield
