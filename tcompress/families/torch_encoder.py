"""Classifiers around `torch.nn.TransformerEncoder`."""

from torch import nn

from ..anatomy import Anatomy, EmbeddingAnatomy, HeadAnatomy, HeadStage, LayerAnatomy
from ..attention import HeadAttention
from ..errors import ModelError
from ..transformer import TransformerClassifier
from .base import activation_of, expect


def torch_anatomy(model: TransformerClassifier) -> Anatomy:
    """Find the pieces of a `TransformerClassifier`.

    Args:
        model: The model, whose `nn.MultiheadAttention` modules were replaced.

    Raises:
        ModelError: If they were not.
    """
    spec = model.spec
    norm = model.encoder.norm
    return Anatomy(
        family="nn.TransformerEncoder",
        embedding=EmbeddingAnatomy(
            input_name=spec.input_name, tokens=model.embedding, positions=model.position_weights()
        ),
        layers=tuple(
            torch_layer(index, layer, batch_first=spec.batch_first)
            for index, layer in enumerate(model.encoder.layers)
        ),
        final_norm=None if norm is None else expect(norm, nn.LayerNorm),
        head=HeadAnatomy(spec.pooling, (HeadStage(model.classifier),)),
    )


def torch_layer(index: int, layer: nn.Module, *, batch_first: bool) -> LayerAnatomy:
    """Find the pieces of an `nn.TransformerEncoderLayer`.

    Args:
        index: Its position.
        layer: The layer, whose `nn.MultiheadAttention` was replaced.
        batch_first: Whether it computes `(batch, tokens, width)`.

    Raises:
        ModelError: If it is another module, or its attention was not replaced.
    """
    layer = expect(layer, nn.TransformerEncoderLayer)
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
        activation=activation_of(layer.activation),
        attention_norm=layer.norm1,
        ffn_norm=layer.norm2,
        norm_first=layer.norm_first,
        ffn_batch_dim=0 if batch_first else 1,
    )
