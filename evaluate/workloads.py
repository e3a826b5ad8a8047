"""Latency on the lengths that the user's data really has, padded to the longest of each call.

A mix is a fixed list of calls. What the contenders are timed with in turns is a whole pass over
it, so that everyone's turn covers the same inputs, and a speed-up compares the time for all of
them, long and short. Where the budget is too small for passes over the whole mix, everyone gets
the same shorter one, whose lengths are spread as those of the whole: fewer calls at first, and then
smaller batches.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tcompress.data import Examples
from tcompress.errors import DataError

from .engine_process import EngineProcess
from .latency import WARMUP, race
from .measurement import Latency, Speedup

_BATCH = 32
_MOST_CALLS = {"single_stream": 64, "offline": 8}
# Fewer examples would not be a mix.
_FEWEST_CALLS = {"single_stream": 4, "offline": 1}
_SMALLER_BATCHES = (16, 8)
# Passes that a budget has to hold, per contender: 8 rounds of two turns, and finding the pace.
_PASSES = 20
# The part of a budget that rounds get, however long it took to find out what it affords.
_LEAST_FOR_ROUNDS = 0.5


class Scenario(StrEnum):
    """How examples arrive."""

    SINGLE_STREAM = "single_stream"
    OFFLINE = "offline"

    @property
    def batch(self) -> int:
        """Most examples per call."""
        return 1 if self is Scenario.SINGLE_STREAM else _BATCH


@dataclass(frozen=True)
class Mix:
    """Calls with real examples, or with windows of them where examples are asked about in those.

    Attributes:
        scenario: `single_stream`: one by one, in a random order; `offline`: all are there, so
            those of similar length share a call.
        batch: Most examples in a call.
        calls: For every call, the positions of its inputs among those of all examples.
        lengths: Tokens of every input, by its position.
    """

    scenario: Scenario
    batch: int
    calls: tuple[tuple[int, ...], ...]
    lengths: Mapping[int, int]

    @classmethod
    def of(
        cls, scenario: Scenario | str, lengths: npt.NDArray[np.int64] | Sequence[int], seed: int
    ) -> Self:
        """Draw a mix: up to 64 examples one by one, or up to 8 batches of 32.

        Args:
            scenario: How examples arrive.
            lengths: Tokens of each example after truncation, `(examples,)`.
            seed: Seed of the draw.

        Raises:
            DataError: If there are no examples.
        """
        scenario = Scenario(scenario)
        if len(lengths) == 0:
            msg = "no examples to measure real lengths on; name a file with some by --data"
            raise DataError(msg)
        drawn = np.random.default_rng(seed).permutation(len(lengths))
        drawn = drawn[: scenario.batch * _MOST_CALLS[scenario]]
        if scenario is Scenario.OFFLINE:
            drawn = drawn[np.argsort(np.asarray(lengths)[drawn], kind="stable")]
        known = {int(position): int(lengths[position]) for position in drawn}
        size = min(scenario.batch, len(drawn))
        return cls(scenario, size, _in_calls(drawn, size), known)

    @property
    def positions(self) -> tuple[int, ...]:
        """Position of every example, in the order of the calls."""
        return tuple(position for call in self.calls for position in call)

    @property
    def examples(self) -> int:
        """Examples in a pass."""
        return len(self.positions)

    @property
    def tokens_mean(self) -> float:
        """Mean length of the examples, without padding."""
        return float(np.mean([self.lengths[position] for position in self.positions]))

    @property
    def tokens_max(self) -> int:
        """Length of the longest example."""
        return max(self.lengths[position] for position in self.positions)

    def shortened(self, count: int, batch: int | None = None) -> Self:
        """Keep examples whose lengths are spread evenly over those of all, in their order.

        Args:
            count: Calls that they shall fill; at least one, at most all.
            batch: Most examples in a call, if fewer than now.
        """
        batch = min(batch or self.batch, self.batch)
        size = min(max(count, 1) * batch, self.examples)
        positions = np.asarray(self.positions)
        by_length = np.argsort([self.lengths[position] for position in positions], kind="stable")
        ranks = ((np.arange(size) + 0.5) * self.examples / size).astype(int)
        kept = positions[np.sort(by_length[ranks])]
        return replace(self, batch=batch, calls=_in_calls(kept, batch))


@dataclass(frozen=True)
class MixResult:
    """One contender on a mix.

    Attributes:
        mix: The calls that it was timed with.
        latency: How long single calls took.
        passes_ns: Duration of every measured pass over the mix.
        speedup: Against the baseline, by whole passes.
    """

    mix: Mix
    latency: Latency
    passes_ns: tuple[int, ...]
    speedup: Speedup

    @property
    def examples_per_s(self) -> float:
        """Examples of a pass over the median duration of a pass."""
        return 1e9 * self.mix.examples / float(np.median(self.passes_ns))

    def to_json(
        self, *, artifact: str, device: str, precision: str, backend: str
    ) -> dict[str, Any]:
        """Return the entry of the report's `mixes`.

        Args:
            artifact: Name of what was measured.
            device: `cpu` or `cuda`.
            precision: Number format of its matrix products on that device.
            backend: What it ran on.
        """
        latency = {"median": self.latency.median_ms} | self.latency.percentiles_ms()
        return {
            "artifact": artifact,
            "device": device,
            "precision": precision,
            "backend": backend,
            "scenario": self.mix.scenario.value,
            "batch": self.mix.batch,
            "examples": self.mix.examples,
            "tokens_mean": round(self.mix.tokens_mean, 2),
            "tokens_max": self.mix.tokens_max,
            "latency_ms": {name: round(ms, 5) for name, ms in latency.items()}
            | {"n": self.latency.n},
            "examples_per_s": self.examples_per_s,
            "speedup": self.speedup.to_json(),
        }


def race_mix(
    engines: Mapping[str, EngineProcess],
    baseline: str,
    mix: Mix,
    examples: Examples,
    *,
    budget_s: float,
    overrun: float = 1.0,
    owners: npt.NDArray[np.int64] | None = None,
    seed: int = 0,
    watch: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, MixResult]:
    """Measure engines against each other on a mix, as `race` does on a fixed shape.

    The engines are handed the mix's examples: what they were handed for `predict` is forgotten.

    Args:
        engines: Who takes part, by name.
        baseline: Name of the one that the others are compared with.
        mix: The calls; drawn from these examples.
        examples: The examples.
        budget_s: When to stop; one round is made in any case, with 4 examples one by one or 8 at
            once.
        overrun: How many times the budget may be spent where that makes enough rounds.
        owners: `(inputs,)`, the example of each input, ascending; None: one input per example.
        seed: Seed of the order within the rounds, and of the bootstrap.
        watch: Shows the progress over the rounds.

    Returns:
        By name, the baseline's included.

    Raises:
        DataError: If the examples do not fit a model.
        MeasurementError: If an engine fails.
    """
    deadline = time.perf_counter() + budget_s
    owners = np.arange(len(examples)) if owners is None else owners
    chosen = list(dict.fromkeys(owners[list(mix.positions)].tolist()))
    for engine in engines.values():
        engine.encode(examples.take(chosen), mix.batch)
    bounds = np.searchsorted(owners, [[example, example + 1] for example in chosen])
    handed = [position for low, high in bounds.tolist() for position in range(low, high)]
    places = {position: place for place, position in enumerate(handed)}
    mix = _affordable(mix, engines.values(), places, budget_s)
    calls = _placed(mix, places)
    runners = {name: _Passes(engine, calls) for name, engine in engines.items()}
    outcome = race(
        runners,
        baseline,
        budget_s=max(deadline - time.perf_counter(), _LEAST_FOR_ROUNDS * budget_s),
        overrun=overrun,
        seed=seed,
        warmup_size=1 / len(calls),
        watch=watch,
    )
    return {
        name: MixResult(
            mix,
            runners[name].latency(len(outcome.turns[name]), outcome.paces[name].warmup),
            outcome.samples_ns[name],
            outcome.speedups.get(name) or Speedup.of_baseline(),
        )
        for name, engine in engines.items()
    }


@dataclass
class _Passes:
    """An engine as a contender whose every call is a pass over a mix.

    Attributes:
        engine: The engine.
        calls: For every call of a pass, the places of its examples among those handed over.
        turns: Durations of the single calls, by turn.
    """

    engine: EngineProcess
    calls: list[list[int]]
    turns: list[list[int]] = field(default_factory=list)

    def turn(self, calls: int, warmup: int) -> list[int]:
        """Measure passes; of the warm-up a few calls are enough, not whole passes."""
        taken = self.engine.mix(self.calls * calls, self._warmup(warmup))
        self.turns.append(taken)
        totals = np.reshape(taken, (calls, len(self.calls))).sum(axis=1)
        return [int(total) for total in totals]

    def latency(self, turns: int, warmup: int) -> Latency:
        """Return how long the single calls took.

        Args:
            turns: How many turns count, those that were taken last.
            warmup: Calls before the measured ones of a turn, as turns were asked for.
        """
        info = self.engine.info
        return Latency(
            tuple(sample for turn in self.turns[-turns:] for sample in turn),
            self._warmup(warmup),
            info.threads,
            info.device,
            info.versions,
            inputs=len(self.calls),
        )

    def _warmup(self, asked: int) -> int:
        """Return the calls before the measured ones; a GPU's clock has to rise, however few."""
        return asked if self.engine.info.device == "cpu" else WARMUP[self.engine.info.device]


