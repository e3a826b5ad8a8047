"""What values the inputs of int8 products take, for scales that are fixed ahead of time."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from tcompress.errors import ArtifactError, CalibrationError
from tcompress.plain import PlainEncoder, PlainLayer
from tcompress.preprocessing import Batch

Range = tuple[float, float]
_BINS = 512
_CLIPS = torch.linspace(1.0, 0.3, 15, dtype=torch.float64)


class Product(StrEnum):
    """The four inputs of a layer's matrix products."""

    ATTENTION_INPUT = "attention_input"
    MIXED = "mixed"
    FFN_INPUT = "ffn_input"
    HIDDEN = "hidden"


Key = tuple[int, Product]
"""Layer and product."""


@dataclass(frozen=True)
class LayerRanges:
    """Ranges of one layer's product inputs; each contains 0. None where a sublayer is dropped.

    Attributes:
        attention_input: What queries, keys and values are computed from.
        mixed: What the output projection reads: the heads side by side, value biases left out.
        ffn_input: What the first FFN projection reads.
        hidden: What the second FFN projection reads: the neurons.
    """

    attention_input: Range | None
    mixed: Range | None
    ffn_input: Range | None
    hidden: Range | None

    def __post_init__(self) -> None:
        """Check that every range is finite, contains 0 and is not empty."""
        for name, found in asdict(self).items():
            if found is not None and not (
                -float("inf") < found[0] <= 0 <= found[1] < float("inf") and found[0] < found[1]
            ):
                msg = f"activation range {name} must be finite and contain 0, got {list(found)}"
                raise ArtifactError(msg)


@dataclass(frozen=True)
class ActivationRanges:
    """Ranges of the inputs of every layer's int8 products, (low, high) in the units of fp32.

    A u8 input q stands for scale * (q - zero), with scale = (high - low) / 255 and
    zero = round(-low / scale): low becomes 0, high 255, and 0.0 is exact. What lies outside is
    clipped. They hold for the encoder they were measured on, with its value biases folded into
    the output biases, as exports do.

    Attributes:
        layers: One entry per layer, first layer first.
    """

    layers: tuple[LayerRanges, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """Return the ranges as a JSON document."""
        return [
            {name: None if r is None else list(r) for name, r in asdict(layer).items()}
            for layer in self.layers
        ]

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Read the ranges back from `to_json`'s document.

        Args:
            document: The parsed JSON.

        Raises:
            ArtifactError: If the document does not hold ranges.
        """
        try:
            layers = [
                {p.value: _range_from_json(layer[p.value]) for p in Product} for layer in document
            ]
        except (KeyError, TypeError, ValueError) as error:
            msg = f"not activation ranges: {error!r}"
            raise ArtifactError(msg) from error
        return cls(tuple(LayerRanges(**layer) for layer in layers))


def _range_from_json(value: Any) -> Range | None:
    if value is None:
        return None
    low, high = value
    return float(low), float(high)


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

    _watch(module, batches, look)
    return extremes


@torch.no_grad()
def activation_ranges(
    module: PlainEncoder, batches: Iterable[Batch], *, clip: bool = True
) -> ActivationRanges:
    """Measure the ranges of all product inputs.

    Args:
        module: The encoder, its value biases folded.
        batches: Calibration batches, gone through twice; what stands at padding does not count.
        clip: Whether to give up rare extremes for a finer step: the range with the least mean
            squared error on the examples.

    Raises:
        CalibrationError: If there are no batches, or something is not finite.
    """
    batches = list(batches)
    bounds: dict[Key, Range] = {}

    def widen(key: Key, x: Tensor) -> None:
        low, high = bounds.get(key, (0.0, 0.0))
        bounds[key] = (min(low, float(x.min())), max(high, float(x.max())))

    _watch(module, batches, widen)
    # what is always 0 has no range; any step gives 0
    bounds = {key: (low, high if low < high else 1.0) for key, (low, high) in bounds.items()}
    if clip:
        counts = {key: torch.zeros(_BINS, dtype=torch.float64) for key in bounds}

        def count(key: Key, x: Tensor) -> None:
            low, high = bounds[key]
            counts[key] += torch.histc(x.float(), _BINS, low, high).double().cpu()

        _watch(module, batches, count)
        bounds = {key: least_error_range(counts[key], bounds[key]) for key in bounds}
    return ActivationRanges(
        tuple(
            LayerRanges(**{p.value: bounds.get((index, p)) for p in Product})
            for index in range(len(module.layers))
        )
    )


def least_error_range(counts: Tensor, bounds: Range) -> Range:
    """Return the range whose u8 rounding and clipping give the least mean squared error.

    Args:
        counts: Histogram of the values over `bounds`, `(bins,)`.
        bounds: Lowest and highest value; they contain 0.
    """
    low, high = bounds
    width = (high - low) / len(counts)
    centres = low + width * (torch.arange(len(counts), dtype=torch.float64) + 0.5)
    lows, highs = torch.cartesian_prod(_CLIPS * low, _CLIPS * high).T
    below = (lows[:, None] - centres).clamp(min=0)
    above = (centres - highs[:, None]).clamp(min=0)
    inside = (below + above) == 0
    rounding = ((highs - lows) / 255).square()[:, None] / 12
    errors = ((below + above).square() + inside * rounding) @ counts
    best = int(errors.argmin())
    return float(lows[best]), float(highs[best])


def _watch(
    module: PlainEncoder, batches: Iterable[Batch], look: Callable[[Key, Tensor], None]
) -> None:
    """Run the encoder and show `look` what products read at real tokens, `(rows, channels)`."""
    seen = False
    for batch in batches:
        inputs = [torch.from_numpy(batch[name]) for name in module.input_names]
        real = torch.from_numpy(batch["attention_mask"]) != 0
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
        rows = inputs[0][real[:, : inputs[0].shape[1]]]
        if not torch.isfinite(rows).all():
            msg = (
                f"layer {key[0]}: {key[1].value} holds values that are not finite on the "
                "calibration examples; check the weights and inputs"
            )
            raise CalibrationError(msg)
        look(key, rows)

    handles = [
        linear.register_forward_pre_hook(partial(show, key))
        for key, linear in _readers(module).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _readers(module: PlainEncoder) -> dict[Key, nn.Linear]:
    """One projection that reads each product input; none of dropped sublayers."""
    found: dict[Key, nn.Linear] = {}
    for index, each in enumerate(module.layers):
        layer = cast("PlainLayer", each)
        if layer.num_heads:
            found[index, Product.ATTENTION_INPUT] = cast("nn.Linear", layer.key)
            found[index, Product.MIXED] = layer.output
        if layer.num_neurons:
            found[index, Product.FFN_INPUT] = layer.ffn_in
            found[index, Product.HIDDEN] = layer.ffn_out
    return found
