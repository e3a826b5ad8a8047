"""A classifier around `torch.nn.TransformerEncoder`, rebuilt from a JSON description."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import ModelError
from .intake import read_json
from .intake.configs import Sizes
from .storage import write_text

ARCHITECTURE_FILE = "architecture.json"
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
}


class Positions(StrEnum):
    """How a token's place enters its embedding."""

    SINUSOIDAL = "sinusoidal"
    LEARNED = "learned"
    NONE = "none"


class Pooling(StrEnum):
    """Which hidden states the classification head reads."""

    FIRST = "first"
    FIRST_TWO = "first-two"
    """The mean of the first two tokens."""
    FIRST_PAIR = "first-pair"
    """The first two tokens side by side."""
    MEAN = "mean"
    MAX = "max"
    NONE = "none"
    """Every token is an answer of its own."""


@dataclass(frozen=True)
class TensorInputs:
    """What a model reads that reads no texts.

    Attributes:
        input_name: Name of the main input.
        vocab_size: Vocabulary size for inputs that are token ids; 0 for feature inputs.
        feature_size: Width of each input vector for feature inputs; 0 for token ids.
        max_positions: Longest input.
        masked: Whether the model is told what is padding.
    """

    input_name: str
    vocab_size: int
    feature_size: int
    max_positions: int
    masked: bool = True

    def __post_init__(self) -> None:
        """Check the sizes."""
        sizes = (self.vocab_size, self.feature_size, self.max_positions)
        if not all(type(size) is int and size >= 0 for size in sizes):
            msg = f"sizes must be whole numbers, got {sizes}"
            raise ValueError(msg)


@dataclass(frozen=True)
class TransformerSpec:
    """Architecture of a `TransformerClassifier`, as stored in `architecture.json`.

    Attributes:
        labels: Class names, in the order of the logits.
        d_model: Width of the residual stream.
        num_heads: Attention heads per layer.
        feed_forward_size: FFN neurons per layer.
        num_layers: Encoder layers.
        vocab_size: Vocabulary size for inputs that are token ids; 0 for feature inputs.
        feature_size: Width of each input vector for feature inputs; 0 for token ids.
        max_positions: Longest input.
        positions: How positions are encoded.
        norm_first: Pre-norm layers with a final norm, instead of post-norm layers.
        activation: `relu` or `gelu`.
        bias: Whether the encoder's linear layers and norms have biases.
        batch_first: Memory layout inside the encoder; inputs are `(batch, tokens)` either way.
        pooling: What the head reads.
        dropout: Dropout probability in training.
    """

    labels: tuple[str, ...]
    d_model: int
    num_heads: int
    feed_forward_size: int
    num_layers: int
    vocab_size: int = 0
    feature_size: int = 0
    max_positions: int = 512
    positions: Positions = Positions.SINUSOIDAL
    norm_first: bool = False
    activation: str = "relu"
    bias: bool = True
    batch_first: bool = True
    pooling: Pooling = Pooling.MEAN
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Coerce the modes and check the numbers."""
        object.__setattr__(self, "positions", Positions(self.positions))
        object.__setattr__(self, "pooling", Pooling(self.pooling))
        object.__setattr__(self, "labels", tuple(str(label) for label in self.labels))
        sizes = (self.d_model, self.num_heads, self.feed_forward_size, self.num_layers)
        inputs = (self.vocab_size, self.feature_size)
        if not all(type(size) is int for size in (*sizes, self.max_positions, *inputs)):
            msg = f"sizes must be whole numbers, got {(*sizes, self.max_positions, *inputs)}"
            raise ValueError(msg)
        if min(*sizes, self.max_positions, len(self.labels)) < 1:
            msg = f"sizes must be positive: {self}"
            raise ValueError(msg)
        if self.d_model % self.num_heads:
            msg = f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}"
            raise ValueError(msg)
        if min(inputs) != 0 or max(inputs) == 0:
            msg = f"of vocab_size and feature_size, one is positive and one 0; got {inputs}"
            raise ValueError(msg)
        if self.activation not in _ACTIVATIONS:
            msg = f"activation must be one of {sorted(_ACTIVATIONS)}, got {self.activation!r}"
            raise ValueError(msg)
        if not 0 <= self.dropout < 1:
            msg = f"dropout must be in [0, 1), got {self.dropout!r}"
            raise ValueError(msg)

    @property
    def input_name(self) -> str:
        """Name of the main input: `input_ids` for token ids, `inputs` for features."""
        return "input_ids" if self.vocab_size else "inputs"

    @property
    def sizes(self) -> Sizes:
        """How large the model is."""
        rows = self.vocab_size + self.feature_size + self.max_positions + len(self.labels)
        return Sizes(self.num_layers, self.d_model, self.feed_forward_size, rows)

    @property
    def inputs(self) -> TensorInputs:
        """What the model reads, where that is no text."""
        return TensorInputs(self.input_name, self.vocab_size, self.feature_size, self.max_positions)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a specification from a JSON file.

        Args:
            path: An `architecture.json`.

        Raises:
            ModelError: If it is not a valid specification.
        """
        try:
            document: dict[str, Any] = read_json(path)
            known = {field.name for field in fields(cls)}
            if unknown := sorted(set(document) - known):
                msg = f"unknown keys {unknown}; known are {sorted(known)}"
                raise ValueError(msg)
            return cls(**document)
        except (ValueError, TypeError) as error:
            msg = f"{path}: not an architecture description: {error}"
            raise ModelError(msg) from error

    def write(self, path: Path) -> None:
        """Write the specification as JSON.

        Args:
            path: The file to write.
        """
        write_text(path, json.dumps(asdict(self), indent=2) + "\n")


