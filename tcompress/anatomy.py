"""Where attention, feed-forward, embeddings and head live in an encoder.

This is the only module that knows model families by name. Everything else works on
`Anatomy`, so that a new family is one entry in `_FAMILIES`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import torch
from optimum.utils import NormalizedConfigManager
from torch import Tensor, nn
from torch.nn import functional

from .attention import DroppedAttention, HeadAttention
from .errors import ModelError
from .plan import CompressionPlan
from .transformer import Pooling, TransformerClassifier

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Activation(StrEnum):
    """Pointwise functions that encoders use."""

    RELU = "relu"
    GELU = "gelu"
    GELU_TANH = "gelu-tanh"
    SILU = "silu"
    TANH = "tanh"


_ACTIVATION_NAMES = {
    "relu": Activation.RELU,
    "gelu": Activation.GELU,
    "gelu_python": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "tanh": Activation.TANH,
}


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
        attention_norm: Norm of the attention sublayer.
        ffn_norm: Norm of the FFN sublayer.
        norm_first: Whether norms stand before their sublayers (pre-norm) or after the residual.
        ffn_batch_dim: Dimension of the FFN's tensors that counts examples (1 where
            `batch_first` is off); attention tensors always have it first.
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
    attention_norm: nn.LayerNorm
    ffn_norm: nn.LayerNorm
    norm_first: bool
    ffn_batch_dim: int = 0

    @property
    def attention(self) -> nn.Module:
        """The module that computes attention."""
        return self.parent.get_submodule(self.attention_name)

    @property
    def last_module(self) -> nn.Module:
        """The module whose output is the layer's; dimension `ffn_batch_dim` counts examples."""
        return self.parent if self.norm_first else self.ffn_norm

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

    def sync_head_count_(self) -> None:
        """Tell the attention module how many heads it has, where it keeps the count itself.

        transformers 4.57 does; 5.x derives it from the projections.
        """
        module = self.attention
        for name, value in (
            ("num_attention_heads", self.num_heads),
            ("n_heads", self.num_heads),
            ("all_head_size", self.num_heads * self.head_size),
            ("dim", self.num_heads * self.head_size),
        ):
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, value)

    def drop_attention_(self) -> None:
        """Replace the attention module by one without heads; only the output bias stays."""
        module = self.attention
        resize_linear_(self.output, in_features=0)
        if isinstance(module, HeadAttention):
            for projection in self.projections():
                resize_linear_(projection, out_features=0)
            return
        name = next((n for n, child in module.named_children() if child is self.output), None)
        dropped = DroppedAttention(name, None if name is None else self.output)
        setattr(self.parent, self.attention_name, dropped)

    def drop_ffn_(self) -> None:
        """Remove every FFN neuron; only the output bias stays."""
        resize_linear_(self.ffn_in, out_features=0)
        resize_linear_(self.ffn_out, in_features=0)

    def resize_(self, num_heads: int, num_neurons: int) -> None:
        """Give the layer's matrices the shapes of a plan, without meaningful values.

        Args:
            num_heads: Heads to make room for; 0 drops the attention sublayer.
            num_neurons: FFN neurons to make room for.
        """
        if num_heads == 0:
            self.drop_attention_()
        elif num_heads != self.num_heads:
            for projection in self.projections():
                resize_linear_(projection, out_features=num_heads * self.head_size)
            resize_linear_(self.output, in_features=num_heads * self.head_size)
            self.sync_head_count_()
        resize_linear_(self.ffn_in, out_features=num_neurons)
        resize_linear_(self.ffn_out, in_features=num_neurons)


@dataclass(frozen=True)
class EmbeddingAnatomy:
    """How inputs become the residual stream.

    The stream is `norm(tokens[ids] + positions + token_types[types])`, then `projection`.

    Attributes:
        input_name: Name of the model's main input.
        tokens: Token table, or the projection of feature inputs.
        positions: Position table, `(positions, width)`, or None.
        position_padding_id: Where positions are counted over non-padding tokens and start
            behind this id (RoBERTa), that id; None where they simply count from 0.
        token_types: Token type table, or None.
        norm: Embedding norm, or None.
        projection: Projection to the hidden size, or None.
    """

    input_name: str
    tokens: nn.Embedding | nn.Linear
    positions: Tensor | None
    position_padding_id: int | None = None
    token_types: nn.Embedding | None = None
    norm: nn.LayerNorm | None = None
    projection: nn.Linear | None = None

    @property
    def max_tokens(self) -> int | None:
        """Longest input that the position table allows; None without positions."""
        if self.positions is None:
            return None
        offset = 0 if self.position_padding_id is None else self.position_padding_id + 1
        return self.positions.shape[0] - offset


@dataclass(frozen=True)
class HeadAnatomy:
    """How hidden states become logits.

    Attributes:
        pooling: Which hidden states are read.
        stages: Linear layers in order, each with the activation after it (None: none).
    """

    pooling: Pooling
    stages: tuple[tuple[nn.Linear, Activation | None], ...]


