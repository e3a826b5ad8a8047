"""The sublayers of an encoder in the order in which they add to the residual stream."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from tcompress.plain import PlainEncoder, PlainLayer, normed


@dataclass(frozen=True)
class Side:
    """One sublayer of one encoder.

    Attributes:
        name: `attention` or `feed-forward`.
        width: Channels of one unit of what its last projection reads.
        features: From the stream before it and the attention bias, what its last projection reads.
        carried: The part of the stream that its output is added to.
        join: Applies the last projection.
        linear: The last projection.
        norm: The norm that reads the stream behind it, or None.
        stream: From the norm's input, the stream that the next sublayer reads.
    """

    name: str
    width: int
    features: Callable[[Tensor, Tensor], Tensor]
    carried: Callable[[Tensor], Tensor]
    join: Callable[[Tensor], Tensor]
    linear: nn.Linear
    norm: nn.LayerNorm | None
    stream: Callable[[Tensor], Tensor]

    def behind(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return the stream behind the sublayer, before any norm.

        Args:
            x: The stream before it, `(batch, tokens, hidden)`.
            bias: The attention bias.
        """
        return self.carried(x) + self.join(self.features(x, bias))


def sides(plain: PlainEncoder, place: int) -> tuple[Side, Side]:
    """Return attention and feed-forward of a layer.

    Args:
        plain: The encoder.
        place: The layer's place in the order of application.
    """
    return _attention(plain.applied[place]), _feed_forward(plain, place)


def _attention(layer: PlainLayer) -> Side:
    return Side(
        name="attention",
        width=layer.head_size,
        features=layer.mix,
        carried=layer.carried,
        join=layer.join,
        linear=layer.output,
        norm=layer.ffn_norm if layer.norm_first else layer.attention_norm,
        stream=unchanged if layer.norm_first else partial(normed, layer.attention_norm),
    )


def _feed_forward(plain: PlainEncoder, place: int) -> Side:
    layer, *above = plain.applied[place:]
    reader = above[0].attention_norm if above else plain.final_norm

    def features(x: Tensor, bias: Tensor) -> Tensor:
        return layer.excite(x)

    return Side(
        name="feed-forward",
        width=1,
        features=features,
        carried=unchanged,
        join=layer.gather,
        linear=layer.ffn_out,
        norm=reader if layer.norm_first else layer.ffn_norm,
        stream=unchanged if layer.norm_first else partial(normed, layer.ffn_norm),
    )


def unchanged(x: Tensor) -> Tensor:
    """Return the stream as it is.

    Args:
        x: The stream.
    """
    return x
