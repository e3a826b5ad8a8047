"""What to keep of an encoder, and in which precision: pure data, written as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any, Self

from .errors import ArtifactError, RequestError

_LARGEST_WIDTH = 1_000_000
_MOST_UNITS = 20_000_000


class Precision(StrEnum):
    """Number format that a sublayer's matrix products run in."""

    FP32 = "fp32"
    INT8 = "int8"
    BF16 = "bf16"
    FP16 = "fp16"


@dataclass(frozen=True)
class LayerPlan:
    """What to keep of one layer.

    Attributes:
        heads: Indices of the heads kept, in the numbering of the source encoder, ascending.
            Empty means that the attention sublayer is dropped on purpose.
        neurons: Indices of the FFN neurons kept, likewise. Empty drops the FFN.
        attention: Precision of the attention projections.
        feed_forward: Precision of the FFN projections.
    """

    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    attention: Precision = Precision.FP32
    feed_forward: Precision = Precision.FP32


@dataclass(frozen=True)
class CompressionPlan:
    """What to keep of every layer, relative to the unpruned source encoder.

    Attributes:
        layers: One entry per layer, first layer first.
        source_heads: Head count per layer of the source encoder.
        source_neurons: FFN width per layer of the source encoder.
    """

    layers: tuple[LayerPlan, ...]
    source_heads: tuple[int, ...]
    source_neurons: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that every index exists in the source and that indices ascend."""
        widths = (self.source_heads, self.source_neurons)
        if {len(width) for width in widths} != {len(self.layers)}:
            msg = (
                f"a plan needs one source width per layer: {len(self.layers)} layers, "
                f"{len(self.source_heads)} head counts, {len(self.source_neurons)} FFN widths"
            )
            raise ArtifactError(msg)
        for index, (layer, heads, neurons) in enumerate(
            zip(self.layers, self.source_heads, self.source_neurons, strict=True)
        ):
            _check_indices(f"layer {index} heads", layer.heads, heads)
            _check_indices(f"layer {index} neurons", layer.neurons, neurons)

    @classmethod
    def dense(cls, heads: Sequence[int], neurons: Sequence[int]) -> Self:
        """Return the plan that keeps everything in fp32.

        Args:
            heads: Head count per layer.
            neurons: FFN width per layer.
        """
        layers = tuple(
            LayerPlan(tuple(range(h)), tuple(range(n))) for h, n in zip(heads, neurons, strict=True)
        )
        return cls(layers, tuple(heads), tuple(neurons))

    @property
    def head_counts(self) -> tuple[int, ...]:
        """Heads kept per layer."""
        return tuple(len(layer.heads) for layer in self.layers)

    @property
    def neuron_counts(self) -> tuple[int, ...]:
        """FFN neurons kept per layer."""
        return tuple(len(layer.neurons) for layer in self.layers)

    @property
    def head_sparsity(self) -> float:
        """Fraction of the source's heads that is removed, 0 to 1."""
        return 1 - sum(self.head_counts) / max(1, sum(self.source_heads))

    @property
    def is_dense(self) -> bool:
        """Whether nothing is removed; precisions do not count."""
        return (self.head_counts, self.neuron_counts) == (self.source_heads, self.source_neurons)

    @property
    def precision(self) -> str:
        """The one precision of all sublayers, or `mixed`."""
        used = self.precisions
        return next(iter(used)).value if len(used) == 1 else "mixed"

    @property
    def precisions(self) -> frozenset[Precision]:
        """The precisions of all sublayers."""
        return frozenset(p for layer in self.layers for p in (layer.attention, layer.feed_forward))

    def with_precision(self, precision: Precision) -> Self:
        """Return the plan with every sublayer in one precision.

        Args:
            precision: The precision to set.
        """
        layers = tuple(
            replace(layer, attention=precision, feed_forward=precision) for layer in self.layers
        )
        return replace(self, layers=layers)

    def check_within(self, current: Self) -> None:
        """Raise unless this plan keeps only what `current` still has.

        Args:
            current: The plan of the encoder that this plan is to be applied to.

        Raises:
            RequestError: If the sources differ or this plan keeps something already removed.
        """
        if (self.source_heads, self.source_neurons) != (
            current.source_heads,
            current.source_neurons,
        ):
            msg = (
                "the plan was made for another encoder: it expects heads "
                f"{list(self.source_heads)} and FFN widths {list(self.source_neurons)}, this one "
                f"had {list(current.source_heads)} and {list(current.source_neurons)}"
            )
            raise RequestError(msg)
        for index, (mine, theirs) in enumerate(zip(self.layers, current.layers, strict=True)):
            if not set(mine.heads) <= set(theirs.heads):
                msg = f"the plan keeps heads of layer {index} that are already removed"
                raise RequestError(msg)
            if not set(mine.neurons) <= set(theirs.neurons):
                msg = f"the plan keeps neurons of layer {index} that are already removed"
                raise RequestError(msg)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON document; neuron indices are half-open runs."""
        return {
            "source_heads": list(self.source_heads),
            "source_neurons": list(self.source_neurons),
            "layers": [
                {
                    "heads": list(layer.heads),
                    "neurons": _to_runs(layer.neurons),
                    "precision": {
                        "attention": layer.attention.value,
                        "feed_forward": layer.feed_forward.value,
                    },
                }
                for layer in self.layers
            ],
        }

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Read a plan back from `to_json`'s document.

        Args:
            document: The parsed JSON.

        Raises:
            ArtifactError: If the document is not a valid plan.
        """
        try:
            heads = tuple(int(h) for h in document["source_heads"])
            neurons = tuple(int(n) for n in document["source_neurons"])
            if max((*heads, *neurons), default=0) > _LARGEST_WIDTH:
                msg = f"no layer has more than {_LARGEST_WIDTH} heads or neurons"
                raise ValueError(msg)
            if sum((*heads, *neurons)) > _MOST_UNITS:
                msg = f"no encoder has more than {_MOST_UNITS} heads and neurons"
                raise ValueError(msg)
            layers = tuple(
                LayerPlan(
                    tuple(int(h) for h in layer["heads"]),
                    _from_runs(layer["neurons"], max_count=int(width)),
                    Precision(layer["precision"]["attention"]),
                    Precision(layer["precision"]["feed_forward"]),
                )
                for layer, width in zip(document["layers"], document["source_neurons"], strict=True)
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            msg = f"not a compression plan: {error!r:.200}"
            raise ArtifactError(msg) from error
        return cls(layers, heads, neurons)

    def summary(self) -> dict[str, Any]:
        """Return the short form that `inspect --json` shows: counts and precisions per layer."""
        return {
            "heads": list(self.head_counts),
            "neurons": list(self.neuron_counts),
            "precision": [
                {"attention": layer.attention.value, "feed_forward": layer.feed_forward.value}
                for layer in self.layers
            ],
            "source_heads": list(self.source_heads),
            "source_neurons": list(self.source_neurons),
            "kept_heads": [list(layer.heads) for layer in self.layers],
        }


def unit_macs(
    hidden_size: int,
    head_size: int,
    tokens: int,
    ffn_matrices: int = 2,
    pair_products: int = 2,
    times: int = 1,
) -> tuple[int, int]:
    """Count the multiply-accumulates of one head and of one neuron, for one example.

    Per head 3 S d D + 2 S^2 D + S D d, per neuron S d for each of its matrices, with S tokens,
    hidden size d and head size D (Kwon et al. 2022, arXiv:2204.09656), and S^2 D more for each
    further product over pairs of tokens.

    Args:
        hidden_size: Width of the residual stream.
        head_size: Width of a head.
        tokens: Length of the example.
        ffn_matrices: 2, or 3 where the FFN is gated.
        pair_products: Products over pairs of tokens: 2, or more where positions are multiplied.
        times: How often the layer is applied.
    """
    per_head = head_size * (4 * tokens * hidden_size + pair_products * tokens**2)
    return times * per_head, times * ffn_matrices * tokens * hidden_size


def _check_indices(what: str, kept: tuple[int, ...], width: int) -> None:
    ascending = all(a < b for a, b in pairwise(kept))
    if not ascending or (kept and not (kept[0] >= 0 and kept[-1] < width)):
        msg = f"plan: {what} must be ascending indices below {width}, got {list(kept)[:8]}"
        raise ArtifactError(msg)


def _to_runs(indices: tuple[int, ...]) -> list[list[int]]:
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][1] == index:
            runs[-1][1] = index + 1
        else:
            runs.append([index, index + 1])
    return runs


def _from_runs(runs: Any, *, max_count: int) -> tuple[int, ...]:
    indices: list[int] = []
    for start, stop in runs:
        if not 0 <= start < stop <= max_count:
            msg = f"run [{start}, {stop}) is outside 0..{max_count}"
            raise ValueError(msg)
        indices.extend(range(start, stop))
    return tuple(indices)