@dataclass(frozen=True)
class Anatomy:
    """All pieces of an encoder, in order.

    Attributes:
        family: Name of the family, for people.
        embedding: Input side.
        layers: Encoder layers, first to last.
        final_norm: Norm behind the stack (pre-norm encoders), or None.
        head: Output side.
    """

    family: str
    embedding: EmbeddingAnatomy
    layers: tuple[LayerAnatomy, ...]
    final_norm: nn.LayerNorm | None
    head: HeadAnatomy

    @classmethod
    def of(cls, model: nn.Module) -> "Anatomy":
        """Find the pieces of a model.

        Args:
            model: A Hugging Face sequence classifier of a known family, or a
                `TransformerClassifier`.

        Raises:
            ModelError: If the model is of no known family.
        """
        if isinstance(model, TransformerClassifier):
            return _torch_anatomy(model)
        config = getattr(model, "config", None)
        family = _FAMILY_OF_TYPE.get(getattr(config, "model_type", ""))
        if family is None:
            known = ", ".join(known_families())
            found = getattr(config, "model_type", type(model).__name__)
            msg = f"{found!r} is no encoder family that tcompress knows; known are: {known}"
            raise ModelError(msg)
        return _transformers_anatomy(model, config, family)

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
        counts = zip(plan.head_counts, plan.neuron_counts, strict=True)
        for layer, (heads, neurons) in zip(self.layers, counts, strict=True):
            layer.resize_(heads, neurons)

    def macs(self, tokens: int) -> int:
        """Count the multiply-accumulates of the layers' matrix products for one example.

        Per head 3 S d D + 2 S^2 D + S D d, per neuron 2 S d, with S tokens, hidden size d and
        head size D (Kwon et al. 2022, arXiv:2204.09656). Embeddings and head are not counted.

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
        head_size = self.layers[layer].head_size
        per_head = head_size * (4 * tokens * self.hidden_size + 2 * tokens**2)
        return per_head, 2 * tokens * self.hidden_size


def known_families() -> list[str]:
    """Return the Hugging Face model types that tcompress knows, sorted."""
    return sorted(_FAMILY_OF_TYPE)


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


@dataclass(frozen=True)
class _Family:
    """Paths of one family's modules; layer paths are relative to the layer."""

    model_types: tuple[str, ...]
    base: str
    layers: str
    attention: str
    query: str
    key: str
    value: str
    output: str
    ffn_in: str
    ffn_out: str
    attention_norm: str
    ffn_norm: str
    head: tuple[tuple[str, str | None], ...]
    projection: str | None = None
    token_types: bool = True
    positions_skip_padding: bool = False
    activation_field: str = "hidden_act"


_BERT_LAYER: dict[str, Any] = {
    "layers": "encoder.layer",
    "attention": "attention.self",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn_norm": "output.LayerNorm",
}

_FAMILIES = (
    _Family(
        model_types=("bert",),
        base="bert",
        head=(("bert.pooler.dense", "tanh"), ("classifier", None)),
        **_BERT_LAYER,
    ),
    _Family(
        model_types=("roberta", "xlm-roberta", "camembert"),
        base="roberta",
        head=(("classifier.dense", "tanh"), ("classifier.out_proj", None)),
        positions_skip_padding=True,
        **_BERT_LAYER,
    ),
    _Family(
        model_types=("electra",),
        base="electra",
        head=(("classifier.dense", "gelu"), ("classifier.out_proj", None)),
        projection="embeddings_project",
        **_BERT_LAYER,
    ),
    _Family(
        model_types=("distilbert",),
        base="distilbert",
        layers="transformer.layer",
        attention="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
        ffn_in="ffn.lin1",
        ffn_out="ffn.lin2",
        attention_norm="sa_layer_norm",
        ffn_norm="output_layer_norm",
        head=(("pre_classifier", "relu"), ("classifier", None)),
        token_types=False,
        activation_field="activation",
    ),
)
_FAMILY_OF_TYPE = {name: family for family in _FAMILIES for name in family.model_types}


