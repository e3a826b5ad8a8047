"""Where attention, feed-forward, embeddings and head live in an encoder.

What is here knows no family by name: `tcompress.families` finds the pieces of each, and everything
else works on `Anatomy`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor, nn

from .attention import DroppedAttention, HeadAttention
from .errors import ModelError
from .plan import CompressionPlan, LayerPlan, unit_macs
from .terms import ScoreTerms
from .transformer import Pooling


class Activation(StrEnum):
    """Pointwise functions that encoders use."""

    RELU = "relu"
    GELU = "gelu"
    GELU_TANH = "gelu-tanh"
    SILU = "silu"
    TANH = "tanh"


@dataclass(frozen=True)
class LayerAnatomy:
    """The pieces of one encoder layer; modules are the live ones of the model.

    Attributes:
        index: Position in the stack, from 0.
        parent: Module that holds the attention core.
        attention_name: Attribute of `parent` under which the attention core hangs.
        query: Query projection; None once the attention sublayer is dropped.
        key: Key projection, likewise.
        value: Value projection, likewise.
        output: Output projection; its input channels are the heads side by side.
        head_size: Width of one head.
        ffn_in: First FFN projection.
        ffn_out: Second FFN projection; its input channels are the neurons.
        activation: Function between the two.
        attention_norm: Norm of the attention sublayer, or None.
        ffn_norm: Norm of the FFN sublayer, or None.
        norm_first: Whether norms stand before their sublayers (pre-norm) or after the residual.
        ffn_batch_dim: Dimension of the FFN's tensors that counts examples (1 where
            `batch_first` is off); attention tensors always have it first.
        gate: Projection of a gated FFN, activation(in(x)) * gate(x); None where it has none.
        terms: What positions add to the attention scores, or None.
        companions: Further projections whose output rows are the heads.
    """

    index: int
    parent: nn.Module
    attention_name: str
    query: nn.Linear | None
    key: nn.Linear | None
    value: nn.Linear | None
    output: nn.Linear
    head_size: int
    ffn_in: nn.Linear
    ffn_out: nn.Linear
    activation: Activation
    attention_norm: nn.LayerNorm | None
    ffn_norm: nn.LayerNorm | None
    norm_first: bool
    ffn_batch_dim: int = 0
    gate: nn.Linear | None = None
    terms: ScoreTerms | None = None
    companions: tuple[nn.Linear, ...] = ()

    @property
    def attention(self) -> nn.Module:
        """The module that computes attention."""
        return self.parent.get_submodule(self.attention_name)

    @property
    def last_module(self) -> nn.Module:
        """The module whose output is the layer's; dimension `ffn_batch_dim` counts examples."""
        return self.parent if self.norm_first or self.ffn_norm is None else self.ffn_norm

    @property
    def num_heads(self) -> int:
        """Heads left."""
        return self.output.in_features // self.head_size

    @property
    def num_neurons(self) -> int:
        """FFN neurons left."""
        return self.ffn_out.in_features

    def projections(self) -> tuple[nn.Linear, ...]:
        """Return query, key and value projections; nothing once attention is dropped."""
        return tuple(p for p in (self.query, self.key, self.value) if p is not None)

    def ffn_readers(self) -> tuple[nn.Linear, ...]:
        """Return the projections that read what the FFN is given."""
        return (self.ffn_in,) if self.gate is None else (self.ffn_in, self.gate)

    def sync_heads_(self, kept: tuple[int, ...]) -> None:
        """Tell the attention module how many heads it has, where it keeps the count itself.

        transformers 4.57 does; 5.x derives it from the projections.

        Args:
            kept: The heads left, in the numbering of the source encoder; `kept_heads` of the
                module from then on, for families whose positions speak of heads.
        """
        module = self.attention
        vars(module)["kept_heads"] = kept
        for name, value in (
            ("num_attention_heads", self.num_heads),
            ("n_heads", self.num_heads),
            ("num_heads", self.num_heads),
            ("all_head_size", self.num_heads * self.head_size),
            ("dim", self.num_heads * self.head_size),
        ):
            if isinstance(vars(module).get(name), int):
                setattr(module, name, value)

    def drop_attention_(self) -> None:
        """Replace the attention module by one without heads; only the output bias stays."""
        module = self.attention
        resize_linear_(self.output, in_features=0)
        if isinstance(module, HeadAttention):
            for projection in self.projections():
                resize_linear_(projection, out_features=0)
            return
        names = {child: name for name, child in module.named_children()}
        inside = [part for part in (self.output, self.attention_norm) if part in names]
        dropped = DroppedAttention({names[part]: part for part in inside if part is not None})
        setattr(self.parent, self.attention_name, dropped)

    def drop_ffn_(self) -> None:
        """Remove every FFN neuron; only the output bias stays."""
        self._resize_ffn_(0)

    def resize_(self, kept: LayerPlan) -> None:
        """Give the layer's matrices the shapes of a plan, without meaningful values.

        Args:
            kept: What to make room for; no heads drop the attention sublayer.
        """
        if not kept.heads:
            self.drop_attention_()
        elif len(kept.heads) != self.num_heads:
            width = len(kept.heads) * self.head_size
            for projection in (*self.projections(), *self.companions):
                resize_linear_(projection, out_features=width)
            resize_linear_(self.output, in_features=width)
            self.sync_heads_(kept.heads)
        self._resize_ffn_(len(kept.neurons))

    def _resize_ffn_(self, num_neurons: int) -> None:
        for projection in self.ffn_readers():
            resize_linear_(projection, out_features=num_neurons)
        resize_linear_(self.ffn_out, in_features=num_neurons)


