"""Where the pieces of a user's own module are, as names: found, declared, or read from a file."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from itertools import takewhile
from pathlib import Path
from typing import Any, Self, cast

from torch import Tensor, nn

from .anatomy import (
    Activation,
    Anatomy,
    EmbeddingAnatomy,
    HeadAnatomy,
    HeadStage,
    LayerAnatomy,
    resize_linear_,
)
from .errors import ModelError
from .intake import read_json
from .transformer import Pooling

ANATOMY_FILE = "anatomy.json"
FAMILY = "own module"


class MaskForm(StrEnum):
    """How a module is told which tokens are padding."""

    NUMBER = "number"
    """1 at real tokens, 0 at padding."""
    REAL = "real"
    """True at real tokens."""
    PADDING = "padding"
    """True at padding."""


@dataclass(frozen=True)
class Call:
    """How a module is called.

    Attributes:
        main: Argument of the ids or features.
        mask: Argument that says what is padding, or None.
        mask_form: How it says that.
        token_types: Argument of the token types, or None.
        outputs: Channels of the answers.
    """

    main: str = ""
    mask: str | None = None
    mask_form: MaskForm = MaskForm.NUMBER
    token_types: str | None = None
    outputs: int = 0

    def __post_init__(self) -> None:
        """Coerce the mode."""
        object.__setattr__(self, "mask_form", MaskForm(self.mask_form))


@dataclass(frozen=True)
class LayerPaths:
    """Names of one layer's modules; what they mean is said at `LayerAnatomy`."""

    query: str
    key: str
    value: str
    output: str
    ffn_in: str
    ffn_out: str
    head_size: int
    activation: Activation
    attention_norm: str | None = None
    ffn_norm: str | None = None
    norm_first: bool = False
    gate: str | None = None
    ffn_batch_dim: int = 0

    def __post_init__(self) -> None:
        """Coerce the mode."""
        object.__setattr__(self, "activation", Activation(self.activation))


@dataclass(frozen=True)
class StagePaths:
    """Names of one step of a head; see `HeadStage`."""

    linear: str
    activation: Activation | None = None
    norm: str | None = None

    def __post_init__(self) -> None:
        """Coerce the mode."""
        if self.activation is not None:
            object.__setattr__(self, "activation", Activation(self.activation))


@dataclass(frozen=True)
class OwnLayer(LayerAnatomy):
    """A layer of a user's own module: without heads its attention stays in place, empty.

    Attributes:
        runner: The module that computes the layer, where it is not the one it was written with.
    """

    runner: nn.Module | None = None

    @property
    def last_module(self) -> nn.Module:
        """The module whose output is the layer's."""
        return super().last_module if self.runner is None else self.runner

    def drop_attention_(self) -> None:
        """Remove all heads; only the output bias stays."""
        for projection in self.projections():
            resize_linear_(projection, out_features=0)
        resize_linear_(self.output, in_features=0)


