"""BERT and its closest relatives: one table of paths each."""

from dataclasses import dataclass
from typing import Any

from optimum.utils import NormalizedConfigManager
from torch import nn

from ..anatomy import Activation, Anatomy, EmbeddingAnatomy, LayerAnatomy
from ..attention import DroppedAttention
from ..transformer import Pooling
from .base import Family, activation_named, expect, head_of


@dataclass(frozen=True)
class LayerPaths:
    """Paths of a layer's modules, relative to the layer."""

    attention: str = "attention.self"
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    output: str = "attention.output.dense"
    ffn_in: str = "intermediate.dense"
    ffn_out: str = "output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    ffn_norm: str = "output.LayerNorm"

    def layer(
        self, index: int, layer: nn.Module, head_size: int, activation: Activation, **further: Any
    ) -> LayerAnatomy:
        """Find the pieces of one layer.

        Args:
            index: Its position.
            layer: Its module.
            head_size: Width of one head.
            activation: Between the FFN's projections.
            further: Other fields of the anatomy.
        """

        def linear(path: str) -> nn.Linear:
            return expect(layer.get_submodule(path), nn.Linear)

        parent_path, _, attention_name = self.attention.rpartition(".")
        dropped = isinstance(layer.get_submodule(self.attention), DroppedAttention)
        return LayerAnatomy(
            index=index,
            parent=layer.get_submodule(parent_path),
            attention_name=attention_name,
            query=None if dropped else linear(self.query),
            key=None if dropped else linear(self.key),
            value=None if dropped else linear(self.value),
            output=linear(self.output),
            head_size=head_size,
            ffn_in=linear(self.ffn_in),
            ffn_out=linear(self.ffn_out),
            activation=activation,
            attention_norm=expect(layer.get_submodule(self.attention_norm), nn.LayerNorm),
            ffn_norm=expect(layer.get_submodule(self.ffn_norm), nn.LayerNorm),
            **{"norm_first": False} | further,
        )


class BertLike(Family):
    """BERT itself; relatives change a few of its attributes.

    Attributes:
        layers: Path of the stack of layers below the encoder.
        paths: Paths inside a layer.
        head: Path and activation of the linear layers of a sequence classifier.
        projection: Name of the projection behind the embeddings, where there is one.
        token_types: Whether there is a token type table.
        positions_skip_padding: Whether positions are counted over tokens that are no padding.
        activation_field: The configuration's name for the FFN's activation.
    """

    model_types: tuple[str, ...] = ("bert",)
    base = "bert"
    layers = "encoder.layer"
    paths = LayerPaths()
    head: tuple[tuple[str, str | None], ...] = (
        ("bert.pooler.dense", "tanh"),
        ("classifier", None),
    )
    projection: str | None = None
    token_types = True
    positions_skip_padding = False
    activation_field = "hidden_act"

    def anatomy(self, model: nn.Module, config: Any) -> Anatomy:
        """Find the pieces of a model; see `Family.anatomy`."""
        encoder = self.encoder_of(model)
        return Anatomy(
            family=config.model_type,
            embedding=self._embedding(encoder, config),
            layers=self._layers(encoder, config),
            final_norm=None,
            head=head_of(model, self.head, Pooling.FIRST),
        )

    def _layers(self, encoder: nn.Module, config: Any) -> tuple[LayerAnatomy, ...]:
        head_size = head_size_of(config)
        activation = activation_named(getattr(config, self.activation_field))
        stack = encoder.get_submodule(self.layers)
        return tuple(
            self.paths.layer(index, layer, head_size, activation)
            for index, layer in enumerate(stack.children())
        )

    def _embedding(self, encoder: nn.Module, config: Any) -> EmbeddingAnatomy:
        tables = encoder.get_submodule("embeddings")

        def table(name: str) -> nn.Embedding:
            return expect(tables.get_submodule(name), nn.Embedding)

        projects = self.projection is not None and hasattr(encoder, self.projection)
        return EmbeddingAnatomy(
            input_name="input_ids",
            tokens=table("word_embeddings"),
            positions=table("position_embeddings").weight,
            position_padding_id=int(config.pad_token_id) if self.positions_skip_padding else None,
            token_types=table("token_type_embeddings") if self.token_types else None,
            norm=expect(tables.get_submodule("LayerNorm"), nn.LayerNorm),
            projection=(
                expect(encoder.get_submodule(self.projection), nn.Linear)
                if projects and self.projection is not None
                else None
            ),
        )


class RobertaLike(BertLike):
    """RoBERTa and what was trained in its shape."""

    model_types = ("roberta", "xlm-roberta", "camembert")
    base = "roberta"
    head = (("classifier.dense", "tanh"), ("classifier.out_proj", None))
    positions_skip_padding = True


class Electra(BertLike):
    """ELECTRA's discriminator."""

    model_types = ("electra",)
    base = "electra"
    head = (("classifier.dense", "gelu"), ("classifier.out_proj", None))
    projection = "embeddings_project"


class DistilBert(BertLike):
    """DistilBERT: no token types, other names."""

    model_types = ("distilbert",)
    base = "distilbert"
    layers = "transformer.layer"
    paths = LayerPaths(
        attention="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
        ffn_in="ffn.lin1",
        ffn_out="ffn.lin2",
        attention_norm="sa_layer_norm",
        ffn_norm="output_layer_norm",
    )
    head = (("pre_classifier", "relu"), ("classifier", None))
    token_types = False
    activation_field = "activation"


def head_size_of(config: Any) -> int:
    """Return the width of one head of the unpruned model.

    Args:
        config: The model's configuration.
    """
    normalized = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
    return int(normalized.hidden_size) // int(normalized.num_attention_heads)
