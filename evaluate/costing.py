"""Timing the shapes that a planner asks about, in the engine that will serve them."""

import copy
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from torch import nn

from tcompress.compress.cost import MIXED, Serving
from tcompress.encoder import Encoder
from tcompress.plan import CompressionPlan, Precision
from tcompress.preprocessing import Batch
from tcompress.worker_process import WorkerProcess

from .latency import race

_WANTED_HALF_WIDTH = 0.005
# A shared machine changes its speed in steps, every few seconds: short turns, close to a
# reference, let few of them fall between.
_TURN_S = 0.05
_BLOCK = 4
_VOCABULARY = 256


class EngineMeter:
    """A `LatencyMeter` on a real engine, in a process of its own.

    Use it in a `with` statement: the process and its files are gone after the block.

    Args:
        encoder: The encoder whose shapes are timed; not changed.
        serving: How it is run.
        seed: Seed of the inputs' values and of the order of turns.
        watch: Shows the progress over the rounds.

    Raises:
        RequestError: If the encoder cannot read inputs as long as asked for.
    """

    def __init__(
        self,
        encoder: Encoder,
        serving: Serving,
        *,
        seed: int = 0,
        watch: Callable[[Iterable[int]], Iterable[int]] = iter,
    ) -> None:
        self.serving = serving = serving.fitted(encoder)
        self._seed, self._watch = seed, watch
        self._resources = ExitStack()
        with ExitStack() as resources:
            directory = resources.enter_context(tempfile.TemporaryDirectory())
            self._process = resources.enter_context(self._start(encoder, Path(directory)))
            self._resources = resources.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._resources.close()

    @property
    def pid(self) -> int:
        """Id of the engine's process."""
        return self._process.pid

    def latencies_ms(self, plans: Sequence[CompressionPlan], budget_s: float) -> list[float]:
        """Measure plans in turns; see `LatencyMeter.latencies_ms`.

        Args:
            plans: What to keep of the encoder; the precision is the meter's, unless that is
                `MIXED`.
            budget_s: When to stop at the latest, models made and all; one round is made anyway.

        Raises:
            DeviceError: If the engine needs a GPU that is not there.
            MeasurementError: If the engine fails.
        """
        deadline = time.perf_counter() + budget_s
        if self.serving.precision != MIXED:
            precision = Precision(self.serving.precision)
            plans = [plan.with_precision(precision) for plan in plans]
        self._process.ask("prepare", plans=list(plans))
        first, *others = (str(index) for index in range(len(plans)))
        outcome = race(
            {name: _Shape(self._process, int(name)) for name in (first, *others)},
            first,
            budget_s=max(0.0, deadline - time.perf_counter()),
            seed=self._seed,
            half_width=_WANTED_HALF_WIDTH,
            turn_s=_TURN_S,
            block=_BLOCK,
            watch=self._watch,
        )
        first_ms = float(np.median(outcome.samples_ns[first])) / 1e6
        return [first_ms, *(first_ms / outcome.speedups[name].value for name in others)]

    def _start(self, encoder: Encoder, directory: Path) -> WorkerProcess:
        opening: dict[str, Any] = {
            "encoder": _with_small_vocabulary(encoder),
            "serving": self.serving,
            "batch": _batch(encoder, self.serving, self._seed),
            "directory": directory,
        }
        return WorkerProcess(
            "tcompress.evaluate.costing_worker",
            name=f"timing on {self.serving.engine} in {self.serving.precision}",
            threads=self.serving.threads,
            opening=opening,
        )


@dataclass(frozen=True)
class _Shape:
    """One of the shapes that the process was told, as a contender in a race."""

    process: WorkerProcess
    index: int

    def turn(self, calls: int, warmup: int) -> list[int]:
        return list(self.process.ask("time", index=self.index, calls=calls, warmup=warmup))


def _with_small_vocabulary(encoder: Encoder) -> Encoder:
    """Copy an encoder without most of its token table: looking up costs the same in a small one."""
    tokens = encoder.anatomy.embedding.tokens
    memo: dict[int, Any] = {}
    if isinstance(tokens, nn.Embedding):
        few = tokens.weight[:_VOCABULARY].detach().clone()
        memo[id(tokens.weight)] = nn.Parameter(few)
    model = copy.deepcopy(encoder.model, memo).cpu()
    copied = replace(encoder, model=model)
    table = copied.anatomy.embedding.tokens
    if isinstance(table, nn.Embedding):
        table.num_embeddings = len(table.weight)
        table.padding_idx = None  # matters to training only, and may be beyond the table
    return copied


def _batch(encoder: Encoder, serving: Serving, seed: int) -> Batch:
    batch = encoder.preprocessor.random_batch(serving.batch, serving.tokens, seed)
    name = encoder.anatomy.embedding.input_name
    if isinstance(encoder.anatomy.embedding.tokens, nn.Embedding):
        batch[name] %= _VOCABULARY
    return batch
