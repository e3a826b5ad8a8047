"""ALBERT: layers that are applied several times, behind a factorized embedding."""

from dataclasses import replace
from typing import Any

from torch import nn

from ..anatomy import Anatomy, EmbeddingAnatomy, LayerAnatomy
from .base import activation_named, expect
from .bert import BertLike, LayerPaths, head_size_of


class Albert(BertLike):
    """ALBERT: a layer stands for all its applications, and loses a unit in all of them."""

    model_types = ("albert",)
    base = "albert"
    paths = LayerPaths(
        attention="attention",
        query="attention.query",
        key="attention.key",
        value="attention.value",
        output="attention.dense",
        ffn_in="ffn",
        ffn_out="ffn_output",
        attention_norm="attention.LayerNorm",
        ffn_norm="full_layer_layer_norm",
    )
    head = (("albert.pooler", "tanh"), ("classifier", None))

    def anatomy(self, model: nn.Module, config: Any) -> Anatomy:
        """Find the pieces of a model; see `Family.anatomy`."""
        found = super().anatomy(model, config)
        order = _order(config)
        shared = order != tuple(range(len(found.layers)))
        return replace(found, shared_order=order if shared else (), traceable=not shared)

    def _layers(self, encoder: nn.Module, config: Any) -> tuple[LayerAnatomy, ...]:
        groups = encoder.get_submodule("encoder.albert_layer_groups").children()
        layers = [
            layer for group in groups for layer in group.get_submodule("albert_layers").children()
        ]
        activation = activation_named(config.hidden_act)
        return tuple(
            self.paths.layer(index, layer, head_size_of(config), activation)
            for index, layer in enumerate(layers)
        )

    def _embedding(self, encoder: nn.Module, config: Any) -> EmbeddingAnatomy:
        projection = encoder.get_submodule("encoder.embedding_hidden_mapping_in")
        found = super()._embedding(encoder, config)
        return replace(found, projection=expect(projection, nn.Linear))


def _order(config: Any) -> tuple[int, ...]:
    """Return which layer each application uses, as the library counts groups."""
    inner = int(config.inner_group_num)
    applications = int(config.num_hidden_layers)
    groups = [int(i / (applications / config.num_hidden_groups)) for i in range(applications)]
    return tuple(group * inner + place for group in groups for place in range(inner))
