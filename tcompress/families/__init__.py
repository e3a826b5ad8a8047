"""The model families that tcompress knows: the only place that knows them by name."""

from dataclasses import replace

from torch import Tensor, nn

from ..anatomy import Anatomy
from ..embedder import Embedder
from ..errors import ModelError
from ..own_module import OwnModule
from ..transformer import TransformerClassifier
from .albert import Albert
from .base import Family, embedder_head
from .bert import BertLike, DistilBert, Electra, RobertaLike
from .deberta import DebertaV2
from .modernbert import ModernBert
from .mpnet import MPNet
from .torch_encoder import torch_anatomy
from .vision import VISION

_FAMILIES: tuple[Family, ...] = (
    BertLike(),
    RobertaLike(),
    Electra(),
    DistilBert(),
    ModernBert(),
    MPNet(),
    DebertaV2(),
    Albert(),
    *VISION,
)
_FAMILY_OF_TYPE = {name: family for family in _FAMILIES for name in family.model_types}


def known_families() -> list[str]:
    """Return the Hugging Face model types that tcompress knows, sorted."""
    return sorted(_FAMILY_OF_TYPE)


def classifier_of(model_type: str) -> str:
    """Return the auto class of transformers that builds a family's classifiers.

    Args:
        model_type: The configuration's; an unknown one is taken for a reader of texts.
    """
    return _FAMILY_OF_TYPE.get(model_type, Family()).classifier


def anatomy_of(model: nn.Module) -> Anatomy:
    """Find the pieces of a model.

    Args:
        model: A prepared Hugging Face model of a known family, or a `TransformerClassifier`.

    Raises:
        ModelError: If the model is of no known family.
    """
    if isinstance(model, TransformerClassifier):
        return torch_anatomy(model)
    if isinstance(model, OwnModule):
        return model.anatomy()
    if isinstance(model, Embedder):
        return replace(anatomy_of(model.base), head=embedder_head(model))
    return _family_of(model).anatomy(model, model.config)


def prepare_(model: nn.Module) -> None:
    """Replace modules that fuse projections by equal ones that hold them apart, in place.

    Args:
        model: A Hugging Face model whose weights mean nothing yet.

    Raises:
        ModelError: If the model is of no known family.
    """
    _family_of(model).prepare_(_without_head(model))


def translated(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's weights under the names of a prepared model.

    Args:
        model: The prepared model.
        state: The checkpoint, or what a prepared model's `state_dict` gave.
    """
    return _family_of(model).translated(_without_head(model), state)


def published(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a dense model's weights under the names that its own library reads.

    Args:
        model: The model.
        state: What its `state_dict` gave, of an embedder that of the part below its head.
    """
    family = _FAMILY_OF_TYPE.get(_type_of(_without_head(model)))
    return state if family is None else family.published(state)


def _without_head(model: nn.Module) -> nn.Module:
    return model.base if isinstance(model, Embedder) else model


def _type_of(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))


def _family_of(model: nn.Module) -> Family:
    found = _type_of(model)
    if found not in _FAMILY_OF_TYPE:
        known = ", ".join(known_families())
        msg = f"{found!r} is no encoder family that tcompress knows; known are: {known}"
        raise ModelError(msg)
    return _FAMILY_OF_TYPE[found]
