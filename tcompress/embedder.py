"""Encoders whose answer is one vector per text, as sentence-transformers directories describe."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self, cast

from torch import Tensor, nn
from torch.nn import functional

from .errors import ModelError
from .intake import check_files, read_json
from .intake.weights import read_headers
from .transformer import Pooling, pooled

MODULES_FILE = "modules.json"
LENGTH_FILE = "sentence_bert_config.json"
_FILES = (MODULES_FILE, LENGTH_FILE, "config_sentence_transformers.json")
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_LONGEST_NAME = 255
# Names of Pooling.pooling_mode, of today and as flags of former versions.
_POOLINGS = {"cls": Pooling.FIRST, "mean": Pooling.MEAN, "max": Pooling.MAX}
_POOLING_FLAGS = {
    "pooling_mode_cls_token": Pooling.FIRST,
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_max_tokens": Pooling.MAX,
}
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "Tanh": nn.Tanh,
    "Identity": nn.Identity,
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
}


@dataclass(frozen=True)
class DenseSpec:
    """A linear layer behind the pooling.

    Attributes:
        folder: Its folder below the model's.
        in_features: Input channels.
        out_features: Output channels.
        bias: Whether it has a bias.
        activation: Name of its activation, a class of `torch.nn`.
    """

    folder: str
    in_features: int
    out_features: int
    bias: bool
    activation: str


@dataclass(frozen=True)
class EmbedderSpec:
    """What makes one vector of the hidden states.

    Attributes:
        pooling: Which hidden states are read.
        dense: Linear layers behind the pooling.
        normalize: Whether vectors are scaled to length 1.
        max_tokens: Longest input that the directory allows, or None.
    """

    pooling: Pooling = Pooling.MEAN
    dense: tuple[DenseSpec, ...] = ()
    normalize: bool = False
    max_tokens: int | None = None

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read a sentence-transformers directory; one without `modules.json` is pooled by mean.

        Args:
            directory: A model directory.

        Raises:
            ModelError: If it holds a module that is not supported.
        """
        if not (directory / MODULES_FILE).is_file():
            return cls()
        pooling, dense, normalize = Pooling.MEAN, [], False
        for kind, folder in _modules(directory):
            if kind == "Pooling":
                pooling = _read_pooling(directory / folder / _CONFIG)
            elif kind == "Dense":
                dense.append(_read_dense(directory / folder / _CONFIG, folder))
            elif kind == "Normalize":
                normalize = True
            elif kind != "Transformer":
                msg = (
                    f"{directory / MODULES_FILE}: module {kind!r} is not supported; known are "
                    "Transformer, Pooling, Dense, Normalize"
                )
                raise ModelError(msg)
        return cls(pooling, tuple(dense), normalize, _read_length(directory))


class Embedder(nn.Module):
    """A Hugging Face encoder without head, its hidden states pooled to one vector.

    Args:
        base: The encoder; its output has `last_hidden_state`. A pooler that it has is taken off.
        spec: What makes one vector of the hidden states.
    """

    def __init__(self, base: nn.Module, spec: EmbedderSpec) -> None:
        super().__init__()
        if getattr(base, "pooler", None) is not None:
            base.register_module("pooler", None)
        self.base = base
        self.spec = spec
        self.dense = nn.ModuleList(
            nn.ModuleDict({"linear": nn.Linear(part.in_features, part.out_features, part.bias)})
            for part in spec.dense
        )
        self.activations = nn.ModuleList(_ACTIVATIONS[part.activation]() for part in spec.dense)

    @property
    def config(self) -> Any:
        """The encoder's configuration."""
        return self.base.config

    @property
    def linears(self) -> list[nn.Linear]:
        """The linear layers behind the pooling."""
        return [cast("nn.Linear", cast("nn.ModuleDict", part)["linear"]) for part in self.dense]

    def forward(self, **inputs: Tensor) -> Tensor:
        """Embed.

        Args:
            inputs: The encoder's inputs by name; `attention_mask` where it takes one.

        Returns:
            `(batch, width)`.
        """
        hidden = self.base(**inputs).last_hidden_state
        x = pooled(self.spec.pooling, hidden, inputs.get("attention_mask"))
        for linear, activation in zip(self.linears, self.activations, strict=True):
            x = activation(linear(x))
        return functional.normalize(x, dim=-1) if self.spec.normalize else x


