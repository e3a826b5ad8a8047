"""Latencies that can be compared: measured in turns, and only ever as ratios within a round.

In every round each contender has two turns: all of them in a random order, and then in the reverse
of that order (`b a c c a b`). A drift of the machine that is linear over the round thereby weighs
the same on everyone. A round gives one ratio per candidate, the baseline's latency over the
candidate's; the speed-up is the median of these ratios, with an interval over the rounds.
Where there are many candidates, a round has several blocks, each with turns of the baseline's own.

How many calls a turn has may change between rounds, never within one: what the first calls tell of
an engine's speed is often wrong, and too few rounds tell nothing at all.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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
WARMUP = {"cpu": 2, "cuda": 10}
"""Most calls before the measured ones of a turn, by device: a GPU's clock falls while its engines
sleep."""
# The part of a round that is for the quick, even where the slow ones need all of it.
_LEFT_FOR_THE_QUICK = 0.1
# Turns are changed where their calls become so many times as many, or as few.
_OFF = 1.5


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

    def at_most(self, other: "Pace") -> "Pace":
        """Return the fewer calls of two paces, and the fewer warm-up calls.

        Args:
            other: The other one.
        """
        return Pace(min(self.calls, other.calls), min(self.warmup, other.warmup))


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
        paces: Fewest calls and warm-up calls of a turn, per contender.
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
    overrun: float = 1.0,
    seed: int = 0,
    half_width: float = WANTED_HALF_WIDTH,
    turn_s: float = 0.1,
    warmup: int = WARMUP["cpu"],
    warmup_size: float = 1.0,
    block: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    watch: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Race:
    """Measure contenders in turns until every speed-up is known well or the time is up.

    Args:
        contenders: Who takes part, by name.
        baseline: Name of the one that the others are compared with.
        budget_s: When to stop; one round is made in any case.
        overrun: How many times the budget may be spent where that makes `FEWEST_ROUNDS`.
        seed: Seed of the order within the rounds, and of the bootstrap.
        half_width: How well, as a fraction of it, every speed-up is to be known.
        turn_s: Longest turn.
        warmup: Most calls before the measured ones of a turn.
        warmup_size: Duration of such a call, in measured calls.
        block: Most candidates that share the baseline's turns; else all.
        clock: Tells the time in seconds.
        watch: Shows the progress over the rounds.
    """
    begin = clock()
    pacing = _Pacing(turn_s, warmup, warmup_size)
    call_ns = {name: float(min(one.turn(2, warmup=1))) for name, one in contenders.items()}
    course = _Course(
        contenders,
        baseline,
        block or len(contenders),
        pacing,
        call_ns,
        pacing.paces(call_ns, (begin + budget_s - clock()) / _ROUNDS_AIMED_AT),
        np.random.default_rng(seed),
        clock,
        begin,
    )
    limits = (begin + budget_s, begin + budget_s * max(1.0, overrun))
    for _ in watch(course.rounds(*limits, half_width)):
        course.make_round()
    return Race(
        {name: tuple(taken) for name, taken in course.turns.items()},
        course.fewest,
        {name: (tuple(blocks),) for name, blocks in course.ratios.items()},
        half_width,
        seed,
    )


@dataclass(frozen=True)
class _Pacing:
    """What turns may be like.

    Attributes:
        turn_s: Longest turn.
        warmup: Most calls before the measured ones.
        warmup_size: Duration of such a call, in measured calls.
    """

    turn_s: float
    warmup: int
    warmup_size: float

    def paces(self, call_ns: Mapping[str, float], round_s: float) -> dict[str, Pace]:
        """Choose turns that make a round of a given duration, as equal as single calls allow."""
        least = {name: ns * (1 + self.warmup_size) for name, ns in call_ns.items()}
        half_ns, quick = 1e9 * max(round_s, 0) / 2, len(least)
        left_ns = half_ns
        for ns in sorted(least.values(), reverse=True):
            if quick == 1 or ns <= left_ns / quick:
                break
            left_ns, quick = left_ns - ns, quick - 1
        turn_ns = min(1e9 * self.turn_s, max(left_ns, _LEFT_FOR_THE_QUICK * half_ns) / quick)
        return {name: self._pace(turn_ns / max(ns, 1)) for name, ns in call_ns.items()}

    def _pace(self, size: float) -> Pace:
        """Fill a turn of some calls' duration; half of it at most is warm-up."""
        most = _MAX_CALLS + self.warmup * self.warmup_size
        warmup = int(np.clip((int(size) - 1) // 2, 1, self.warmup))
        return Pace(max(1, int(min(size, most) - warmup * self.warmup_size)), warmup)

    def duration_ns(self, paces: Mapping[str, Pace], call_ns: Mapping[str, float]) -> float:
        """Tell how long one turn of everyone takes."""
        return sum(
            (pace.calls + self.warmup_size * pace.warmup) * call_ns[name]
            for name, pace in paces.items()
        )


@dataclass
class _Course:
    """A race in its course.

    Attributes:
        call_ns: How long a call takes, per contender, by its turns in the last round.
        expected_ns: How long it was thought to take as that round began.
        paces: Turns of the next round.
        done: Rounds that count.
        fewest: Fewest calls and warm-up calls of a turn in any round that counts.
        turns: Every turn in the rounds that count.
        ratios: The baseline's latency over that of a candidate, per candidate and round.
    """

    contenders: Mapping[str, Timed]
    baseline: str
    block: int
    pacing: _Pacing
    call_ns: dict[str, float]
    paces: dict[str, Pace]
    rng: np.random.Generator
    clock: Callable[[], float]
    begin: float

    def __post_init__(self) -> None:
        self.expected_ns = self.call_ns
        self._restart()

    def _restart(self) -> None:
        self.done = 0
        self.fewest: dict[str, Pace] = {}
        self.turns: dict[str, list[Turn]] = {name: [] for name in self.contenders}
        self.ratios: dict[str, list[float]] = {
            name: [] for name in self.contenders if name != self.baseline
        }

    def make_round(self) -> None:
        """Give everyone the turns of a round."""
        taken: dict[str, list[float]] = {name: [] for name in self.contenders}
        for order in _blocks(list(self.ratios), self.baseline, self.block, self.rng):
            medians = dict.fromkeys(order, 0.0)
            for name in (*order, *reversed(order)):
                taken[name].append(self._turn(name))
                medians[name] += taken[name][-1]
            for name in medians.keys() & self.ratios.keys():
                self.ratios[name].append(medians[self.baseline] / medians[name])
        self.expected_ns = self.call_ns
        self.call_ns = {name: float(np.median(medians)) for name, medians in taken.items()}
        self.done += 1
        self.fewest = {
            name: pace.at_most(self.fewest.get(name, pace)) for name, pace in self.paces.items()
        }

    def _turn(self, name: str) -> float:
        """Give someone a turn, and return the median duration of its calls, in ns."""
        start_s, pace = self.clock() - self.begin, self.paces[name]
        samples = self.contenders[name].turn(pace.calls, pace.warmup)
        self.turns[name].append(Turn(start_s, tuple(samples)))
        return float(np.median(samples))

    def rounds(self, deadline: float, latest: float, half_width: float) -> Iterator[int]:
        """Count rounds until all is known, or the time is up.

        Args:
            deadline: When to stop.
            latest: When to stop where that makes enough rounds for an interval.
            half_width: How well every speed-up is to be known.
        """
        for index in range(_MAX_ROUNDS):
            start = self.clock()
            yield index
            now = self.clock()
            round_s = (now - start) * self._repace(deadline - now, first=index == 0)
            missing = FEWEST_ROUNDS - self.done
            in_time = now + round_s <= deadline
            worth_it = missing > 0 and now + missing * round_s <= latest
            if self.done and (_settled(self.ratios, half_width) or not (in_time or worth_it)):
                return

    def _repace(self, left_s: float, *, first: bool) -> float:
        """Change the turns where the time that is left asks for others.

        Returns:
            How much longer the next round will be than the last one, as a factor.
        """
        if self.done >= _ROUNDS_AIMED_AT:
            return 1.0
        before = self.paces
        wanted = self.pacing.paces(self.call_ns, left_s / (_ROUNDS_AIMED_AT - self.done))
        growth = [wanted[name].calls / pace.calls for name, pace in before.items()]
        if max(growth) < _OFF and min(growth) > 1 / _OFF:
            return 1.0
        self.paces = wanted
        if first and any(ns < self.expected_ns[name] / 2 for name, ns in self.call_ns.items()):
            # Someone was cold when the paces were chosen, and may have been so in its turns.
            self._restart()
        longer = [self.pacing.duration_ns(paces, self.call_ns) for paces in (wanted, before)]
        return longer[0] / longer[1]


def _blocks(
    candidates: list[str], baseline: str, size: int, rng: np.random.Generator
) -> Iterator[list[str]]:
    """Put the candidates into blocks with the baseline, all in a random order."""
    shuffled = [str(name) for name in rng.permutation(candidates)]
    for start in range(0, max(1, len(shuffled)), size):
        yield [str(name) for name in rng.permutation([baseline, *shuffled[start : start + size]])]


def _settled(ratios: Mapping[str, list[float]], half_width: float) -> bool:
    if min(map(len, ratios.values()), default=FEWEST_ROUNDS) < FEWEST_ROUNDS:
        return False
    return all(_is_known(Speedup.of(blocks), half_width) for blocks in ratios.values())


def _is_known(speedup: Speedup, half_width: float) -> bool:
    return speedup.blocks >= FEWEST_ROUNDS and speedup.rounds_half_width <= half_width
