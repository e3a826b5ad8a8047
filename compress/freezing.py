"""Parameters that training or measuring leaves as they are."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from tcompress.anatomy import Anatomy
from tcompress.encoder import Encoder
from tcompress.errors import RequestError


@contextmanager
def frozen(encoder: Encoder, freeze_layers: int) -> Iterator[list[nn.Parameter]]:
    """Switch gradients off for the embeddings and lowest layers while the block runs.

    Args:
        encoder: The encoder.
        freeze_layers: How many layers; 0 freezes nothing, not even the embeddings.

    Yields:
        The parameters that are left to train.

    Raises:
        RequestError: If the encoder has fewer layers.
    """
    anatomy = encoder.anatomy
    if freeze_layers > len(anatomy.layers):
        msg = f"--freeze-layers {freeze_layers}: the encoder has {len(anatomy.layers)} layers"
        raise RequestError(msg)
    with _restoring(encoder.model):
        if freeze_layers:
            _freeze_(anatomy, freeze_layers)
        yield [parameter for parameter in encoder.model.parameters() if parameter.requires_grad]


@contextmanager
def untrained(model: nn.Module) -> Iterator[None]:
    """Keep autograd away from the parameters while the block runs.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    with _restoring(model):
        model.requires_grad_(False)
        yield


@contextmanager
def _restoring(model: nn.Module) -> Iterator[None]:
    states = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, state in states:
            parameter.requires_grad_(state)


def _freeze_(anatomy: Anatomy, freeze_layers: int) -> None:
    embedding = anatomy.embedding
    modules: list[nn.Module | None] = [embedding.tokens, embedding.token_types]
    modules += [embedding.norm, embedding.projection]
    for layer in anatomy.layers[:freeze_layers]:
        modules += [*layer.projections(), *layer.companions, layer.output]
        modules += [*layer.ffn_readers(), layer.ffn_out, layer.attention_norm, layer.ffn_norm]
    for module in modules:
        if module is not None:
            module.requires_grad_(False)
    for tensor in (embedding.positions, *embedding.prefix):
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(False)
