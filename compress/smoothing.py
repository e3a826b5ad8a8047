"""Outliers moved from activations into weights, where that changes no answer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tcompress.anatomy import Activation, LayerAnatomy
from tcompress.encoder import Encoder

from .product_inputs import Key, Product

_SMALLEST = 1e-5
# Channels that calibration hardly saw may be larger elsewhere: none counts as smaller than these
# parts of the median and of the largest.
_LEAST_OF_MEDIAN, _LEAST_OF_LARGEST = 0.1, 0.001


@dataclass(frozen=True)
class Fold:
    """Channels that one part of a layer gives and another reads, and nothing else reads.

    Attributes:
        product: The channels.
        given_by: Parameters whose first dimension is the channels; dividing all of them divides
            the channels.
        read_by: Projections whose input channels they are.
    """

    product: Product
    given_by: tuple[Tensor, ...]
    read_by: tuple[nn.Linear, ...]


def folds(layer: LayerAnatomy) -> Iterator[Fold]:
    """Yield the channels of a layer that can be scaled without changing an answer.

    Attention mixes tokens, not channels, so value channels can be; what a norm gives can be where
    it stands before its sublayer, since behind a residual sum it also feeds the stream; neurons
    can be behind a ReLU, as max(0, x / s) = max(0, x) / s, and behind a gate, as a (g / s) is
    a g / s.

    Args:
        layer: The layer.

    Yields:
        The channels; nothing of a sublayer that was dropped.
    """
    if layer.value is not None and layer.num_heads:
        yield Fold(Product.MIXED, _parameters(layer.value), (layer.output,))
    shared = layer.terms is not None and layer.terms.shares_projections
    reads_alone = layer.norm_first and layer.num_heads and not shared
    if reads_alone and (norm := _parameters(layer.attention_norm)):
        yield Fold(Product.ATTENTION_INPUT, norm, layer.projections())
    if layer.norm_first and layer.num_neurons and (norm := _parameters(layer.ffn_norm)):
        yield Fold(Product.FFN_INPUT, norm, layer.ffn_readers())
    if layer.gate is not None and layer.num_neurons:
        yield Fold(Product.HIDDEN, _parameters(layer.gate), (layer.ffn_out,))
    elif layer.activation is Activation.RELU and layer.num_neurons:
        yield Fold(Product.HIDDEN, _parameters(layer.ffn_in), (layer.ffn_out,))


def _parameters(module: nn.Module | None) -> tuple[Tensor, ...]:
    return () if module is None else tuple(module.parameters())


@torch.no_grad()
def smooth_(encoder: Encoder, extremes: Mapping[Key, Tensor], *, alpha: float = 0.5) -> None:
    """Even out channels before int8, in place: divide them by s, multiply what reads them by s.

    Args:
        encoder: The encoder; its fp32 answers stay as they are, up to rounding.
        extremes: Lowest and highest value of each channel on calibration data, by layer and
            product, `(2, channels)`.
        alpha: How much of the outliers moves, 0 to 1.

    Reference:
        SmoothQuant, Xiao et al. 2023, arXiv:2211.10438, equation 4.
    """
    for layer in encoder.anatomy.layers:
        for fold in folds(layer):
            if (found := extremes.get((layer.index, fold.product))) is not None:
                _scale_(fold, found.abs().amax(0), alpha)


def smoothing_scale(largest: Tensor, weights: Sequence[Tensor], alpha: float) -> Tensor:
    """Return what channels are divided by, and weights multiplied by, to even them out.

    s_j = max|x_j|^alpha / max|W_j|^(1 - alpha), x_j a channel and W_j all weights that read it.

    Args:
        largest: Largest magnitude of each channel, `(channels,)`.
        weights: Matrices that read the channels, each `(out, channels)`.
        alpha: How much of the outliers moves, 0 to 1.

    Returns:
        `(channels,)`, above 0.
    """
    x = largest.to(weights[0].device)
    least = max(_LEAST_OF_MEDIAN * float(x.median()), _LEAST_OF_LARGEST * float(x.max()))
    x = x.clamp(min=max(_SMALLEST, least))
    w = torch.cat([weight.abs() for weight in weights]).amax(0)
    return x**alpha / w.clamp(min=_SMALLEST) ** (1 - alpha)


def _scale_(fold: Fold, largest: Tensor, alpha: float) -> None:
    scale = smoothing_scale(largest, [linear.weight for linear in fold.read_by], alpha)
    for parameter in fold.given_by:
        parameter.div_(scale if parameter.dim() == 1 else scale[:, None])
    for linear in fold.read_by:
        linear.weight.mul_(scale)


@torch.no_grad()
def fold_value_biases_(encoder: Encoder) -> None:
    """Move value biases behind the attention, in place, as every export does.

    Attention weights sum to 1, so W_O (A W_V x + b_V) + b_O = W_O A W_V x + (W_O b_V + b_O); the
    channels that int8 sees are smaller without them.

    Args:
        encoder: The encoder; its answers stay as they are, up to rounding.
    """
    for layer in encoder.anatomy.layers:
        value, output = layer.value, layer.output
        if value is None or value.bias is None or output.bias is None or layer.num_heads == 0:
            continue
        moved = output.weight.double() @ value.bias.double() + output.bias.double()
        output.bias.copy_(moved)
        value.bias.zero_()
