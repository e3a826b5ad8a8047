"""Transforms that leave work out and change no answer; each with the equation that says why.

They work on the anatomy: pieces that change are new ones, so the source encoder keeps its own.
"""

from dataclasses import replace

from torch import Tensor, nn

from tcompress.anatomy import Anatomy, EmbeddingAnatomy, LayerAnatomy
from tcompress.encoder import Encoder
from tcompress.errors import RequestError
from tcompress.preprocessing import TOKEN_TYPES, TextPreprocessor


def simplify(anatomy: Anatomy, *, token_types: bool) -> Anatomy:
    """Apply every transform.

    Args:
        anatomy: The pieces of an encoder; they and their tensors are not changed.
        token_types: Whether the encoder is given token types; where not, all are 0.

    Returns:
        Pieces that compute the same logits; what did not change is shared.
    """
    embedding = anatomy.embedding if token_types else fold_token_types(anatomy.embedding)
    layers = tuple(fold_terms(fold_value_bias(drop_key_bias(layer))) for layer in anatomy.layers)
    return replace(anatomy, embedding=embedding, layers=layers)


def drop_key_bias(layer: LayerAnatomy) -> LayerAnatomy:
    """Leave out the bias of the keys, which attention cannot see.

    The score of query i and key j is q_i . (W_K x_j + b_K) = q_i . W_K x_j + q_i . b_K. The last
    term is the same for every j, and a softmax over j does not change when all its inputs shift.
    Positions that read or rotate the keys see the bias, and keep it.

    Args:
        layer: The layer; not changed.
    """
    seen = layer.terms is not None and layer.terms.reads_keys
    if seen or layer.key is None or layer.key.bias is None:
        return layer
    return replace(layer, key=_linear(layer.key.weight, None))


def fold_value_bias(layer: LayerAnatomy) -> LayerAnatomy:
    """Move the bias of the values behind the attention.

    The weights a_ij of a query i sum to 1 over j, so the sublayer's output
    W_O (sum_j a_ij (W_V x_j + b_V)) + b_O is W_O (sum_j a_ij W_V x_j) + (b_O + W_O b_V).

    Args:
        layer: The layer; not changed.
    """
    value, output = layer.value, layer.output
    if value is None or value.bias is None:
        return layer
    # in double precision, so that the sum is rounded once
    bias = output.weight.detach().double() @ value.bias.detach().double()
    if output.bias is not None:
        bias += output.bias.detach()
    return replace(
        layer,
        value=_linear(value.weight, None),
        output=_linear(output.weight, bias.to(output.weight.dtype)),
    )


def fold_terms(layer: LayerAnatomy) -> LayerAnatomy:
    """Compute once what positions add to attention scores, as far as weights alone decide it.

    Args:
        layer: The layer; not changed.
    """
    return layer if layer.terms is None else replace(layer, terms=layer.terms.folded())


def fold_token_types(embedding: EmbeddingAnatomy) -> EmbeddingAnatomy:
    """Add the embedding of token type 0 to every position, for inputs that have no other type.

    tokens[id] + positions[p] + token_types[0] = tokens[id] + (positions + token_types[0])[p].
    Without positions it is added to every token.

    Args:
        embedding: The input side; not changed.
    """
    if embedding.token_types is None:
        return embedding
    shared = embedding.token_types.weight.detach()[0]
    if embedding.positions is None:
        tokens = _onto_tokens(embedding, shared)
        return replace(embedding, tokens=tokens, token_types=None)
    return replace(embedding, positions=embedding.positions.detach() + shared, token_types=None)


def _onto_tokens(embedding: EmbeddingAnatomy, shared: Tensor) -> nn.Embedding:
    """Return the token table with a vector added to every row."""
    assert isinstance(embedding.tokens, nn.Embedding), "token types come with a token table"
    table = embedding.tokens.weight.detach() + shared / embedding.scale
    summed: nn.Embedding = nn.Embedding.from_pretrained(table)
    return summed


def without_token_types(encoder: Encoder) -> Encoder:
    """Return the encoder as one that reads single texts only, and so needs no token types.

    Args:
        encoder: The encoder; not changed, and sharing its model with what is returned.

    Returns:
        The encoder whose preprocessor gives no token types and refuses text pairs; the encoder
        itself where it takes no token types anyway.

    Raises:
        RequestError: If its tokenizer gives a single text other types than 0.
    """
    preprocessor = encoder.preprocessor
    if not isinstance(preprocessor, TextPreprocessor):
        return encoder
    names = tuple(name for name in preprocessor.input_names if name != TOKEN_TYPES)
    if names == preprocessor.input_names:
        return encoder
    if any(preprocessor.tokenizer("a")[TOKEN_TYPES]):
        msg = (
            f"{encoder.directory}: its tokenizer gives single texts token types other than 0; "
            "export with --keep-token-types"
        )
        raise RequestError(msg)
    return replace(encoder, preprocessor=replace(preprocessor, input_names=names, pairs=False))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Make a linear layer around a weight that belongs to another one."""
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