class TransformerClassifier(nn.Module):
    """Embedding, positions, `nn.TransformerEncoder`, pooling, linear head.

    Parameter names are the usual ones: `embedding.*`, `positions.*` (learned only),
    `encoder.layers.N.*`, `encoder.norm.*` (pre-norm only), `classifier.*`.

    Args:
        spec: The architecture.
    """

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embedding: nn.Embedding | nn.Linear = (
            nn.Embedding(spec.vocab_size, spec.d_model)
            if spec.vocab_size
            else nn.Linear(spec.feature_size, spec.d_model)
        )
        self.positions: nn.Embedding | None = None
        if spec.positions is Positions.LEARNED:
            self.positions = nn.Embedding(spec.max_positions, spec.d_model)
        if spec.positions is Positions.SINUSOIDAL:
            table = sinusoidal_positions(spec.max_positions, spec.d_model)
            self.register_buffer("position_table", table, persistent=False)
        layer = nn.TransformerEncoderLayer(
            spec.d_model,
            spec.num_heads,
            spec.feed_forward_size,
            dropout=spec.dropout,
            activation=_ACTIVATIONS[spec.activation],
            batch_first=spec.batch_first,
            norm_first=spec.norm_first,
            bias=spec.bias,
        )
        final_norm = nn.LayerNorm(spec.d_model, bias=spec.bias) if spec.norm_first else None
        self.encoder = nn.TransformerEncoder(
            layer, spec.num_layers, norm=final_norm, enable_nested_tensor=False
        )
        self.classifier = nn.Linear(spec.d_model, len(spec.labels))

    def forward(self, inputs: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Classify.

        Args:
            inputs: `(batch, tokens)` int64 ids or `(batch, tokens, feature_size)` floats.
            attention_mask: `(batch, tokens)`; 1 at real tokens, 0 at padding. None: all real.

        Returns:
            Logits, `(batch, labels)`.
        """
        # x: (batch, tokens, d_model)
        x = self.embedding(inputs)
        if (table := self.position_weights()) is not None:
            x = x + table[: inputs.shape[1]]
        padding = None if attention_mask is None else attention_mask == 0
        x = self.encoder(self._swap(x), src_key_padding_mask=padding)
        return self.classifier(self._pool(self._swap(x), attention_mask))  # type: ignore[no-any-return]

    def position_weights(self) -> Tensor | None:
        """Return the position table, `(max_positions, d_model)`, or None without positions."""
        if self.positions is not None:
            return self.positions.weight
        return getattr(self, "position_table", None)

    def _swap(self, x: Tensor) -> Tensor:
        return x if self.spec.batch_first else x.transpose(0, 1)

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return pooled(self.spec.pooling, x, mask)


def pooled(pooling: Pooling, x: Tensor, mask: Tensor | None) -> Tensor:
    """Return what the head reads of the hidden states.

    Args:
        pooling: Which.
        x: `(batch, tokens, hidden)`.
        mask: `(batch, tokens)`, 1 at real tokens; None: all are.

    Returns:
        `(batch, hidden)`, or `(batch, 2 * hidden)` of a pair; `x` itself without pooling.
    """
    if pooling is Pooling.NONE:
        return x
    if pooling is Pooling.FIRST:
        return x[:, 0]
    if pooling is Pooling.FIRST_TWO:
        return x[:, :2].mean(1)
    if pooling is Pooling.FIRST_PAIR:
        return x[:, :2].flatten(1)
    real = torch.ones_like(x[..., :1]) if mask is None else mask.unsqueeze(-1)
    if pooling is Pooling.MAX:
        return x.masked_fill(real == 0, float("-inf")).amax(1)
    weights = real.to(x.dtype)
    return (x * weights).sum(1) / weights.sum(1).clamp(min=1)


def sinusoidal_positions(max_positions: int, width: int) -> Tensor:
    """Return the fixed position table of Vaswani et al. 2017 (arXiv:1706.03762), section 3.5.

    Args:
        max_positions: Number of positions.
        width: Width of the residual stream.

    Returns:
        `(max_positions, width)`, sines at even columns, cosines at odd ones.
    """
    position = torch.arange(max_positions, dtype=torch.float32)[:, None]
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(1e4) / width))
    table = torch.zeros(max_positions, width)
    table[:, 0::2] = torch.sin(position * rates)
    table[:, 1::2] = torch.cos(position * rates)[:, : width // 2]
    return table