@dataclass(frozen=True)
class Blueprint:
    """Names of all pieces of a module.

    Attributes:
        layers: The layers, first to last.
        tokens: Token table, or projection of feature inputs.
        positions: Position table: an `nn.Embedding`, a parameter or a buffer; None without one.
        scale: Factor of the embedded tokens, before positions are added.
        embedding_norm: Norm of the embedded inputs, or None.
        final_norm: Norm behind the stack, or None.
        head: Steps of the head, where they are known.
        head_norm: Norm of what the head reads, or None.
        pooling: What the head reads.
        token_types: Token type table, or None.
        plain: Whether these pieces are all there is: put together as usual they give the same
            answers. Where they are not, exports are traced from the module itself.
        runs_plain: Whether the pieces are also what runs, in place of the module's own forward,
            whose attention could not lose heads.
        shared_order: Where layers are applied several times, their positions in that order.
        fused: Projections that were taken apart into query, key and value.
        call: How the module is called.
    """

    layers: tuple[LayerPaths, ...]
    tokens: str
    positions: str | None = None
    scale: float = 1.0
    embedding_norm: str | None = None
    final_norm: str | None = None
    head: tuple[StagePaths, ...] = ()
    head_norm: str | None = None
    pooling: Pooling = Pooling.NONE
    token_types: str | None = None
    plain: bool = True
    runs_plain: bool = False
    shared_order: tuple[int, ...] = ()
    fused: tuple[str, ...] = ()
    call: Call = Call()

    def __post_init__(self) -> None:
        """Coerce the mode."""
        object.__setattr__(self, "pooling", Pooling(self.pooling))

    def anatomy(self, module: nn.Module) -> Anatomy:
        """Look the pieces up.

        Args:
            module: The module, whose `nn.MultiheadAttention` modules were replaced.

        Raises:
            ModelError: If something is not where it is said to be.
        """
        pieces = _Pieces(module)
        return Anatomy(
            family=FAMILY,
            embedding=self._embedding(pieces),
            layers=tuple(_layer(pieces, i, paths) for i, paths in enumerate(self.layers)),
            final_norm=pieces.norm(self.final_norm),
            head=HeadAnatomy(
                self.pooling,
                tuple(
                    HeadStage(pieces.linear(s.linear), s.activation, pieces.norm(s.norm))
                    for s in self.head
                ),
                norm=pieces.norm(self.head_norm),
            ),
            shared_order=self.shared_order,
            traceable=False,
            plain=self.plain,
        )

    def _embedding(self, pieces: "_Pieces") -> EmbeddingAnatomy:
        tokens = pieces.module(self.tokens)
        if not isinstance(tokens, nn.Embedding | nn.Linear):
            msg = f"tokens: {self.tokens!r} is a {type(tokens).__name__}, not a table or projection"
            raise ModelError(msg)
        types = None if self.token_types is None else pieces.module(self.token_types)
        return EmbeddingAnatomy(
            input_name="input_ids" if isinstance(tokens, nn.Embedding) else "inputs",
            tokens=tokens,
            positions=pieces.table(self.positions),
            token_types=types if isinstance(types, nn.Embedding) else None,
            norm=pieces.norm(self.embedding_norm),
            scale=self.scale,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the blueprint as a JSON document."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave.

        Args:
            document: The document.
        """
        values = dict(document)
        values["layers"] = tuple(LayerPaths(**layer) for layer in values["layers"])
        values["head"] = tuple(StagePaths(**stage) for stage in values["head"])
        values |= {"fused": tuple(values["fused"]), "shared_order": tuple(values["shared_order"])}
        values |= {"call": Call(**values["call"])}
        return cls(**values)


@dataclass(frozen=True)
class Declared:
    """What a user says of a module whose layers all look alike.

    Names of a layer's modules are relative to it.

    Attributes:
        layers: Name of a layer, with `{i}` for its number.
        heads: Attention heads per layer.
        query: Query projection.
        key: Key projection.
        value: Value projection.
        output: Output projection.
        ffn_in: First FFN projection.
        ffn_out: Second FFN projection.
        tokens: Token table, or projection of feature inputs.
        activation: FFN activation.
        attention_norm: Norm of the attention sublayer.
        ffn_norm: Norm of the FFN sublayer.
        norm_first: Whether norms stand before their sublayers.
        gate: Gate of the FFN.
        positions: Position table: an `nn.Embedding`, a parameter or a buffer.
        scale: Factor of the embedded tokens.
        embedding_norm: Norm of the embedded inputs.
        final_norm: Norm behind the stack.
        head: Linear layers of the head, in order.
        head_activations: Activation behind each of them; none where there are fewer.
        head_norm: Norm of what the head reads.
        pooling: What the head reads.
    """

    layers: str
    heads: int
    query: str
    key: str
    value: str
    output: str
    ffn_in: str
    ffn_out: str
    tokens: str
    activation: str = "relu"
    attention_norm: str | None = None
    ffn_norm: str | None = None
    norm_first: bool = False
    gate: str | None = None
    positions: str | None = None
    scale: float = 1.0
    embedding_norm: str | None = None
    final_norm: str | None = None
    head: tuple[str, ...] = ()
    head_activations: tuple[str | None, ...] = ()
    head_norm: str | None = None
    pooling: Pooling = Pooling.MEAN

    def blueprint(self, module: nn.Module) -> Blueprint:
        """Name the pieces of every layer.

        Args:
            module: The module.

        Raises:
            ModelError: If there is no such layer.
        """
        names = {name for name, _ in module.named_modules()}
        layers = list(takewhile(names.__contains__, map(self._layer_name, range(len(names)))))
        if not layers or "{i}" not in self.layers:
            msg = (
                f"layers: {self.layers!r} names no module of the {type(module).__name__}; write "
                "{i} for the number of a layer, as in 'blocks.{i}'"
            )
            raise ModelError(msg)
        activations = (*self.head_activations, *(None for _ in self.head))
        return Blueprint(
            layers=tuple(self._layer(module, layer) for layer in layers),
            tokens=self.tokens,
            positions=self.positions,
            scale=self.scale,
            embedding_norm=self.embedding_norm,
            final_norm=self.final_norm,
            head=tuple(
                StagePaths(name, None if kind is None else Activation(kind))
                for name, kind in zip(self.head, activations, strict=False)
            ),
            head_norm=self.head_norm,
            pooling=self.pooling,
        )

    def _layer_name(self, number: int) -> str:
        return self.layers.replace("{i}", str(number))

    def _layer(self, module: nn.Module, prefix: str) -> LayerPaths:
        width = _Pieces(module).linear(f"{prefix}.{self.query}").out_features
        if width % self.heads:
            msg = f"{prefix}.{self.query} has {width} channels, no multiple of heads={self.heads}"
            raise ModelError(msg)

        def below(name: str) -> str:
            return f"{prefix}.{name}"

        return LayerPaths(
            query=below(self.query),
            key=below(self.key),
            value=below(self.value),
            output=below(self.output),
            ffn_in=below(self.ffn_in),
            ffn_out=below(self.ffn_out),
            head_size=width // self.heads,
            activation=Activation(self.activation),
            attention_norm=self.attention_norm and below(self.attention_norm),
            ffn_norm=self.ffn_norm and below(self.ffn_norm),
            norm_first=self.norm_first,
            gate=self.gate and below(self.gate),
        )


def read_blueprint(path: Path, module: nn.Module) -> Blueprint:
    """Read `anatomy.json`: what a user declared, or what tcompress found before.

    Args:
        path: The file.
        module: The module it is about.

    Raises:
        ModelError: If it is neither.
    """
    document = read_json(path)
    try:
        if not isinstance(document["layers"], str):
            return Blueprint.from_json(document)
        known = {item.name for item in fields(Declared)}
        if unknown := sorted(set(document) - known):
            msg = f"unknown keys {unknown}; known are {sorted(known)}"
            raise ValueError(msg)
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in document.items()
        }
        return Declared(**values).blueprint(module)
    except (ValueError, TypeError, KeyError) as error:
        msg = f"{path}: no declaration of an anatomy: {error}; docs/own-modules.md shows one"
        raise ModelError(msg) from error


def running_plain(anatomy: Anatomy, runners: Any) -> Anatomy:
    """Return the anatomy of a module that runs as other modules, layer by layer.

    Args:
        anatomy: Its pieces.
        runners: What computes each layer, in order.
    """
    layers = tuple(
        replace(cast("OwnLayer", layer), runner=runner, ffn_batch_dim=0)
        for layer, runner in zip(anatomy.layers, runners, strict=True)
    )
    return replace(anatomy, layers=layers)


class _Pieces:
    """Looks modules up by name."""

    def __init__(self, module: nn.Module) -> None:
        self._root = module

    def module(self, name: str) -> nn.Module:
        try:
            return self._root.get_submodule(name)
        except AttributeError as error:
            msg = f"no module is called {name!r} in the {type(self._root).__name__}"
            raise ModelError(msg) from error

    def linear(self, name: str) -> Any:
        """Return a projection, which may have been lowered to int8."""
        found = self.module(name)
        if not hasattr(found, "in_features"):
            msg = f"{name!r} is a {type(found).__name__}, not a linear layer"
            raise ModelError(msg)
        return found

    def norm(self, name: str | None) -> nn.LayerNorm | None:
        if name is None:
            return None
        found = self.module(name)
        if not isinstance(found, nn.LayerNorm):
            msg = f"{name!r} is a {type(found).__name__}, not an nn.LayerNorm"
            raise ModelError(msg)
        return found

    def table(self, name: str | None) -> Tensor | None:
        """Return a position table as `(positions, width)`."""
        if name is None:
            return None
        owner, _, attribute = name.rpartition(".")
        found = getattr(self.module(owner), attribute, None)
        found = found.weight if isinstance(found, nn.Embedding) else found
        if not isinstance(found, Tensor):
            msg = f"{name!r} is no table of positions"
            raise ModelError(msg)
        return found if found.dim() == 2 else found.reshape(-1, found.shape[-1])


def _layer(pieces: _Pieces, index: int, paths: LayerPaths) -> OwnLayer:
    output = pieces.linear(paths.output)
    dropped = output.in_features == 0
    attention = paths.output.rpartition(".")[0]
    parent, _, name = attention.rpartition(".")
    return OwnLayer(
        index=index,
        parent=pieces.module(parent),
        attention_name=name,
        query=None if dropped else pieces.linear(paths.query),
        key=None if dropped else pieces.linear(paths.key),
        value=None if dropped else pieces.linear(paths.value),
        output=output,
        head_size=paths.head_size,
        ffn_in=pieces.linear(paths.ffn_in),
        ffn_out=pieces.linear(paths.ffn_out),
        activation=paths.activation,
        attention_norm=pieces.norm(paths.attention_norm),
        ffn_norm=pieces.norm(paths.ffn_norm),
        norm_first=paths.norm_first,
        ffn_batch_dim=paths.ffn_batch_dim,
        gate=None if paths.gate is None else pieces.linear(paths.gate),
    )
