"""DeBERTa of the second and third version: disentangled attention."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import Anatomy, EmbeddingAnatomy, LayerAnatomy
from ..attention import DroppedAttention
from ..errors import ModelError
from ..terms.disentangled import Disentangled, LiveDisentangled, Places
from ..transformer import Pooling
from .base import Family, activation_named, expect, head_of
from .bert import LayerPaths

_PATHS = replace(
    LayerPaths(),
    query="attention.self.query_proj",
    key="attention.self.key_proj",
    value="attention.self.value_proj",
)
_POSITIONS = "embeddings.position_embeddings."
_KINDS = ("c2p", "p2c")


class DebertaV2(Family):
    """DeBERTa-v2 and v3."""

    model_types = ("deberta-v2",)
    base = "deberta"

    def translated(self, model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leave out a table of absolute positions that the model does not read, as theirs does."""
        tables = self.encoder_of(model).get_submodule("embeddings")
        if isinstance(getattr(tables, "position_embeddings", None), nn.Embedding):
            return state
        return {name: value for name, value in state.items() if _POSITIONS not in name}

    def anatomy(self, model: nn.Module, config: Any) -> Anatomy:
        """Find the pieces of a model; see `Family.anatomy`."""
        encoder = self.encoder_of(model)
        if isinstance(getattr(encoder.get_submodule("encoder"), "conv", None), nn.Module):
            msg = (
                f"the configuration's conv_kernel_size is {config.conv_kernel_size}: encoders with "
                "a convolution beside the first layer (deberta-v2-xlarge and -xxlarge) are not "
                "known, those without one (deberta-v3) are"
            )
            raise ModelError(msg)
        stages = (("pooler.dense", config.pooler_hidden_act), ("classifier", None))
        return Anatomy(
            family=config.model_type,
            embedding=_embedding(encoder.get_submodule("embeddings"), config),
            layers=_layers(encoder.get_submodule("encoder"), config),
            final_norm=None,
            head=head_of(model, stages, Pooling.FIRST),
            traceable=False,
            padding_reads=False,
        )


def _embedding(tables: nn.Module, config: Any) -> EmbeddingAnatomy:
    def table(name: str) -> nn.Embedding | None:
        found = getattr(tables, name)
        return None if found is None else expect(found, nn.Embedding)

    positions = table("position_embeddings")
    projection = getattr(tables, "embed_proj", None)
    return EmbeddingAnatomy(
        input_name="input_ids",
        tokens=expect(tables.get_submodule("word_embeddings"), nn.Embedding),
        positions=None if positions is None else positions.weight,
        token_types=table("token_type_embeddings"),
        norm=expect(tables.get_submodule("LayerNorm"), nn.LayerNorm),
        projection=None if projection is None else expect(projection, nn.Linear),
        projects_first=True,
        limit=int(config.max_position_embeddings),
    )


def _layers(stack: nn.Module, config: Any) -> tuple[LayerAnatomy, ...]:
    heads = int(config.num_attention_heads)
    head_size = int(getattr(config, "attention_head_size", int(config.hidden_size) // heads))
    activation = activation_named(config.hidden_act)
    places = _places(stack, config)
    layers = (
        _PATHS.layer(index, layer, head_size, activation)
        for index, layer in enumerate(stack.get_submodule("layer").children())
    )
    return tuple(_with_terms(layer, places, config) for layer in layers)


def _places(stack: nn.Module, config: Any) -> Places | None:
    if not config.relative_attention:
        return None
    norms = [name.strip() for name in str(getattr(config, "norm_rel_ebd", "none")).split("|")]
    norm = stack.get_submodule("LayerNorm") if "layer_norm" in map(str.lower, norms) else None
    buckets = int(getattr(config, "position_buckets", -1))
    longest, limit = int(config.max_relative_positions), int(config.max_position_embeddings)
    return Places(
        expect(stack.get_submodule("rel_embeddings"), nn.Embedding),
        None if norm is None else expect(norm, nn.LayerNorm),
        buckets if buckets > 0 else None,
        longest if longest > 0 else limit,
        limit,
    )


def _with_terms(layer: LayerAnatomy, places: Places | None, config: Any) -> LayerAnatomy:
    module, kinds = layer.attention, config.pos_att_type or ()
    products = 1 + sum(kind in kinds for kind in _KINDS)
    if isinstance(module, DroppedAttention) or products == 1:
        return layer
    if places is None:
        scale = 1 / math.sqrt(layer.head_size * products)
        return replace(layer, terms=Disentangled(torch.zeros(1, dtype=torch.long), scale))
    shared = bool(getattr(config, "share_att_key", False))
    names = ("key_proj", "query_proj") if shared else ("pos_key_proj", "pos_query_proj")
    key, query = (
        expect(module.get_submodule(name), nn.Linear) if kind in kinds else None
        for name, kind in zip(names, _KINDS, strict=True)
    )
    terms = LiveDisentangled(places, layer.head_size, products, key, query, shared=shared)
    own = () if shared else tuple(linear for linear in (key, query) if linear is not None)
    return replace(layer, terms=terms, companions=own)
