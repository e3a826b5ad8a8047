"""What every family module gives, and what they share."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..anatomy import Activation, Anatomy, HeadAnatomy, HeadStage
from ..embedder import Embedder
from ..errors import ModelError
from ..transformer import Pooling

ModuleT = TypeVar("ModuleT", bound=nn.Module)

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


class Family:
    """How to find the pieces of the models of a family.

    Attributes:
        model_types: Values of a configuration's `model_type`.
        base: Name under which a model with a head holds the encoder.
        classifier: The library's auto class for classifiers.
    """

    model_types: tuple[str, ...] = ()
    base: str = ""
    classifier: str = "AutoModelForSequenceClassification"

    def prepare_(self, model: nn.Module) -> None:
        """Replace modules that fuse projections by equal ones that hold them apart, in place.

        Args:
            model: A model of the family, whose weights mean nothing yet.
        """

    def translated(self, model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a checkpoint's weights under the names of a prepared model.

        Args:
            model: The prepared model.
            state: The checkpoint, or what a prepared model's `state_dict` gave.
        """
        return state

    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a dense model's weights under the names that its own library reads.

        Args:
            state: What a prepared model's `state_dict` gave.
        """
        return state

    def anatomy(self, model: nn.Module, config: Any) -> Anatomy:
        """Find the pieces of a prepared model.

        Args:
            model: The model, with or without a head.
            config: Its configuration.

        Raises:
            ModelError: If it is built otherwise than the family is.
        """
        raise NotImplementedError

    def encoder_of(self, model: nn.Module) -> nn.Module:
        """Return the part below the head; the model itself where it has none.

        Args:
            model: The model.
        """
        return getattr(model, self.base, model)


def head_of(
    model: nn.Module, sequence_stages: Sequence[tuple[str, str | None]], pooling: Pooling
) -> HeadAnatomy:
    """Find a model's head.

    Args:
        model: The model.
        sequence_stages: Path and activation of the linear layers of the family's sequence
            classifiers.
        pooling: What those read.
    """
    for name in ("qa_outputs", "classifier"):
        found = getattr(model, name, None)
        one_per_token = name == "qa_outputs" or "ForTokenClassification" in type(model).__name__
        if isinstance(found, nn.Linear) and one_per_token:
            return HeadAnatomy(Pooling.NONE, (HeadStage(found),))
    if not hasattr(model, "classifier"):
        return HeadAnatomy(Pooling.NONE, ())
    stages = (
        HeadStage(
            expect(model.get_submodule(path), nn.Linear),
            None if name is None else activation_named(name),
        )
        for path, name in sequence_stages
    )
    return HeadAnatomy(pooling, tuple(stages))


def embedder_head(model: Embedder) -> HeadAnatomy:
    """Return the head of an embedder.

    Args:
        model: The embedder.
    """
    stages = (
        HeadStage(
            linear,
            None if isinstance(activation, nn.Identity) else activation_of(activation),
        )
        for linear, activation in zip(model.linears, model.activations, strict=True)
    )
    return HeadAnatomy(model.spec.pooling, tuple(stages), model.spec.normalize)


def activation_named(name: str) -> Activation:
    """Return the activation that configurations call by a name.

    Args:
        name: The name.

    Raises:
        ModelError: If it is not known.
    """
    try:
        return _ACTIVATION_NAMES[name]
    except (KeyError, TypeError) as error:
        known = ", ".join(sorted(_ACTIVATION_NAMES))
        msg = f"activation {name!r} is not known; known are: {known}"
        raise ModelError(msg) from error


def activation_of(function: Callable[[Tensor], Tensor] | nn.Module) -> Activation:
    """Return which activation a function or module is.

    Args:
        function: The function or module.

    Raises:
        ModelError: If it is not known.
    """
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


def expect(module: nn.Module, kind: type[ModuleT]) -> ModuleT:
    """Return a module as the kind that it must be of.

    Args:
        module: The module.
        kind: The kind.

    Raises:
        ModelError: If it is of another kind.
    """
    if not isinstance(module, kind):
        msg = f"expected a {kind.__name__}, found a {type(module).__name__}"
        raise ModelError(msg)
    return module
