"""Latencies that can be compared: measured in turns, and only ever as ratios within a round.

In every round each contender has two turns: all of them in a random order, and then in the reverse
of that order (`b a c c a b`). A drift of the machine that is linear over the round thereby weighs
the same on everyone. A round gives one ratio per candidate, the baseline's latency over the
candidate's; the speed-up is the median of these ratios, with an interval over the rounds.
Where there are many candidates, a round has several blocks, each with turns of the baseline's own.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from .measurement import Speedup

WANTED_HALF_WIDTH = 0.02
"""Measuring stops when the rounds tell every speed-up to this fraction of it."""
FEWEST_ROUNDS = 6
"""Fewer rounds cannot give a 95 % interval of their median."""
_ROUNDS_AIMED_AT = 8
_MAX_ROUNDS = 200
_MAX_CALLS = 40
_MAX_WARMUP = 2


class Timed(Protocol):
    """Something that can be given turns."""

    def turn(self, calls: int, warmup: int) -> list[int]:
        """Measure calls.

        Args:
            calls: Measured calls.
            warmup: Calls before them.

        Returns:
            Duration of each measured call, in ns.
        """


@dataclass(frozen=True)
class Pace:
    """What a contender does in one turn.

    Attributes:
        calls: Measured calls.
        warmup: Calls before them.
    """

    calls: int
    warmup: int


@dataclass(frozen=True)
class Turn:
    """What a contender did in one turn.

    Attributes:
        start_s: When it began, since the race in its process did.
        samples_ns: Duration of each measured call.
        process: Which of the contender's processes made them, from 0.
    """

    start_s: float
    samples_ns: tuple[int, ...]
    process: int = 0


@dataclass(frozen=True)
class Race:
    """Outcome of measuring contenders against each other.

    Attributes:
        turns: Every turn, per contender.
        paces: Calls and warm-up of a turn, per contender.
        ratios: The baseline's latency over that of a candidate: per candidate, set of processes
            and block.
        half_width: How well every speed-up was to be known.
        seed: Seed of the bootstrap.
        kernels_ns: Duration of calls by the GPU's own clock, per contender; empty on a CPU.
    """

    turns: dict[str, tuple[Turn, ...]]
    paces: dict[str, Pace]
    ratios: dict[str, tuple[tuple[float, ...], ...]]
    half_width: float = WANTED_HALF_WIDTH
    seed: int = 0
    kernels_ns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @cached_property
    def speedups(self) -> dict[str, Speedup]:
        """Speed-up over the baseline, per candidate."""
        return {
            name: Speedup.of(*sessions, seed=self.seed) for name, sessions in self.ratios.items()
        }

    @property
    def samples_ns(self) -> dict[str, tuple[int, ...]]:
        """Duration of every measured call, per contender."""
        return {
            name: tuple(sample for turn in turns for sample in turn.samples_ns)
            for name, turns in self.turns.items()
        }

    @property
    def settled(self) -> bool:
        """Whether every speed-up is known as well as was asked for."""
        return all(_is_known(speedup, self.half_width) for speedup in self.speedups.values())

    def then(self, other: "Race") -> "Race":
        """Join it with the race of the same contenders in processes of their own.

        Args:
            other: What was measured after it.
        """
        number = max((len(sessions) for sessions in self.ratios.values()), default=1)
        later = {
            name: tuple(replace(turn, process=number + turn.process) for turn in turns)
            for name, turns in other.turns.items()
        }
        return replace(
            self,
            turns={name: turns + later[name] for name, turns in self.turns.items()},
            ratios={name: blocks + other.ratios[name] for name, blocks in self.ratios.items()},
            kernels_ns={name: ns + other.kernels_ns[name] for name, ns in self.kernels_ns.items()},
        )


def race(
    contenders: Mapping[str, Timed],
    baseline: str,
    *,
    budget_s: float,
    seed: int = 0,
    half_width: float = WANTED_HALF_WIDTH,
    turn_s: float = 0.1,
    block: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    watch: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Race:
    """Measure contenders in turns until every speed-up is known well or the time is up.

    Args:
        contenders: Who takes part, by name.
        baseline: Name of the one that the others are compared with.
        budget_s: When to stop at the latest; one round is made in any case.
        seed: Seed of the order within the rounds, and of the bootstrap.
        half_width: How well, as a fraction of it, every speed-up is to be known.
        turn_s: Longest turn.
        block: Most candidates that share the baseline's turns; else all.
        clock: Tells the time in seconds.
        watch: Shows the progress over the rounds.
    """
    begin = clock()
    deadline = begin + budget_s
    paces = _paces(contenders, budget_s, turn_s)
    rng = np.random.default_rng(seed)
    turns: dict[str, list[Turn]] = {name: [] for name in contenders}
    ratios: dict[str, list[float]] = {name: [] for name in contenders if name != baseline}
    for _ in watch(_rounds(ratios, deadline, clock, half_width)):
        for order in _blocks(list(ratios), baseline, block or len(contenders), rng):
            medians: dict[str, float] = dict.fromkeys(order, 0.0)
            for name in (*order, *reversed(order)):
                start_s = clock() - begin
                taken = contenders[name].turn(paces[name].calls, paces[name].warmup)
                turns[name].append(Turn(start_s, tuple(taken)))
                medians[name] += float(np.median(taken))
            for name in medians.keys() & ratios.keys():
                ratios[name].append(medians[baseline] / medians[name])
    return Race(
        {name: tuple(taken) for name, taken in turns.items()},
        paces,
        {name: (tuple(blocks),) for name, blocks in ratios.items()},
        half_width,
        seed,
    )


def _blocks(
    candidates: list[str], baseline: str, size: int, rng: np.random.Generator
) -> Iterator[list[str]]:
    """Put the candidates into blocks with the baseline, all in a random order."""
    shuffled = [str(name) for name in rng.permutation(candidates)]
    for start in range(0, max(1, len(shuffled)), size):
        yield [str(name) for name in rng.permutation([baseline, *shuffled[start : start + size]])]


def _rounds(
    ratios: Mapping[str, Sequence[float]],
    deadline: float,
    clock: Callable[[], float],
    half_width: float,
) -> Iterator[int]:
    """Count rounds until all is known, or another one would not end in time."""
    for index in range(_MAX_ROUNDS):
        start = clock()
        yield index
        now = clock()
        if now + (now - start) > deadline or _settled(ratios, half_width):
            return


def _settled(ratios: Mapping[str, Sequence[float]], half_width: float) -> bool:
    if min(map(len, ratios.values()), default=FEWEST_ROUNDS) < FEWEST_ROUNDS:
        return False
    return all(_is_known(Speedup.of(blocks), half_width) for blocks in ratios.values())


def _is_known(speedup: Speedup, half_width: float) -> bool:
    return speedup.blocks >= FEWEST_ROUNDS and speedup.rounds_half_width <= half_width


def _paces(contenders: Mapping[str, Timed], budget_s: float, turn_s: float) -> dict[str, Pace]:
    """Choose turns of equal duration, short enough for several rounds within the budget."""
    turns = 2 * _ROUNDS_AIMED_AT * len(contenders)
    turn_ns = 1e9 * min(turn_s, budget_s / turns)
    paces = {}
    for name, contender in contenders.items():
        call_ns = min(contender.turn(calls=2, warmup=1))
        calls = int(np.clip(turn_ns / max(call_ns, 1), 1, _MAX_CALLS + _MAX_WARMUP))
        # A slow contender spends little of its turn on warming up.
        warmup = _MAX_WARMUP if calls > 2 * _MAX_WARMUP else 1
        paces[name] = Pace(max(1, calls - warmup), warmup)
    return paces
