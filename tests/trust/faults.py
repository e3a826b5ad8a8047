"""Faults of the file system, armed in a process that has not started its command yet.

Every change that `tcompress.storage` makes is two calls: before it and after it. What fails after a
write has written half.
"""

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tcompress import storage
from tcompress.storage import Moment, Operation

WRITES = (Operation.WRITE, Operation.APPEND)


class Kind(StrEnum):
    """What goes wrong."""

    EIO = "EIO"
    ENOSPC = "ENOSPC"
    KILL = "SIGKILL"


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and when.

    Attributes:
        kind: What.
        call: At which call, from 0; -1 for none.
        persistent: Whether all later calls fail likewise.
    """

    kind: Kind = Kind.EIO
    call: int = -1
    persistent: bool = False

    def hits(self, call: int) -> bool:
        return call == self.call or (self.persistent and 0 <= self.call <= call)

    def request(self, trace: Path) -> dict[str, Any]:
        """Return what the process that is to have the fault is told."""
        return {"fault": asdict(self), "trace": str(trace)}


def arm(fault: dict[str, Any], trace: str) -> None:
    """Let a call of this process fail, and write down all calls."""
    storage.observer = _observer(
        Fault(Kind(fault["kind"]), fault["call"], fault["persistent"]), trace
    )


def _observer(fault: Fault, trace: str) -> Callable[[Operation, Path, Moment], None]:
    handle = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    calls = iter(range(1_000_000))

    def observe(operation: Operation, path: Path, moment: Moment) -> None:
        os.write(handle, f"{moment} {operation}: {path}\n".encode())
        if not fault.hits(next(calls)):
            return
        if moment is Moment.AFTER and operation in WRITES and path.is_file():
            os.truncate(path, path.stat().st_size // 2)
        if fault.kind is Kind.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, fault.kind)
        raise OSError(number, os.strerror(number), str(path))

    return observe
