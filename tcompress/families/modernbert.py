"""ModernBERT: rotary positions, local windows, gated feed-forward, norms before sublayers."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..anatomy import Anatomy, EmbeddingAnatomy, HeadAnatomy, HeadStage, LayerAnatomy
from ..attention import DroppedAttention
from ..errors import ModelError
from ..terms.rotary import Rotary
from ..transformer import Pooling
from .base import Family, activation_named, expect

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_ATTENTION, _FFN = ("q_proj", "k_proj", "v_proj"), ("in_proj", "gate_proj")
# Projections of transformers, and those that stand for them here, in the order of their rows.
_PARTS = {
    "attn.Wqkv": tuple(f"attn.{name}" for name in _ATTENTION),
    "attn.Wo": ("attn.out_proj",),
    "mlp.Wi": tuple(f"mlp.{name}" for name in _FFN),
    "mlp.Wo": ("mlp.out_proj",),
}
_WEIGHT = re.compile(r"(.*layers\.\d+\.)(\w+\.\w+)\.(weight|bias)")


class SplitAttention(nn.Module):
    """ModernBERT's attention with one projection each for queries, keys and values.

    Args:
        config: The model's configuration.
        terms: Its positions.
    """

    def __init__(self, config: Any, terms: Rotary) -> None:
        super().__init__()
        self.head_size = _head_size(config)
        self.dropout = float(config.attention_dropout)
        self.terms = terms
        width, bias = int(config.hidden_size), bool(config.attention_bias)
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, width, bias=bias)
        self.v_proj = nn.Linear(width, width, bias=bias)
        self.out_proj = nn.Linear(width, width, bias=bias)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        sliding_window_mask: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """Attend; called as either line of transformers does.

        Args:
            hidden_states: `(batch, tokens, hidden)`.
            attention_mask: `(batch, 1, 1 or tokens, tokens)`, boolean (True is seen) or additive;
                None where nothing is hidden.
            sliding_window_mask: The same with the window in it; transformers 4 passes both to
                every layer, transformers 5 passes the layer's own as `attention_mask`.
            others: Ignored: the terms know the positions.

        Returns:
            The output, `(batch, tokens, hidden)`, and None.
        """
        if self.terms.window is not None and sliding_window_mask is not None:
            attention_mask = sliding_window_mask
        # q, k, v: (batch, heads, tokens, head_size)
        q, k, v = (
            projection(hidden_states).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self.terms.rotated(q, k)
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, attention_mask, dropout)
        output: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return functional.dropout(output, self.dropout, self.training), None


class SplitFeedForward(nn.Module):
    """ModernBERT's gated feed-forward with one projection each for input and gate.

    Args:
        fused: The module that it replaces, whose weights mean nothing yet.
    """

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.activation, self.drop = fused.get_submodule("act"), fused.get_submodule("drop")
        self.out_proj = expect(fused.get_submodule("Wo"), nn.Linear)
        width, neurons = self.out_proj.out_features, self.out_proj.in_features
        bias = self.out_proj.bias is not None
        self.in_proj = nn.Linear(width, neurons, bias=bias)
        self.gate_proj = nn.Linear(width, neurons, bias=bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Feed.

        Args:
            hidden_states: `(batch, tokens, hidden)`.
        """
        excited = self.activation(self.in_proj(hidden_states)) * self.gate_proj(hidden_states)
        output: Tensor = self.out_proj(self.drop(excited))
        return output


