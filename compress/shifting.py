"""Channels centred around zero before int8, where that changes no answer.

Channels of the residual stream that are always large and of one sign set the step of all others.
The idea is that of Outlier Suppression+, Wei et al. 2023, arXiv:2304.09145.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from tcompress.anatomy import Anatomy, LayerAnatomy
from tcompress.encoder import Encoder

from .product_inputs import Key, Product


@dataclass(frozen=True)
class Shift:
    """A place where a constant can be taken out of what products read.

    Attributes:
        key: Layer and product that reads the channels.
        given_by: What gives the channels and has a bias to take the constant from; None where
            nothing can.
        read_by: Projections that read them; their biases take up W times the constant.
        carried_to: Where the channels are carried past the sublayer, the projection whose output
            is added to them; its bias takes up the constant. None where nothing is carried.
    """

    key: Key
    given_by: nn.Module | None
    read_by: tuple[nn.Linear, ...]
    carried_to: nn.Linear | None

    @property
    def possible(self) -> bool:
        """Whether every module has the bias that it needs."""
        modules = [self.given_by, *self.read_by]
        modules += [] if self.carried_to is None else [self.carried_to]
        return all(isinstance(getattr(module, "bias", None), Tensor) for module in modules)

    def apply_(self, constant: Tensor) -> None:
        """Take a constant out of the channels, in place.

        Args:
            constant: `(channels,)`.
        """
        assert self.given_by is not None, "only possible shifts are applied"
        self.given_by.get_parameter("bias").sub_(constant)
        for linear in self.read_by:
            linear.bias.copy_(linear.bias.double() + linear.weight.double() @ constant.double())
        if self.carried_to is not None:
            self.carried_to.bias.add_(constant)


def shifts(anatomy: Anatomy) -> Iterator[Shift]:
    """Yield every place where channels can be shifted.

    A norm before its sublayer feeds nothing else. One behind a residual sum also feeds the next
    sum, W f + b + x, where b takes up what x lost, so that the next norm sees the same.

    Args:
        anatomy: The encoder's pieces.

    Yields:
        Places; those without the biases that it takes left out.
    """
    found = [shift for layer in anatomy.layers for shift in _before_ffn(layer)]
    if anatomy.shared_order:
        pass  # what a shared layer reads is given by several others, which cannot be shifted apart
    elif anatomy.layers and anatomy.layers[0].norm_first:
        found += [_before_attention(layer.attention_norm, layer) for layer in anatomy.layers]
    else:
        found += [_before_attention(a.ffn_norm, b) for a, b in pairwise(anatomy.layers)]
        embedding = anatomy.embedding
        projected = embedding.projection is not None and not embedding.projects_first
        source = embedding.projection if projected else embedding.norm
        if source is not None:
            found += [_before_attention(source, layer) for layer in anatomy.layers[:1]]
    yield from (shift for shift in found if shift.possible)


def _before_ffn(layer: LayerAnatomy) -> Iterator[Shift]:
    carried_to = None if layer.norm_first else layer.ffn_out
    norm = layer.ffn_norm if layer.norm_first else layer.attention_norm
    if layer.num_neurons:
        yield Shift((layer.index, Product.FFN_INPUT), norm, layer.ffn_readers(), carried_to)


def _before_attention(source: nn.Module | None, layer: LayerAnatomy) -> Shift:
    if layer.terms is not None and layer.terms.shares_projections:
        source = None  # a bias would reach the positions too
    carried_to = None if layer.norm_first else layer.output
    key = (layer.index, Product.ATTENTION_INPUT)
    return Shift(key, source, layer.projections(), carried_to)


@torch.no_grad()
def shift_(encoder: Encoder, extremes: Mapping[Key, Tensor]) -> None:
    """Centre the channels that products read, in place.

    Args:
        encoder: The encoder; its fp32 answers stay as they are, up to rounding.
        extremes: Lowest and highest value of each channel on calibration data, by layer and
            product, `(2, channels)`.
    """
    for shift in shifts(encoder.anatomy):
        if (found := extremes.get(shift.key)) is not None:
            shift.apply_(found.mean(0).to(encoder.device))