def is_embedder(directory: Path) -> bool:
    """Say whether a directory describes an encoder whose answer is one vector.

    Args:
        directory: A model directory.
    """
    return (directory / MODULES_FILE).is_file()


def embedder_files(directory: Path) -> Iterator[str]:
    """Yield the files, besides those of any model, that a directory's vectors depend on.

    Args:
        directory: A model directory.

    Yields:
        Paths below the directory; those of linear layers' weights left out.
    """
    if is_embedder(directory):
        yield from (name for name in _FILES if (directory / name).is_file())
        folders = [f"{folder}/{_CONFIG}" for _, folder in _modules(directory) if folder]
        check_files(directory, (*_FILES, *folders))
        yield from (name for name in folders if (directory / name).is_file())


def dense_weights(spec: EmbedderSpec) -> dict[str, str]:
    """Return where the weights of each linear layer stand, below the model's directory.

    Args:
        spec: What makes one vector of the hidden states.

    Returns:
        Per prefix in an `Embedder`'s state, the path of the safetensors file.
    """
    return {f"dense.{i}.": f"{part.folder}/{_WEIGHTS}" for i, part in enumerate(spec.dense)}


def check_dense(directory: Path, spec: EmbedderSpec) -> None:
    """Raise unless the weights behind the pooling are as large as their description says.

    Args:
        directory: A model directory.
        spec: What makes one vector of the hidden states.

    Raises:
        ModelError: If they are not, or are bad.
    """
    for part, name in zip(spec.dense, dense_weights(spec).values(), strict=True):
        expected = (part.out_features, part.in_features)
        found = read_headers(directory, name).get("linear.weight")
        if found is None or found.shape != expected:
            msg = (
                f"{directory / name}: 'linear.weight' must have shape (out, in)={expected}, got "
                f"{found and found.shape}"
            )
            raise ModelError(msg)


def _modules(directory: Path) -> list[tuple[str, str]]:
    """Return kind and folder of each module in order; the encoder's own must be the directory."""
    path = directory / MODULES_FILE
    try:
        rows = [
            (_text(row, "type").rpartition(".")[2], _text(row, "path"))
            for row in sorted(read_json(path, expected=list), key=lambda row: int(row["idx"]))
        ]
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{path}: not a list of sentence-transformers modules: {error!r}"
        raise ModelError(msg) from error
    for kind, folder in rows:
        parts = PurePosixPath(folder).parts
        inside = len(parts) == 1 and parts[0] not in ("..", "/") and "\\" not in folder
        if folder and (kind == "Transformer" or not inside):
            msg = (
                f"{path}: {kind} lies in {folder!r}; the encoder must be in the directory itself, "
                "other modules in folders right below it"
            )
            raise ModelError(msg)
    return rows


def _text(row: dict[str, Any], key: str) -> str:
    if not isinstance(row[key], str) or len(row[key]) > _LONGEST_NAME:
        msg = f"{key!r} must be a name, got {str(row[key])[:_LONGEST_NAME]!r}"
        raise TypeError(msg)
    return str(row[key])


def _read_pooling(path: Path) -> Pooling:
    document = read_json(path)
    found = {_POOLINGS.get(document["pooling_mode"])} if "pooling_mode" in document else set()
    flags = {name for name, value in document.items() if name.startswith("pooling_mode_") and value}
    found |= {_POOLING_FLAGS.get(name) for name in flags}
    if len(found) != 1 or (pooling := found.pop()) is None:
        msg = f"{path}: exactly one pooling out of {', '.join(_POOLINGS)} is supported"
        raise ModelError(msg)
    return pooling


def _read_dense(path: Path, folder: str) -> DenseSpec:
    document = read_json(path)
    try:
        activation = str(document["activation_function"]).rpartition(".")[2]
        if activation not in _ACTIVATIONS:
            msg = f"activation {activation!r} is not one of {', '.join(_ACTIVATIONS)}"
            raise ValueError(msg)
        sizes = int(document["in_features"]), int(document["out_features"])
        return DenseSpec(folder, *sizes, bool(document["bias"]), activation)
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{path}: not a Dense module: {error}"
        raise ModelError(msg) from error


def _read_length(directory: Path) -> int | None:
    path = directory / LENGTH_FILE
    found = read_json(path).get("max_seq_length") if path.is_file() else None
    if found is not None and (type(found) is not int or found < 1):
        msg = f"{path}: max_seq_length must be a number from 1, got {found!r}"
        raise ModelError(msg)
    return found