class ModernBert(Family):
    """ModernBERT, of which transformers fuses projections that have to be cut apart."""

    model_types = ("modernbert",)
    base = "model"

    def prepare_(self, model: nn.Module) -> None:
        """Replace attention and feed-forward modules; see `Family.prepare_`."""
        config: Any = model.config
        # transformers 4 would compile feed-forward modules on a GPU, around what is cut and watched
        config.reference_compile = False
        terms = {kind: _terms(config, kind) for kind in (_GLOBAL, _LOCAL)}
        for kind, layer in zip(_kinds(config), self._stack(model), strict=True):
            layer.attn = SplitAttention(config, terms[kind])
            layer.mlp = SplitFeedForward(layer.get_submodule("mlp"))

    def translated(self, model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take fused weights apart; see `Family.translated`."""
        return dict(_split(state))

    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fuse weights again; see `Family.published`."""
        return dict(_fused(state))

    def anatomy(self, model: nn.Module, config: Any) -> Anatomy:
        """Find the pieces of a model; see `Family.anatomy`."""
        encoder = self.encoder_of(model)
        embeddings = encoder.get_submodule("embeddings")
        return Anatomy(
            family=config.model_type,
            embedding=EmbeddingAnatomy(
                input_name="input_ids",
                tokens=expect(embeddings.get_submodule("tok_embeddings"), nn.Embedding),
                positions=None,
                norm=expect(embeddings.get_submodule("norm"), nn.LayerNorm),
                limit=int(config.max_position_embeddings),
            ),
            layers=tuple(
                _layer(index, layer, config) for index, layer in enumerate(self._stack(model))
            ),
            final_norm=expect(encoder.get_submodule("final_norm"), nn.LayerNorm),
            head=_head(model, config),
        )

    def _stack(self, model: nn.Module) -> Iterator[nn.Module]:
        return self.encoder_of(model).get_submodule("layers").children()


def _layer(index: int, layer: nn.Module, config: Any) -> LayerAnatomy:
    attention, feed_forward = layer.get_submodule("attn"), layer.get_submodule("mlp")
    dropped = isinstance(attention, DroppedAttention)

    def linear(name: str) -> nn.Linear:
        return expect(attention.get_submodule(name), nn.Linear)

    norm = layer.get_submodule("attn_norm")  # the first layer's is no norm: the embeddings have one
    return LayerAnatomy(
        index=index,
        parent=layer,
        attention_name="attn",
        query=None if dropped else linear("q_proj"),
        key=None if dropped else linear("k_proj"),
        value=None if dropped else linear("v_proj"),
        output=linear("out_proj"),
        head_size=_head_size(config),
        ffn_in=expect(feed_forward.get_submodule("in_proj"), nn.Linear),
        ffn_out=expect(feed_forward.get_submodule("out_proj"), nn.Linear),
        gate=expect(feed_forward.get_submodule("gate_proj"), nn.Linear),
        activation=activation_named(config.hidden_activation),
        attention_norm=norm if isinstance(norm, nn.LayerNorm) else None,
        ffn_norm=expect(layer.get_submodule("mlp_norm"), nn.LayerNorm),
        norm_first=True,
        terms=None if dropped else expect(attention.get_submodule("terms"), Rotary),
    )


def _head(model: nn.Module, config: Any) -> HeadAnatomy:
    if not hasattr(model, "classifier"):
        return HeadAnatomy(Pooling.NONE, ())
    classifies = "ForSequenceClassification" in type(model).__name__
    pooling = Pooling.MEAN if config.classifier_pooling == "mean" else Pooling.FIRST
    stages = (
        HeadStage(
            expect(model.get_submodule("head.dense"), nn.Linear),
            activation_named(config.classifier_activation),
            expect(model.get_submodule("head.norm"), nn.LayerNorm),
        ),
        HeadStage(expect(model.get_submodule("classifier"), nn.Linear)),
    )
    return HeadAnatomy(pooling if classifies else Pooling.NONE, stages)


def _split(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, value in state.items():
        found = _WEIGHT.fullmatch(name)
        if found is None or found[2] not in _PARTS:
            yield name, value
            continue
        parts = _PARTS[found[2]]
        for part, rows in zip(parts, value.chunk(len(parts)), strict=True):
            yield f"{found[1]}{part}.{found[3]}", rows


def _fused(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    places = {part: (fused, parts) for fused, parts in _PARTS.items() for part in parts}
    for name, value in state.items():
        found = _WEIGHT.fullmatch(name)
        if found is None or found[2] not in places:
            yield name, value
            continue
        fused, parts = places[found[2]]
        if found[2] == parts[0]:
            rows = [state[f"{found[1]}{part}.{found[3]}"] for part in parts]
            yield f"{found[1]}{fused}.{found[3]}", torch.cat(rows)


def _head_size(config: Any) -> int:
    return int(config.hidden_size) // int(config.num_attention_heads)


def _kinds(config: Any) -> list[str]:
    """Return what each layer sees; transformers 5 lists it, 4 has a rule."""
    if (listed := getattr(config, "layer_types", None)) is not None:
        return list(listed)
    every = config.global_attn_every_n_layers
    return [_LOCAL if index % every else _GLOBAL for index in range(config.num_hidden_layers)]


def _terms(config: Any, kind: str) -> Rotary:
    parameters = _rotary_parameters(config, kind)
    if (rope := parameters["rope_type"]) != "default":
        msg = f"rotary positions of type {rope!r} are not known; only 'default' ones are"
        raise ModelError(msg)
    window = int(config.local_attention) // 2 if kind == _LOCAL else None
    theta, limit = float(parameters["rope_theta"]), int(config.max_position_embeddings)
    return Rotary(_head_size(config), theta, limit, window)


def _rotary_parameters(config: Any, kind: str) -> dict[str, Any]:
    """Return the kind and base of rotations, whichever line wrote the configuration."""
    if (by_kind := getattr(config, "rope_parameters", None)) is not None:
        return dict(by_kind[kind])
    scaling = getattr(config, "rope_scaling", None) or {}
    theta = config.global_rope_theta
    if kind == _LOCAL and config.local_rope_theta is not None:
        theta = config.local_rope_theta
    return {"rope_type": scaling.get("rope_type", "default"), "rope_theta": theta}
