"""MPNet: BERT with a relative bias that all layers share."""

import inspect
from dataclasses import replace
from typing import Any

from torch import nn

from ..anatomy import Anatomy, LayerAnatomy
from ..terms.relative import RelativeBias
from .base import expect
from .bert import BertLike, LayerPaths

_PADDING_ID = 1  # fixed in the library, whatever the configuration says
_ATTENTION = "attention.attn"


class MPNet(BertLike):
    """MPNet: positions from behind the padding id, no token types, relative bias."""

    model_types = ("mpnet",)
    base = "mpnet"
    paths = LayerPaths(
        attention=_ATTENTION,
        query=f"{_ATTENTION}.q",
        key=f"{_ATTENTION}.k",
        value=f"{_ATTENTION}.v",
        output=f"{_ATTENTION}.o",
        attention_norm="attention.LayerNorm",
    )
    head = (("classifier.dense", "tanh"), ("classifier.out_proj", None))
    token_types = False

    def prepare_(self, model: nn.Module) -> None:
        """Let layers that lost heads take their own heads' part of the bias for all."""
        for layer in self.encoder_of(model).get_submodule(self.layers).children():
            attention = layer.get_submodule(_ATTENTION)
            attention.register_forward_pre_hook(_own_bias, with_kwargs=True)

    def anatomy(self, model: nn.Module, config: Any) -> Anatomy:
        """Find the pieces of a model; see `Family.anatomy`."""
        found = super().anatomy(model, config)
        table = self.encoder_of(model).get_submodule("encoder.relative_attention_bias")
        terms = expect(table, nn.Embedding)
        return replace(
            found,
            embedding=replace(found.embedding, position_padding_id=_PADDING_ID),
            layers=tuple(_with_bias(layer, terms) for layer in found.layers),
            traceable=False,
        )


def _with_bias(layer: LayerAnatomy, table: nn.Embedding) -> LayerAnatomy:
    heads = tuple(range(table.embedding_dim))
    kept = vars(layer.attention).get("kept_heads", heads)
    return replace(layer, terms=RelativeBias(table, kept))


def _own_bias(module: nn.Module, args: Any, kwargs: Any) -> Any:
    kept = vars(module).get("kept_heads")
    if kept is None:
        return None
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    bound.arguments["position_bias"] = bound.arguments["position_bias"][:, list(kept)]
    return bound.args, bound.kwargs
