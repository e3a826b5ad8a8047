"""Engines of one session: every entrant in a new process of its own, and the baseline in two.

They are opened one after the other, in another order each time, so that each one's start can be
timed, and so that none always gets the memory that is left.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from tcompress.console import Console

from .engine_info import EngineInfo
from .engine_process import EngineProcess
from .entrants import Entrant


@dataclass(frozen=True)
class Seat:
    """An entrant with its engine, as far as one session goes.

    Attributes:
        entrant: Who it is.
        engine: Its process.
        load_ms: From the start of the process to its first answer, libraries included.
    """

    entrant: Entrant
    engine: EngineProcess
    load_ms: float


@contextmanager
def open_session(
    entrants: Sequence[Entrant],
    first_shape: Callable[[EngineInfo], tuple[int, int]],
    console: Console,
    *,
    threads: int | None,
    seed: int,
) -> Iterator[list[Seat]]:
    """Open every entrant, and the first one once more, as the control.

    Args:
        entrants: The baseline, and what is compared with it.
        first_shape: Batch and tokens of an engine's first answer.
        console: Where to show the progress.
        threads: Threads of every engine on the CPU; None for all CPUs that may be used.
        seed: Seed of the order, and of the inputs.

    Yields:
        A seat per entrant, in their order, and that of the control.

    Raises:
        TcompressError: If an artifact cannot be opened, or breaks.
    """
    wanted = [*entrants, entrants[0]]
    seats: dict[int, Seat] = {}
    order = np.random.default_rng(seed).permutation(len(wanted))
    with ExitStack() as stack:
        for position in console.track(order, f"opening engines on {entrants[0].device}"):
            entrant, start = wanted[position], time.perf_counter()
            engine = stack.enter_context(
                EngineProcess(
                    entrant.subject.directory,
                    name=entrant.subject.name,
                    device=entrant.device,
                    precision=entrant.precision,
                    threads=threads,
                )
            )
            engine.fix(*first_shape(engine.info), seed=seed)
            load_ms = 1e3 * (time.perf_counter() - start)
            seats[int(position)] = Seat(entrant, engine, load_ms)
        yield [seats[position] for position in range(len(wanted))]
