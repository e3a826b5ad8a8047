"""What the inputs of matrix products hold on calibration examples."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from tcompress.errors import CalibrationError
from tcompress.plain import PlainEncoder, PlainLayer
from tcompress.preprocessing import Batch, real_tokens


class Product(StrEnum):
    """The four inputs of a layer's matrix products."""

    ATTENTION_INPUT = "attention_input"
    MIXED = "mixed"
    FFN_INPUT = "ffn_input"
    HIDDEN = "hidden"


Key = tuple[int, Product]
"""Layer and product."""


@torch.no_grad()
def channel_extremes(module: PlainEncoder, batches: Iterable[Batch]) -> dict[Key, Tensor]:
    """Return the lowest and highest value of every channel that products read, `(2, channels)`.

    Args:
        module: The encoder.
        batches: Calibration batches; what stands at padding does not count.
    """
    extremes: dict[Key, Tensor] = {}

    def look(key: Key, x: Tensor) -> None:
        x = torch.cat([x, extremes[key]]) if key in extremes else x
        extremes[key] = torch.stack([x.amin(0), x.amax(0)])

    watch(module, batches, look)
    return extremes


def watch(
    module: PlainEncoder, batches: Iterable[Batch], look: Callable[[Key, Tensor], None]
) -> None:
    """Run an encoder and show what its products read.

    Args:
        module: The encoder.
        batches: Calibration batches.
        look: Gets layer and product, and what is read at real tokens, `(rows, channels)`.

    Raises:
        CalibrationError: If there are no batches, or something is not finite.
    """
    seen = False
    for batch in batches:
        inputs = [torch.from_numpy(batch[name]) for name in module.input_names]
        real = torch.from_numpy(real_tokens(batch, module.embedding.fixed_tokens))
        with _watching(module, real, look):
            module(*inputs)
        seen = True
    if not seen:
        msg = "calibration needs at least one example"
        raise CalibrationError(msg)


@contextmanager
def _watching(
    module: PlainEncoder, real: Tensor, look: Callable[[Key, Tensor], None]
) -> Iterator[None]:
    def show(key: Key, _linear: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        # one token is read whatever the mask says of it
        rows = x[:, 0] if x.shape[1] == 1 else x[real[:, : x.shape[1]]]
        if not torch.isfinite(rows).all():
            msg = (
                f"layer {key[0]}: {key[1].value} holds values that are not finite on the "
                "calibration examples; check the weights and inputs"
            )
            raise CalibrationError(msg)
        if len(rows):
            look(key, rows)

    handles = [
        linear.register_forward_pre_hook(partial(show, key))
        for key, linear in readers(module).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def readers(module: PlainEncoder) -> dict[Key, nn.Linear]:
    """Return one projection that reads each product input; none of dropped sublayers.

    Args:
        module: The encoder.
    """
    found: dict[Key, nn.Linear] = {}
    for index, each in enumerate(module.layers):
        layer = cast("PlainLayer", each)
        if layer.num_heads:
            # of the three the one that no positions pass through
            found[index, Product.ATTENTION_INPUT] = cast("nn.Linear", layer.value)
            found[index, Product.MIXED] = layer.output
        if layer.num_neurons:
            found[index, Product.FFN_INPUT] = layer.ffn_in
            found[index, Product.HIDDEN] = layer.ffn_out
    return found
