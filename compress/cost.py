"""What heads and neurons cost in the engine that will serve them, as numbers to plan with.

The model is additive: a latency is what remains when every sublayer is dropped, plus a cost per
attention sublayer by its number of heads, plus a cost per feed-forward by its number of neurons.
`cost_measuring` fills the table in.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any, Protocol, Self

import numpy as np

from tcompress.encoder import Encoder
from tcompress.errors import ArtifactError, RequestError
from tcompress.plan import CompressionPlan

SCHEMA_VERSION = 2
NEURON_STEP = 32
"""FFN widths are measured and planned in multiples of this: int8 kernels work in tiles."""


class Engine(StrEnum):
    """Who serves the encoder."""

    ONNXRUNTIME = "onnxruntime"
    PYTORCH = "pytorch"
    CUDA = "cuda"


PRECISIONS = {
    Engine.ONNXRUNTIME: ("int8", "fp32"),
    Engine.PYTORCH: ("fp32", "int8", "bf16"),
    Engine.CUDA: ("fp32", "bf16", "fp16"),
}
"""What each engine can run; its default first."""
MIXED = "mixed"
"""In place of one precision: every plan's own."""


@dataclass(frozen=True)
class Serving:
    """How an encoder will be run.

    Attributes:
        engine: `onnxruntime` or `pytorch` on the CPU; `cuda` is PyTorch on the GPU.
        precision: One of the engine's `PRECISIONS`, or `MIXED`.
        batch: Examples per call.
        tokens: Tokens per example.
        threads: Threads of the engine's matrix products.
    """

    engine: Engine
    precision: str
    batch: int
    tokens: int
    threads: int

    def __post_init__(self) -> None:
        """Coerce the engine and check the rest."""
        object.__setattr__(self, "engine", Engine(self.engine))
        known = PRECISIONS[self.engine]
        if self.precision not in (*known, MIXED):
            msg = f"{self.engine} runs {', '.join(known)}, not {self.precision!r}"
            raise RequestError(msg)
        if min(self.batch, self.tokens, self.threads) < 1:
            msg = f"batch, tokens and threads must be at least 1, got {self.to_json()}"
            raise RequestError(msg)

    @property
    def libraries(self) -> tuple[str, ...]:
        """Libraries that the engine needs besides PyTorch."""
        return ("onnx", "onnxruntime") if self.engine is Engine.ONNXRUNTIME else ()

    def check_tokens(self, encoder: Encoder) -> None:
        """Check that an encoder reads as many tokens; of images it always reads as many as it does.

        Args:
            encoder: The encoder.

        Raises:
            RequestError: If it does not.
        """
        most = encoder.preprocessor.max_tokens
        if encoder.preprocessor.fixed_tokens is None and self.tokens > most:
            msg = (
                f"--tokens {self.tokens}: this encoder reads at most {most} tokens, "
                f"not {self.tokens}"
            )
            raise RequestError(msg)

    def fitted(self, encoder: Encoder) -> Self:
        """Return the serving with the tokens that an encoder reads, where those are fixed.

        Args:
            encoder: The encoder.

        Raises:
            RequestError: If it does not read as many.
        """
        self.check_tokens(encoder)
        return replace(self, tokens=encoder.preprocessor.fixed_tokens or self.tokens)

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        return "cuda" if self.engine is Engine.CUDA else "cpu"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON document."""
        return asdict(self) | {"engine": self.engine.value}


class LatencyMeter(Protocol):
    """Measures encoders of given shapes on one engine."""

    @property
    def serving(self) -> Serving:
        """How the encoders are run."""

    def latencies_ms(self, plans: Sequence[CompressionPlan], budget_s: float) -> list[float]:
        """Measure plans in turns against each other.

        Args:
            plans: What to keep of the encoder; only the numbers of heads and neurons matter, and
                the precisions where the serving is `MIXED`.
            budget_s: When to stop at the latest.

        Returns:
            Per plan, the median over rounds of its ratio to the first plan, times the median of
            the first plan, so that a drift of the machine does not come between them.
        """


OpenMeter = Callable[[Encoder, Serving], AbstractContextManager[LatencyMeter]]
"""Starts an engine for an encoder; it ends with the block."""


@dataclass(frozen=True)
class CostCurve:
    """What one sublayer costs by its width.

    Attributes:
        widths: Measured numbers of heads or neurons, ascending, above 0.
        costs_ms: Their costs, which never decrease.
    """

    widths: tuple[int, ...]
    costs_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check that the points form a curve."""
        rising = all(a < b for a, b in pairwise((0, *self.widths)))
        increasing = all(a <= b for a, b in pairwise((0.0, *self.costs_ms)))
        finite = all(math.isfinite(cost) for cost in self.costs_ms)
        if len(self.widths) != len(self.costs_ms) or not (rising and increasing and finite):
            msg = f"widths must ascend and costs not decrease, got {self.widths}, {self.costs_ms}"
            raise ValueError(msg)

    def at(self, width: int) -> float:
        """Return the cost of a width in ms: 0 when dropped, linear between measured points.

        Below the smallest measured width its cost is paid in full, as an engine does.

        Args:
            width: Heads or neurons.

        Raises:
            RequestError: If the width is beyond what was measured.
        """
        if width == 0:
            return 0.0
        if not 0 < width <= max(self.widths, default=0):
            msg = f"costs are known up to width {max(self.widths, default=0)}, not for {width}"
            raise RequestError(msg)
        return float(np.interp(width, self.widths, self.costs_ms))


