"""What a model's configuration may ask for: no code, and no more than its weights can fill."""

import re
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .files import DESCRIPTION_BYTES, checked_file
from .json_documents import read_json
from .safetensors_header import TensorInfo

CONFIG_FILE = "config.json"
MAX_LABELS = 100_000
# Layers may share weights, and pruning takes most of them: what a model may be built with.
MAX_SHARED_LAYERS = 256
MAX_GROWTH = 64
FREE_PARAMETERS = 1 << 24
_REMEDY = "take the file from where the model came"
_CODE_KEYS = (
    "auto_map",
    "trust_remote_code",
    "_attn_implementation_internal",
    "custom_pipelines",
)
_OTHER_FILES = "configuration_files"
_ATTENTION_KEYS = ("_attn_implementation", "attn_implementation")
_ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_TYPE_KEYS = ("dtype", "torch_dtype")
_TYPES = ("auto", "float64", "float32", "float16", "bfloat16")
_MODEL_TYPE = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_LAYER_KEYS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer", "num_hidden_groups")
_NUMBER_KEYS = ("layer_norm_eps", "norm_eps", "hidden_dropout_prob", "initializer_range")
_SIZE_KEYS = ("hidden_size", "dim", "num_attention_heads", "n_heads", "vocab_size")
_COUNT_KEYS = (*_SIZE_KEYS, "intermediate_size", "hidden_dim", "max_position_embeddings")


@dataclass(frozen=True)
class Sizes:
    """How large the model is that a description asks for.

    Attributes:
        layers: Encoder layers.
        width: Channels of the residual stream.
        neurons: FFN neurons per layer.
        rows: Tokens, positions, types, labels and values of a patch, each a row of `width`.
    """

    layers: int
    width: int
    neurons: int
    rows: int

    @property
    def parameters(self) -> int:
        """About how many parameters that makes."""
        layer = 4 * self.width**2 + 2 * self.width * self.neurons
        return self.layers * layer + self.rows * self.width


def read_config_document(directory: Path, known_types: Collection[str]) -> dict[str, Any]:
    """Read a Hugging Face configuration that asks for nothing which is not given.

    Args:
        directory: A model directory.
        known_types: Values of `model_type` that can be opened.

    Raises:
        ModelError: If it asks for code, holds values that mean nothing, or is of another type.
    """
    path = checked_file(directory, CONFIG_FILE, limit_bytes=DESCRIPTION_BYTES)
    document: dict[str, Any] = read_json(path, remedy=_REMEDY)
    _check_code(path, document)
    _check_types(path, document, known_types)
    _check_counts(path, document)
    _check_labels(path, document)
    return document


def check_sizes(path: Path, sizes: Sizes, weights: Mapping[str, TensorInfo]) -> None:
    """Raise where a description asks for a model that its weights cannot fill.

    Args:
        path: The description.
        sizes: What it asks for.
        weights: What the weights are.

    Raises:
        ModelError: If building the model would take far more than its weights do.
    """
    if sizes.layers > max(MAX_SHARED_LAYERS, len(weights)):
        msg = (
            f"{path}: {sizes.layers:,} layers, its weights are {len(weights):,} tensors; {_REMEDY}"
        )
        raise ModelError(msg)
    held = sum(info.elements for info in weights.values())
    if sizes.parameters > MAX_GROWTH * held + FREE_PARAMETERS:
        msg = (
            f"{path}: describes a model of {sizes.parameters:,} parameters, its weights hold "
            f"{held:,}; {_REMEDY}"
        )
        raise ModelError(msg)


def sizes_of(path: Path, config: Any) -> Sizes:
    """Return the sizes that a Hugging Face configuration asks for.

    Args:
        path: Its file.
        config: The configuration.

    Raises:
        ModelError: If the heads do not divide the width, or the sizes of images mean nothing.
    """
    width, heads = int(config.hidden_size), int(config.num_attention_heads)
    if width % heads:
        msg = f"{path}: {heads} attention heads do not divide a width of {width}; {_REMEDY}"
        raise ModelError(msg)
    rows = [_count(config, name) for name in ("vocab_size", "max_position_embeddings")]
    rows += [_count(config, name) for name in ("type_vocab_size", "num_labels")]
    rows.append(_patches(path, config))
    neurons = _count(config, "intermediate_size") or _count(config, "hidden_dim")
    return Sizes(int(config.num_hidden_layers), width, neurons, sum(rows))


