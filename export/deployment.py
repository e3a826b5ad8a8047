"""The encoder as it is deployed: plain, with every exact transform applied."""

from dataclasses import dataclass
from typing import cast

from torch import nn

from tcompress.anatomy import Anatomy
from tcompress.encoder import Encoder
from tcompress.plain import PlainEncoder, PlainLayer
from tcompress.preprocessing import TOKEN_TYPES

from .exact import simplify


def deploy(encoder: Encoder) -> PlainEncoder:
    """Make the module that exports are written from.

    Token types that the encoder's preprocessor never gives are folded into the positions.

    Args:
        encoder: The encoder, on the CPU; it is not changed, and shares its matrices.
    """
    names = tuple(encoder.example_tensors(1, 2))
    anatomy = simplify(encoder.anatomy, token_types=TOKEN_TYPES in names)
    return PlainEncoder(anatomy, encoder.plan.layers, names).eval()


@dataclass(frozen=True)
class AppliedTransforms:
    """What a deployed encoder does not compute, though its source does.

    Attributes:
        key_biases_dropped: Layers whose keys lost their bias.
        value_biases_folded: Layers whose values lost theirs to the output projection.
        first_token_layers: Layers that compute their output for the first token only.
        token_types_folded: Whether token types went into the positions.
    """

    key_biases_dropped: int
    value_biases_folded: int
    first_token_layers: int
    token_types_folded: bool

    @classmethod
    def between(cls, source: Anatomy, deployed: PlainEncoder) -> "AppliedTransforms":
        """Compare a deployed encoder with its source.

        Args:
            source: The source's pieces.
            deployed: The deployed encoder.
        """
        layers = [cast("PlainLayer", layer) for layer in deployed.layers]
        pairs = list(zip(source.layers, layers, strict=True))
        types = (source.embedding.token_types, deployed.embedding.token_types)
        return cls(
            sum(_has_bias(old.key) and not _has_bias(new.key) for old, new in pairs),
            sum(_has_bias(old.value) and not _has_bias(new.value) for old, new in pairs),
            sum(layer.first_only for layer in layers),
            types[0] is not None and types[1] is None,
        )


def _has_bias(linear: nn.Linear | None) -> bool:
    return linear is not None and linear.bias is not None