@dataclass(frozen=True)
class CostTable:
    """What the heads and neurons of every layer cost.

    Attributes:
        serving: In which engine, and how it was run.
        machine: The processor's model.
        rest_ms: What remains when every sublayer is dropped.
        attention: Cost by number of heads, per layer.
        feed_forward: Cost by number of neurons, per layer.
        deviation: Root mean square deviation of the measured latencies from the table's, as a
            fraction: noise, and what is not additive.
    """

    serving: Serving
    machine: str
    rest_ms: float
    attention: tuple[CostCurve, ...]
    feed_forward: tuple[CostCurve, ...]
    deviation: float

    def attention_ms(self, layer: int, heads: int) -> float:
        """Return what a layer's attention costs.

        Args:
            layer: Position of the layer.
            heads: Heads that it has; 0 when dropped.
        """
        return self.attention[layer].at(heads)

    def feed_forward_ms(self, layer: int, neurons: int) -> float:
        """Return what a layer's feed-forward costs.

        Args:
            layer: Position of the layer.
            neurons: Neurons that it has; 0 when dropped.
        """
        return self.feed_forward[layer].at(neurons)

    def latency_ms(self, head_counts: Sequence[int], neuron_counts: Sequence[int]) -> float:
        """Predict the latency of an encoder.

        Args:
            head_counts: Heads per layer.
            neuron_counts: FFN neurons per layer.
        """
        heads = zip(self.attention, head_counts, strict=True)
        neurons = zip(self.feed_forward, neuron_counts, strict=True)
        return self.rest_ms + sum(curve.at(width) for curve, width in (*heads, *neurons))

    def to_json(self) -> dict[str, Any]:
        """Return the table as a JSON document."""
        return asdict(self) | {
            "schema_version": SCHEMA_VERSION,
            "serving": self.serving.to_json(),
        }

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Read a table back from `to_json`'s document.

        Args:
            document: The parsed JSON.

        Raises:
            ArtifactError: If the document is not a valid table.
        """
        try:
            if document["schema_version"] != SCHEMA_VERSION:
                msg = f"schema_version {document['schema_version']!r} is not {SCHEMA_VERSION}"
                raise ValueError(msg)
            rest, deviation = float(document["rest_ms"]), float(document["deviation"])
            if not (math.isfinite(rest) and rest > 0 and math.isfinite(deviation)):
                msg = f"rest_ms must be positive, got {rest} (deviation {deviation})"
                raise ValueError(msg)
            return cls(
                Serving(**document["serving"]),
                str(document["machine"]),
                rest,
                _curves(document["attention"]),
                _curves(document["feed_forward"]),
                deviation,
            )
        except (KeyError, TypeError, ValueError, RequestError) as error:
            msg = f"not a table of costs: {error!r}; measure again"
            raise ArtifactError(msg) from error


def _curves(document: Any) -> tuple[CostCurve, ...]:
    return tuple(
        CostCurve(
            tuple(int(width) for width in curve["widths"]),
            tuple(float(cost) for cost in curve["costs_ms"]),
        )
        for curve in document
    )