def _affordable(
    mix: Mix, engines: Collection[EngineProcess], places: Mapping[int, int], budget_s: float
) -> Mix:
    """Shorten a mix until a budget holds enough passes of everyone."""
    fewest = _FEWEST_CALLS[mix.scenario]
    smallest = mix.shortened(fewest, min(_SMALLER_BATCHES))
    pass_ns = sum(_pass_ns(engine, _placed(smallest, places)) for engine in engines)
    # Every pass is one call longer than the mix: its warm-up.
    affordable = 1e9 * budget_s / _PASSES / pass_ns * smallest.examples
    for batch in (mix.batch, *_SMALLER_BATCHES):
        count = int(affordable / min(batch, mix.batch)) - 1
        if count >= fewest:
            return mix.shortened(count, batch)
    return smallest


def _pass_ns(engine: EngineProcess, calls: list[list[int]]) -> int:
    """Return the duration of a pass of an engine that is warm."""
    taken = np.reshape(engine.mix(calls * 2, warmup=1), (2, len(calls)))
    return int(taken.sum(axis=1).min())


def _in_calls(positions: npt.NDArray[np.int64], size: int) -> tuple[tuple[int, ...], ...]:
    chosen = positions.tolist()
    return tuple(tuple(chosen[start : start + size]) for start in range(0, len(chosen), size))


def _placed(mix: Mix, places: Mapping[int, int]) -> list[list[int]]:
    return [[places[position] for position in call] for call in mix.calls]
