"""Latencies that can be compared: measured in turns, and only ever as ratios within a round.

In every round each contender has two turns: all of them in a random order, and then in the reverse
of that order (`b a c c a b`). A drift of the machine that is linear over the round thereby weighs
the same on everyone. A round gives one ratio per candidate, the baseline's latency over the
candidate's; the speed-up is the median of these ratios, its interval a bootstrap over the rounds.
Where there are many candidates, a round has several blocks, each with turns of the baseline's own.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .measurement import Speedup

WANTED_HALF_WIDTH = 0.02
"""Measuring stops when every speed-up is known to this fraction of it."""
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
class Race:
    """Outcome of measuring contenders against each other.

    Attributes:
        samples_ns: Every measured call, per contender.
        paces: Calls and warm-up of a turn, per contender.
        speedups: Against the baseline, per candidate.
        settled: Whether every speed-up is known as well as was asked for.
    """

    samples_ns: dict[str, tuple[int, ...]]
    paces: dict[str, Pace]
    speedups: dict[str, Speedup]
    settled: bool


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
    deadline = clock() + budget_s
    paces = _paces(contenders, budget_s, turn_s)
    rng = np.random.default_rng(seed)
    samples: dict[str, list[int]] = {name: [] for name in contenders}
    ratios: dict[str, list[float]] = {name: [] for name in contenders if name != baseline}
    for _ in watch(_rounds(ratios, deadline, clock, half_width)):
        for order in _blocks(list(ratios), baseline, block or len(contenders), rng):
            medians: dict[str, float] = dict.fromkeys(order, 0.0)
            for name in (*order, *reversed(order)):
                taken = contenders[name].turn(paces[name].calls, paces[name].warmup)
                samples[name].extend(taken)
                medians[name] += float(np.median(taken))
            for name in medians.keys() & ratios.keys():
                ratios[name].append(medians[baseline] / medians[name])
    return Race(
        {name: tuple(taken) for name, taken in samples.items()},
        paces,
        {name: Speedup.of(blocks, seed) for name, blocks in ratios.items()},
        _settled(ratios, half_width),
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
    speedups = (Speedup.of(blocks) for blocks in ratios.values())
    return all(s.blocks >= FEWEST_ROUNDS and s.half_width <= half_width for s in speedups)


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