def _check_code(path: Path, document: Mapping[str, Any]) -> None:
    for key in _CODE_KEYS:
        if document.get(key):
            msg = (
                f"{path}: {key!r} asks for code from the model's directory, which is never run; "
                "if the model is of a known type all the same, remove the key"
            )
            raise ModelError(msg)
    for key in _ATTENTION_KEYS:
        if document.get(key) not in (None, *_ATTENTIONS):
            msg = (
                f"{path}: {key!r} is {_short(document[key])}, code that is never fetched; remove "
                "the key"
            )
            raise ModelError(msg)
    if document.get(_OTHER_FILES):
        msg = f"{path}: {_OTHER_FILES!r} names files to be read in its place; remove the key"
        raise ModelError(msg)
    if document.get("quantization_config"):
        msg = (
            f"{path}: 'quantization_config' says that another library packed the weights; open "
            "the model that they were made from"
        )
        raise ModelError(msg)


def _check_types(path: Path, document: Mapping[str, Any], known: Collection[str]) -> None:
    found = document.get("model_type")
    if not isinstance(found, str) or _MODEL_TYPE.fullmatch(found) is None:
        msg = f"{path}: 'model_type' must be a name such as 'bert', got {_short(found)}; {_REMEDY}"
        raise ModelError(msg)
    if found not in known:
        names = ", ".join(sorted(known))
        msg = f"{path}: {found!r} is no encoder family that tcompress knows; known are: {names}"
        raise ModelError(msg)
    for key in _TYPE_KEYS:
        value = document.get(key)
        if value is not None and str(value).removeprefix("torch.") not in _TYPES:
            msg = f"{path}: {key!r} must be one of {', '.join(_TYPES)}, got {_short(value)}"
            raise ModelError(msg)


def _check_counts(path: Path, document: Mapping[str, Any]) -> None:
    """Check numbers before a configuration is made of them: that writes lists as long."""
    for key in (*_LAYER_KEYS, *_COUNT_KEYS):
        value = document.get(key)
        if value is not None and (type(value) is not int or value < 1):
            msg = f"{path}: {key!r} must be a whole number from 1, got {_short(value)}; {_REMEDY}"
            raise ModelError(msg)
    for key in _NUMBER_KEYS:
        value = document.get(key)
        if value is not None and (type(value) not in (int, float) or value < 0):
            msg = f"{path}: {key!r} must be a number from 0, got {_short(value)}; {_REMEDY}"
            raise ModelError(msg)
    limits = {**dict.fromkeys(_LAYER_KEYS, MAX_LABELS), "num_labels": MAX_LABELS}
    for key, limit in limits.items():
        value = document.get(key)
        if value is not None and (type(value) is not int or not 0 <= value <= limit):
            msg = f"{path}: {key!r} must be at most {limit:,}, got {_short(value)}; {_REMEDY}"
            raise ModelError(msg)


def _check_labels(path: Path, document: Mapping[str, Any]) -> None:
    names = document.get("id2label")
    if names is None:
        return
    if not isinstance(names, dict) or len(names) > MAX_LABELS:
        msg = f"{path}: 'id2label' must name at most {MAX_LABELS:,} classes, got {_short(names)}"
        raise ModelError(msg)
    if wrong := [key for key in names if not (key.isascii() and key.isdecimal())]:
        msg = f"{path}: 'id2label' must have the numbers of classes as keys, got {_short(wrong[0])}"
        raise ModelError(msg)


def _count(config: Any, name: str) -> int:
    value = getattr(config, name, None)
    return value if isinstance(value, int) else 0


def _patches(path: Path, config: Any) -> int:
    """Return at most how many patches and values of a patch a model is built for.

    A model of texts is built for none, whatever its file says of images.
    """
    if getattr(type(config)(), "patch_size", None) is None:
        return 0
    rows, columns = _edges(path, "patch_size", config.patch_size)
    values = max(1, _count(config, "num_channels")) * rows * columns
    if (size := getattr(config, "image_size", None)) is None:
        return values + _count(config, "max_length") * _count(config, "num_mel_bins")
    height, width = _edges(path, "image_size", size)
    return values + (height // rows) * (width // columns)


def _edges(path: Path, key: str, value: Any) -> tuple[int, int]:
    """Return height and width, of which a configuration gives both or one for both."""
    found = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(found) != 2 or any(type(edge) is not int or edge < 1 for edge in found):
        msg = (
            f"{path}: {key!r} must be a whole number from 1 or two, got {_short(value)}; {_REMEDY}"
        )
        raise ModelError(msg)
    return found[0], found[1]


def _short(value: Any) -> str:
    return reprlib.repr(value)