@dataclass(frozen=True)
class EmbeddingAnatomy:
    """How inputs become the residual stream.

    The stream is `norm(tokens[ids] + positions + token_types[types])`, then `projection`, or the
    norm of what is projected. Of images and spectrograms a convolution makes patches; `prefix`
    stands before those, and there are as many tokens as there are positions.

    Attributes:
        input_name: Name of the model's main input.
        tokens: Token table, or the projection of feature inputs or patches.
        positions: Position table, `(positions, width)` or `(1, positions, width)`, or None.
        position_padding_id: Where positions are counted over non-padding tokens and start
            behind this id (RoBERTa), that id; None where they simply count from 0.
        token_types: Token type table, or None.
        norm: Embedding norm, or None.
        projection: Projection to the hidden size, or None.
        limit: Longest input, where no position table says it.
        prefix: Tokens that are the same for every input, each `(1, 1, width)`.
        input_shape: Of one input, where `tokens` is a convolution: `(channels, height, width)`
            or, of a spectrogram, `(frames, bins)`, over which it runs as `(1, bins, frames)`.
        scale: Factor of the embedded tokens, before anything is added.
        projects_first: Whether the norm stands behind the projection.
    """

    input_name: str
    tokens: nn.Embedding | nn.Linear | nn.Conv2d
    positions: Tensor | None
    position_padding_id: int | None = None
    token_types: nn.Embedding | None = None
    norm: nn.LayerNorm | None = None
    projection: nn.Linear | None = None
    limit: int | None = None
    prefix: tuple[Tensor, ...] = ()
    input_shape: tuple[int, ...] = ()
    scale: float = 1.0
    projects_first: bool = False

    @property
    def fixed_tokens(self) -> int | None:
        """Tokens of every input; None where inputs differ in length."""
        return self.max_tokens if self.input_shape else None

    @property
    def patches(self) -> dict[str, Any] | None:
        """What `open_preprocessor` has to know of images and spectrograms, or None."""
        if not self.input_shape:
            return None
        shape, tokens = list(self.input_shape), self.fixed_tokens
        return {"input_name": self.input_name, "shape": shape, "tokens": tokens}

    @property
    def max_tokens(self) -> int | None:
        """Longest input that the positions allow; None where they allow any."""
        if self.positions is None:
            return self.limit
        offset = 0 if self.position_padding_id is None else self.position_padding_id + 1
        return self.positions.shape[-2] - offset


@dataclass(frozen=True)
class HeadStage:
    """One step of a head: a linear layer, then an activation, then a norm.

    Attributes:
        linear: The linear layer.
        activation: The activation, or None.
        norm: The norm, or None.
    """

    linear: nn.Linear
    activation: Activation | None = None
    norm: nn.LayerNorm | None = None


@dataclass(frozen=True)
class HeadAnatomy:
    """How hidden states become answers.

    Attributes:
        pooling: Which hidden states are read.
        stages: The steps in order; none where the hidden states themselves are the answer.
        normalize: Whether answers are scaled to length 1.
        norm: Norm of what is read, before the first step, or None.
    """

    pooling: Pooling
    stages: tuple[HeadStage, ...]
    normalize: bool = False
    norm: nn.LayerNorm | None = None


