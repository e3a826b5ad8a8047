"""Plans that treat every layer otherwise."""

from tcompress.encoder import Encoder
from tcompress.plan import CompressionPlan, LayerPlan

# Each layer keeps other heads and neurons; the second loses its attention, the third its FFN.
HEADS = ((0, 2, 3), (), (3,))
NEURONS = (slice(None, None, 2), slice(5, 40), slice(0))


def uneven(encoder: Encoder, *, heads: bool = True, neurons: bool = True) -> CompressionPlan:
    """Return a plan for an encoder with four heads per layer.

    Args:
        encoder: The encoder.
        heads: Whether to remove heads.
        neurons: Whether to remove neurons.
    """
    dense = encoder.plan
    layers = [
        LayerPlan(
            HEADS[index % 3] if heads else layer.heads,
            layer.neurons[NEURONS[index % 3]] if neurons else layer.neurons,
        )
        for index, layer in enumerate(dense.layers)
    ]
    return CompressionPlan(tuple(layers), dense.source_heads, dense.source_neurons)