def _transformers_anatomy(model: nn.Module, config: Any, family: _Family) -> Anatomy:
    normalized = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
    head_size = normalized.hidden_size // normalized.num_attention_heads
    activation = _activation_named(getattr(config, family.activation_field))
    base = model.get_submodule(family.base)
    stack = base.get_submodule(family.layers)
    layers = tuple(
        _transformers_layer(index, layer, family, head_size, activation)
        for index, layer in enumerate(stack.children())
    )
    embeddings = base.get_submodule("embeddings")
    has_projection = family.projection is not None and hasattr(base, family.projection)
    tokens = embeddings.get_submodule("word_embeddings")
    positions = embeddings.get_submodule("position_embeddings")
    embedding = EmbeddingAnatomy(
        input_name="input_ids",
        tokens=_expect(tokens, nn.Embedding),
        positions=_expect(positions, nn.Embedding).weight,
        position_padding_id=int(config.pad_token_id) if family.positions_skip_padding else None,
        token_types=(
            _expect(embeddings.get_submodule("token_type_embeddings"), nn.Embedding)
            if family.token_types
            else None
        ),
        norm=_expect(embeddings.get_submodule("LayerNorm"), nn.LayerNorm),
        projection=(
            _expect(base.get_submodule(family.projection), nn.Linear)
            if has_projection and family.projection is not None
            else None
        ),
    )
    stages = tuple(
        (
            _expect(model.get_submodule(path), nn.Linear),
            None if name is None else _activation_named(name),
        )
        for path, name in family.head
    )
    head = HeadAnatomy(Pooling.FIRST, stages)
    return Anatomy(config.model_type, embedding, layers, None, head)


def _transformers_layer(
    index: int, layer: nn.Module, family: _Family, head_size: int, activation: Activation
) -> LayerAnatomy:
    def linear(path: str) -> nn.Linear:
        return _expect(layer.get_submodule(path), nn.Linear)

    parent_path, _, attention_name = family.attention.rpartition(".")
    dropped = isinstance(layer.get_submodule(family.attention), DroppedAttention)
    return LayerAnatomy(
        index=index,
        parent=layer.get_submodule(parent_path),
        attention_name=attention_name,
        query=None if dropped else linear(family.query),
        key=None if dropped else linear(family.key),
        value=None if dropped else linear(family.value),
        output=linear(family.output),
        head_size=head_size,
        ffn_in=linear(family.ffn_in),
        ffn_out=linear(family.ffn_out),
        activation=activation,
        attention_norm=_expect(layer.get_submodule(family.attention_norm), nn.LayerNorm),
        ffn_norm=_expect(layer.get_submodule(family.ffn_norm), nn.LayerNorm),
        norm_first=False,
    )


def _torch_anatomy(model: TransformerClassifier) -> Anatomy:
    spec = model.spec
    layers = tuple(
        _torch_layer(index, layer, batch_first=spec.batch_first)
        for index, layer in enumerate(model.encoder.layers)
    )
    embedding = EmbeddingAnatomy(
        input_name=spec.input_name, tokens=model.embedding, positions=model.position_weights()
    )
    head = HeadAnatomy(spec.pooling, ((model.classifier, None),))
    norm = model.encoder.norm
    final_norm = None if norm is None else _expect(norm, nn.LayerNorm)
    return Anatomy("nn.TransformerEncoder", embedding, layers, final_norm, head)


def _torch_layer(index: int, layer: nn.Module, *, batch_first: bool) -> LayerAnatomy:
    layer = _expect(layer, nn.TransformerEncoderLayer)
    attention = layer.self_attn
    if not isinstance(attention, HeadAttention):
        msg = "nn.MultiheadAttention has to be replaced first: call replace_attention_(model)"
        raise ModelError(msg)
    dropped = attention.num_heads == 0
    return LayerAnatomy(
        index=index,
        parent=layer,
        attention_name="self_attn",
        query=None if dropped else attention.q_proj,
        key=None if dropped else attention.k_proj,
        value=None if dropped else attention.v_proj,
        output=attention.out_proj,
        head_size=attention.head_size,
        ffn_in=layer.linear1,
        ffn_out=layer.linear2,
        activation=_activation_of(layer.activation),
        attention_norm=layer.norm1,
        ffn_norm=layer.norm2,
        norm_first=layer.norm_first,
        ffn_batch_dim=0 if batch_first else 1,
    )


def _activation_named(name: str) -> Activation:
    try:
        return _ACTIVATION_NAMES[name]
    except (KeyError, TypeError) as error:
        known = ", ".join(sorted(_ACTIVATION_NAMES))
        msg = f"activation {name!r} is not known; known are: {known}"
        raise ModelError(msg) from error


def _activation_of(function: Callable[[Tensor], Tensor] | nn.Module) -> Activation:
    functions: Sequence[tuple[Any, type[nn.Module], Activation]] = (
        (functional.relu, nn.ReLU, Activation.RELU),
        (functional.gelu, nn.GELU, Activation.GELU),
        (functional.silu, nn.SiLU, Activation.SILU),
        (torch.tanh, nn.Tanh, Activation.TANH),
    )
    for plain, module, activation in functions:
        if function is plain or isinstance(function, module):
            return activation
    msg = f"the layers' activation {function!r} is not known"
    raise ModelError(msg)


def _expect(module: nn.Module, kind: type[ModuleT]) -> ModuleT:
    if not isinstance(module, kind):
        msg = f"expected a {kind.__name__}, found a {type(module).__name__}"
        raise ModelError(msg)
    return module