@dataclass(frozen=True)
class Anatomy:
    """All pieces of an encoder, in order.

    Attributes:
        family: Name of the family, for people.
        embedding: Input side.
        layers: Encoder layers, first to last.
        final_norm: Norm behind the stack (pre-norm encoders), or None.
        head: Output side.
        shared_order: Where layers are applied several times, their positions in order of
            application; empty where each is applied once.
        traceable: Whether torch-pruning's dependency graph sees all that depends on the heads.
        plain: Whether these pieces are all there is; not in a user's module whose own code does
            more, from which exports are then traced.
        padding_reads: Whether a token that is padding reads the real ones as these read each
            other; not where the library hides all from it, so that its answer means nothing.
    """

    family: str
    embedding: EmbeddingAnatomy
    layers: tuple[LayerAnatomy, ...]
    final_norm: nn.LayerNorm | None
    head: HeadAnatomy
    shared_order: tuple[int, ...] = ()
    traceable: bool = True
    plain: bool = True
    padding_reads: bool = True

    @property
    def order(self) -> tuple[int, ...]:
        """Positions of the layers in order of application."""
        return self.shared_order or tuple(range(len(self.layers)))

    @property
    def applied(self) -> tuple[LayerAnatomy, ...]:
        """The layers in order of application; shared ones occur several times."""
        return tuple(self.layers[index] for index in self.order)

    @property
    def first_only_last(self) -> bool:
        """Whether all that is read of the last layer is its first token."""
        return self.head.pooling is Pooling.FIRST and self.order.count(self.order[-1]) == 1

    @property
    def head_counts(self) -> tuple[int, ...]:
        """Heads per layer."""
        return tuple(layer.num_heads for layer in self.layers)

    @property
    def neuron_counts(self) -> tuple[int, ...]:
        """FFN neurons per layer."""
        return tuple(layer.num_neurons for layer in self.layers)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.layers[0].ffn_in.in_features

    def resize_(self, plan: CompressionPlan) -> None:
        """Give every layer the shapes of a plan, so that pruned weights can be loaded.

        Args:
            plan: The plan that the weights were cut by.
        """
        if len(plan.layers) != len(self.layers):
            msg = f"the plan has {len(plan.layers)} layers, the model {len(self.layers)}"
            raise ModelError(msg)
        for layer, kept in zip(self.layers, plan.layers, strict=True):
            layer.resize_(kept)

    def macs(self, tokens: int) -> int:
        """Count the multiply-accumulates of the layers' matrix products for one example.

        Per head 3 S d D + 2 S^2 D + S D d, per neuron 2 S d, or 3 S d where it is gated, with S
        tokens, hidden size d and head size D (Kwon et al. 2022, arXiv:2204.09656); where positions
        are multiplied too, 2 S^2 D for each of their products. A shared layer counts as often as
        it is applied. Embeddings and head are not counted.

        Args:
            tokens: Length of the example.
        """
        total = 0
        for layer in self.layers:
            per_head, per_neuron = self.unit_macs(layer.index, tokens)
            total += layer.num_heads * per_head + layer.num_neurons * per_neuron
        return total

    def unit_macs(self, layer: int, tokens: int) -> tuple[int, int]:
        """Count the multiply-accumulates of one head and of one neuron; see `macs`.

        Args:
            layer: Position of the layer.
            tokens: Length of the example.
        """
        geometry = self.geometry[layer]
        return unit_macs(self.hidden_size, *geometry[:1], tokens, *geometry[1:])

    @property
    def geometry(self) -> tuple[tuple[int, int, int, int], ...]:
        """Per layer what `unit_macs` counts with.

        The head size, the FFN's matrices, products over pairs of tokens, and how often the layer
        is applied.
        """
        return tuple(
            (
                layer.head_size,
                1 + len(layer.ffn_readers()),
                2 + (0 if layer.terms is None else layer.terms.pair_products),
                self.order.count(layer.index),
            )
            for layer in self.layers
        )


def resize_linear_(
    linear: nn.Linear, *, in_features: int | None = None, out_features: int | None = None
) -> None:
    """Give a linear layer another shape; the values that were there are gone.

    Args:
        linear: The layer.
        in_features: New number of input channels, or None to keep it.
        out_features: New number of output channels, likewise.
    """
    rows = linear.out_features if out_features is None else out_features
    columns = linear.in_features if in_features is None else in_features
    if (rows, columns) == (linear.out_features, linear.in_features):
        return
    linear.weight = nn.Parameter(linear.weight.new_zeros(rows, columns))
    if linear.bias is not None and rows != linear.out_features:
        linear.bias = nn.Parameter(linear.bias.new_zeros(rows))
    linear.out_features, linear.in_features = rows, columns
