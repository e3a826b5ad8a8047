"""The encoder as it is deployed: one plain module that every export format is written from.

It holds the same weights as the encoder it came from, and computes the same logits, but without
the machinery around training and without a library's control flow, so that it traces the same
under every version of transformers. Work whose result nobody reads is left out: a head that looks
at the first token only needs the last layer's queries, output and FFN for that one token; more
such transforms are in `exact`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tcompress.anatomy import Activation, Anatomy, EmbeddingAnatomy, HeadAnatomy, LayerAnatomy
from tcompress.encoder import Encoder
from tcompress.plan import LayerPlan, Precision
from tcompress.preprocessing import TOKEN_TYPES
from tcompress.transformer import Pooling

from .exact import simplify

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.RELU: functional.relu,
    Activation.GELU: functional.gelu,
    Activation.GELU_TANH: lambda x: functional.gelu(x, approximate="tanh"),
    Activation.SILU: functional.silu,
    Activation.TANH: torch.tanh,
}


class DeployedEmbedding(nn.Module):
    """Input side: token table or projection, positions, token types, norm, projection.

    Args:
        anatomy: The encoder's input side.
    """

    def __init__(self, anatomy: EmbeddingAnatomy) -> None:
        super().__init__()
        self.tokens = anatomy.tokens
        self.token_types = anatomy.token_types
        self.norm = anatomy.norm
        self.projection = anatomy.projection
        self.padding_id = anatomy.position_padding_id
        self.max_tokens = anatomy.max_tokens
        positions = None if anatomy.positions is None else anatomy.positions.detach()
        self.register_buffer("positions", positions)

    def forward(self, inputs: Tensor, token_types: Tensor | None) -> Tensor:
        """Embed.

        Args:
            inputs: `(batch, tokens)` ids or `(batch, tokens, features)`.
            token_types: `(batch, tokens)`; not read where there is no table for them.

        Returns:
            `(batch, tokens, hidden)`.
        """
        x = self._tokens_of(inputs)
        if self.positions is not None:
            x = x + self._positions_of(inputs)
        if self.token_types is not None:
            x = x + _look_up(cast("Tensor", token_types), self.token_types)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.projection is None else self.projection(x)

    def _tokens_of(self, inputs: Tensor) -> Tensor:
        if isinstance(self.tokens, nn.Embedding):
            return _look_up(inputs, self.tokens)
        projected: Tensor = self.tokens(inputs)
        return projected

    def _positions_of(self, inputs: Tensor) -> Tensor:
        table = cast("Tensor", self.positions)
        if self.padding_id is None:
            return table[: inputs.shape[1]]
        # RoBERTa counts positions over the tokens that are not padding
        real = (inputs != self.padding_id).long()
        return functional.embedding(torch.cumsum(real, 1) * real + self.padding_id, table)


def _look_up(indices: Tensor, table: nn.Embedding) -> Tensor:
    """Read rows of a table; without its padding index, which matters to training only."""
    return functional.embedding(indices, table.weight)


class DeployedLayer(nn.Module):
    """One encoder layer.

    Args:
        anatomy: The layer's pieces.
        plan: Its precisions.
        first_only: Whether only the first token's output is read.
    """

    def __init__(self, anatomy: LayerAnatomy, plan: LayerPlan, *, first_only: bool) -> None:
        super().__init__()
        self.num_heads = anatomy.num_heads
        self.head_size = anatomy.head_size
        self.num_neurons = anatomy.num_neurons
        self.query, self.key, self.value = anatomy.query, anatomy.key, anatomy.value
        self.output = anatomy.output
        self.ffn_in, self.ffn_out = anatomy.ffn_in, anatomy.ffn_out
        self.activation = anatomy.activation
        self.attention_norm, self.ffn_norm = anatomy.attention_norm, anatomy.ffn_norm
        self.norm_first = anatomy.norm_first
        self.first_only = first_only
        self.attention_precision, self.ffn_precision = plan.attention, plan.feed_forward

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: `(batch, tokens, hidden)`.
            bias: `(batch, 1, 1, tokens)`: 0 at real tokens, hugely negative at padding.

        Returns:
            `(batch, tokens, hidden)`, or `(batch, 1, hidden)` with `first_only`.
        """
        stream = x[:, :1] if self.first_only else x
        if self.norm_first:
            stream = stream + self._attend(self.attention_norm(x), bias)
            return stream + self._feed_forward(self.ffn_norm(stream))
        stream = self.attention_norm(stream + self._attend(x, bias))
        return self.ffn_norm(stream + self._feed_forward(stream))  # type: ignore[no-any-return]

    def int8_linears(self) -> list[nn.Linear]:
        """Return the projections that the plan runs in int8."""
        linears: list[nn.Linear] = []
        if self.attention_precision is Precision.INT8 and self.num_heads:
            linears += [cast("nn.Linear", p) for p in (self.query, self.key, self.value)]
            linears.append(self.output)
        if self.ffn_precision is Precision.INT8 and self.num_neurons:
            linears += [self.ffn_in, self.ffn_out]
        return linears

    def _attend(self, x: Tensor, bias: Tensor) -> Tensor:
        if self.query is None or self.key is None or self.value is None:
            return _bias(self.output)
        source = x[:, :1] if self.first_only else x
        # q: (batch, heads, 1 or tokens, head_size); k, v: (batch, heads, tokens, head_size)
        q = self._split(self.query(source))
        k, v = self._split(self.key(x)), self._split(self.value(x))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.output(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        shape = (x.shape[0], x.shape[1], self.num_heads, self.head_size)
        return x.view(shape).transpose(1, 2)

    def _feed_forward(self, x: Tensor) -> Tensor:
        if self.num_neurons == 0:
            return _bias(self.ffn_out)
        return self.ffn_out(_ACTIVATIONS[self.activation](self.ffn_in(x)))  # type: ignore[no-any-return]


def _bias(linear: nn.Linear) -> Tensor:
    """What remains of a sublayer without units: `(hidden,)`."""
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias


class DeployedHead(nn.Module):
    """Output side: pooling and linear stages.

    Args:
        anatomy: The encoder's output side.
    """

    def __init__(self, anatomy: HeadAnatomy) -> None:
        super().__init__()
        self.pooling = anatomy.pooling
        self.linears = nn.ModuleList(linear for linear, _ in anatomy.stages)
        self.activations = tuple(activation for _, activation in anatomy.stages)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Classify.

        Args:
            x: `(batch, tokens, hidden)`.
            mask: `(batch, tokens)`, 1 at real tokens.

        Returns:
            Logits, `(batch, labels)`.
        """
        if self.pooling is Pooling.FIRST:
            pooled = x[:, 0]
        else:
            weights = mask.to(x.dtype).unsqueeze(-1)
            pooled = (x * weights).sum(1) / weights.sum(1).clamp(min=1)
        for linear, activation in zip(self.linears, self.activations, strict=True):
            pooled = linear(pooled)
            if activation is not None:
                pooled = _ACTIVATIONS[activation](pooled)
        return pooled


class DeployedEncoder(nn.Module):
    """The whole encoder; shares its matrices with the one it was made from.

    Args:
        anatomy: The encoder's pieces.
        layers: Its layers' plans.
        input_names: Names of the inputs, in the order in which `forward` takes them.
    """

    def __init__(
        self, anatomy: Anatomy, layers: tuple[LayerPlan, ...], input_names: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.input_names = input_names
        self.main_input = anatomy.embedding.input_name
        self.embedding = DeployedEmbedding(anatomy.embedding)
        last = len(anatomy.layers) - 1
        only_first = anatomy.head.pooling is Pooling.FIRST
        self.layers = nn.ModuleList(
            DeployedLayer(layer, plan, first_only=only_first and layer.index == last)
            for layer, plan in zip(anatomy.layers, layers, strict=True)
        )
        self.final_norm = anatomy.final_norm
        self.head = DeployedHead(anatomy.head)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Classify.

        Args:
            inputs: The inputs in the order of `input_names`.

        Returns:
            Logits, `(batch, labels)`.
        """
        named = dict(zip(self.input_names, inputs, strict=True))
        mask = named["attention_mask"]
        x: Tensor = self.embedding(named[self.main_input], named.get(TOKEN_TYPES))
        lowest = torch.finfo(x.dtype).min
        bias = ((mask == 0).to(x.dtype) * lowest)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, bias)
        if self.final_norm is not None:
            x = self.final_norm(x)
        return self.head(x, mask)  # type: ignore[no-any-return]

    def int8_linears(self) -> list[nn.Linear]:
        """Return the projections that the plan runs in int8."""
        return [
            linear
            for layer in self.layers
            for linear in cast("DeployedLayer", layer).int8_linears()
        ]


def deploy(encoder: Encoder) -> DeployedEncoder:
    """Make the module that exports are written from.

    Token types that the encoder's preprocessor never gives are folded into the positions.

    Args:
        encoder: The encoder, on the CPU; it is not changed, and shares its matrices.
    """
    names = tuple(encoder.example_tensors(1, 2))
    anatomy = simplify(encoder.anatomy, token_types=TOKEN_TYPES in names)
    return DeployedEncoder(anatomy, encoder.plan.layers, names).eval()


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
    def between(cls, source: Anatomy, deployed: DeployedEncoder) -> "AppliedTransforms":
        """Compare a deployed encoder with its source.

        Args:
            source: The source's pieces.
            deployed: The deployed encoder.
        """
        layers = [cast("DeployedLayer", layer) for layer in deployed.layers]
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
