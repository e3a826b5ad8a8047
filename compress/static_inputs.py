"""Fixed scales for the inputs of int8 products, and what evens their channels out first."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tcompress.plain import PlainEncoder
from tcompress.preprocessing import Batch

from .product_inputs import Key, Product, channel_extremes, readers, watch
from .smoothing import smoothing_scale

Range = tuple[float, float]
# Static ranges clip what lies outside, so nearly all of the outliers can move into the weights.
_ALPHA = 0.95
_BINS = 512
_CLIPS = torch.linspace(1.0, 0.3, 15, dtype=torch.float64)


@dataclass(frozen=True)
class StaticInput:
    """How an input of int8 products is quantized, fixed ahead of time.

    A u8 input q stands for step * (q - zero), with step = (high - low) / 255 and
    zero = round(-low / step): low becomes 0, high 255, and 0.0 is exact. What lies outside is
    clipped.

    Attributes:
        bounds: Lowest and highest value, of the divided channels; they contain 0.
        divisors: What the channels are divided by before, and the weights that read them
            multiplied by, `(channels,)`; None where it brings nothing.
    """

    bounds: Range
    divisors: Tensor | None


StaticInputs = dict[Key, StaticInput]
"""By layer and product; nothing of dropped sublayers."""


@torch.no_grad()
def static_inputs(module: PlainEncoder, batches: Iterable[Batch]) -> StaticInputs:
    """Choose scales for all inputs of products.

    The channels that queries, keys and values read are left as they are: evening them out brought
    nothing.

    Args:
        module: The encoder as it is deployed.
        batches: Calibration batches, gone through twice; what stands at padding does not count.

    Raises:
        CalibrationError: If there are no batches, or something is not finite.

    Reference:
        SmoothQuant, Xiao et al. 2023, arXiv:2211.10438, equation 4, applied to the products' own
        inputs: behind a residual sum a norm's output is also carried on, and stays as it is.
    """
    batches = list(batches)
    extremes = channel_extremes(module, batches)
    divisors = dict(_divisors(module, extremes))
    bounds = {key: _bounds(found, divisors.get(key)) for key, found in extremes.items()}
    counts = {key: torch.zeros(_BINS, dtype=torch.float64) for key in bounds}

    def count(key: Key, x: Tensor) -> None:
        x = x / divisors[key] if key in divisors else x
        counts[key] += torch.histc(x.float(), _BINS, *bounds[key]).double()

    watch(module, batches, count)
    return {
        key: StaticInput(least_error_range(counts[key], found), divisors.get(key))
        for key, found in bounds.items()
    }


def _divisors(module: PlainEncoder, extremes: dict[Key, Tensor]) -> Iterator[tuple[Key, Tensor]]:
    for key, linear in readers(module).items():
        if key[1] is not Product.ATTENTION_INPUT:
            yield key, smoothing_scale(extremes[key].abs().amax(0), (linear.weight,), _ALPHA)


def _bounds(extremes: Tensor, divisors: Tensor | None) -> Range:
    """The range of all channels, `extremes` being their lowest and highest values."""
    divided = extremes if divisors is None else extremes / divisors
    low, high = min(0.0, float(divided.min())), max(0.0, float(divided.max()))
    # what is always 0 has no range; any step gives 0
    return (low, high) if low < high else (0.0, 1.0)


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
