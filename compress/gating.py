"""Gates on heads and neurons: factors, one per unit, that stand where the unit's output leaves."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from tcompress.anatomy import Anatomy, LayerAnatomy
from tcompress.encoder import Encoder
from tcompress.plan import CompressionPlan


@dataclass(frozen=True)
class Gates:
    """The gates of an encoder, one tensor per layer.

    Attributes:
        heads: `(examples, heads)` each; examples is 1 where all examples share a gate.
        neurons: `(examples, neurons)` each.
    """

    heads: tuple[Tensor, ...]
    neurons: tuple[Tensor, ...]


@dataclass(frozen=True)
class Units:
    """The order of units in a vector: all heads, layer by layer, then all neurons.

    Attributes:
        heads: Heads per layer.
        neurons: FFN neurons per layer.
    """

    heads: tuple[int, ...]
    neurons: tuple[int, ...]

    @classmethod
    def of(cls, anatomy: Anatomy) -> Self:
        """Return the units that an encoder has left.

        Args:
            anatomy: The encoder's pieces.
        """
        return cls(anatomy.head_counts, anatomy.neuron_counts)

    def split(self, values: Tensor) -> Gates:
        """Cut a vector into layers.

        Args:
            values: `(units,)`, or `(heads,)` where only heads have values.

        Returns:
            `(heads,)` per layer, and `(neurons,)` per layer or nothing.
        """
        if len(values) == sum(self.heads):
            return Gates(values.split(self.heads), ())
        layers = values.split((*self.heads, *self.neurons))
        return Gates(layers[: len(self.heads)], layers[len(self.heads) :])

    def name(self, position: int) -> str:
        """Name a unit for people.

        Args:
            position: Place in the vector.
        """
        for kind, widths in (("head", self.heads), ("neuron", self.neurons)):
            for layer, width in enumerate(widths):
                if position < width:
                    return f"layer {layer} {kind} {position}"
                position -= width
        msg = f"there is no unit {position} places behind the last one"
        raise IndexError(msg)


@contextmanager
def gated(anatomy: Anatomy, gates: Gates) -> Iterator[None]:
    """Multiply every head's and neuron's output by its gate while the block runs.

    Args:
        anatomy: The encoder's pieces.
        gates: The factors.

    Yields:
        Nothing.
    """
    handles = []
    try:
        for layer, heads, neurons in zip(anatomy.layers, gates.heads, gates.neurons, strict=True):
            hook = _multiply(heads.repeat_interleave(layer.head_size, dim=-1), batch_dim=0)
            handles.append(layer.output.register_forward_pre_hook(hook))
            hook = _multiply(neurons, batch_dim=layer.ffn_batch_dim)
            handles.append(layer.ffn_out.register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def head_closed(layer: LayerAnatomy, head: int) -> Iterator[None]:
    """Silence one head while the block runs.

    Args:
        layer: The head's layer.
        head: Its position among the heads left.

    Yields:
        Nothing.
    """
    gates = torch.ones(1, layer.num_heads, device=layer.output.weight.device)
    gates[0, head] = 0
    hook = _multiply(gates.repeat_interleave(layer.head_size, dim=-1), batch_dim=0)
    handle = layer.output.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def open_gates(anatomy: Anatomy, examples: int, device: torch.device) -> Gates:
    """Make gates of 1 that record gradients, one set per example.

    Since every example has gates of its own, one backward pass of a summed loss gives the
    gradient of each example.

    Args:
        anatomy: The encoder's pieces.
        examples: Number of examples.
        device: Where the encoder is.
    """

    def ones(widths: Sequence[int]) -> tuple[Tensor, ...]:
        return tuple(torch.ones(examples, w, device=device, requires_grad=True) for w in widths)

    return Gates(ones(anatomy.head_counts), ones(anatomy.neuron_counts))


@contextmanager
def masked(encoder: Encoder, plan: CompressionPlan) -> Iterator[None]:
    """Silence what a plan removes while the block runs, without changing the weights.

    Args:
        encoder: The encoder; unchanged afterwards.
        plan: A plan that keeps no more than the encoder has.

    Yields:
        Nothing.

    Raises:
        RequestError: If the plan is not for this encoder.
    """
    plan.check_within(encoder.plan)

    def mask(kept: tuple[int, ...], current: tuple[int, ...]) -> Tensor:
        return torch.tensor([[float(unit in set(kept)) for unit in current]], device=encoder.device)

    pairs = list(zip(plan.layers, encoder.plan.layers, strict=True))
    gates = Gates(
        tuple(mask(new.heads, old.heads) for new, old in pairs),
        tuple(mask(new.neurons, old.neurons) for new, old in pairs),
    )
    with gated(encoder.anatomy, gates):
        yield


def _multiply(factors: Tensor, batch_dim: int) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
    # factors: (examples, channels); input: (batch, tokens, channels) or (tokens, batch, channels)
    factors = factors.unsqueeze(1 - batch_dim)

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0] * factors, *inputs[1:])

    return hook
