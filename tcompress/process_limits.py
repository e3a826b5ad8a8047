"""What a process that serves an engine may use of the machine.

Nothing is limited where the system counts otherwise than Linux, and no memory where a GPU may be
used: its driver reserves what it pleases. What counts is memory of the process's own, not its
addresses: libraries reserve far more than they use.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from .errors import InputError
from .machine import usable_cpus

if sys.platform == "linux":
    import resource

_MOST_FILES = 4096
_GROWTH, _OPENING_BYTES, _THREAD_BYTES = 16, 2 << 30, 64 << 20
"""Opening a file took 2 to 4 times its size, engines a quarter of a gigabyte, on two threads."""
_BYTES_PER_SECOND, _OPENING_SECONDS = 10 << 20, 120
_GPUS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))


def limit_process() -> None:
    """Allow no core dump, few open files, and no more memory than the machine has."""
    if sys.platform != "linux":
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, _MOST_FILES)
    if not _has_gpu():
        _lower(resource.RLIMIT_DATA, psutil.virtual_memory().total + psutil.swap_memory().total)


@contextmanager
def limits_of_opening(directory: Path) -> Iterator[None]:
    """Allow memory and time for what a directory's files are large; a signal ends what needs more.

    Args:
        directory: What is opened in the block.

    Yields:
        Nothing.

    Raises:
        InputError: If the memory does not suffice.
    """
    if sys.platform != "linux":
        yield
        return
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    kinds = (resource.RLIMIT_DATA, resource.RLIMIT_CPU)
    before = [resource.getrlimit(kind) for kind in kinds]
    if not _has_gpu():
        _lower(resource.RLIMIT_DATA, _bytes(size))
    _lower(resource.RLIMIT_CPU, _seconds(size))
    try:
        yield
    except MemoryError as error:
        msg = f"{directory}: opening it takes far more memory than its {size} bytes; make it again"
        raise InputError(msg) from error
    finally:
        for kind, limits in zip(kinds, before, strict=True):
            resource.setrlimit(kind, limits)


def _bytes(size: int) -> int:
    """Return how much memory of its own this process may have as it opens a file."""
    threads = usable_cpus() * _THREAD_BYTES
    return int(psutil.Process().memory_info().data) + _GROWTH * size + _OPENING_BYTES + threads


def _seconds(size: int) -> int:
    """Return when this process's CPUs, in seconds of each, have had enough for a file."""
    spent = psutil.Process().cpu_times()
    each = _OPENING_SECONDS + size // _BYTES_PER_SECOND
    return int(spent.user + spent.system) + usable_cpus() * each


def _lower(kind: int, limit: int) -> None:
    soft, hard = resource.getrlimit(kind)
    if soft == resource.RLIM_INFINITY or soft > limit:
        resource.setrlimit(kind, (limit, hard))


def _has_gpu() -> bool:
    return any(device.exists() for device in _GPUS)
