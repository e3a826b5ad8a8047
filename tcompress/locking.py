"""One process at a time: locks that go with the process that holds them."""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import storage
from .digests import document_digest
from .errors import StorageError
from .interruption import temporary
from .storage import PREFIX

SUFFIX = ".lock"
SILENT_S = 1.0
"""How long a process waits before it says so."""
_POLL_S = 0.05
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
_held: set[tuple[int, Path]] = set()


Tell = Callable[[str], None]


def silent(_message: str) -> None:
    """Tell nobody."""


def lock_file(target: Path) -> Path:
    """Return the file that is locked by whoever writes a file or directory; it stands beside it.

    Args:
        target: What is written.
    """
    target = target.absolute()
    return target.with_name(f"{PREFIX}{document_digest(target.name)[:16]}{SUFFIX}")


def lock_within(directory: Path) -> Path:
    """Return the file that is locked by whoever works in a directory.

    Args:
        directory: The directory.
    """
    return directory.absolute() / f"{PREFIX}here{SUFFIX}"


@contextmanager
def locked(path: Path, tell: Tell = silent) -> Iterator[None]:
    """Keep other processes and threads out; the holder itself may enter again.

    Where nobody may write there is nothing to lock.

    Args:
        path: The file to lock, which is there as long as it is locked.
        tell: Told whom the process waits for.

    Yields:
        Nothing.

    Raises:
        StorageError: If the file system refuses.
    """
    me = (threading.get_ident(), path.resolve())
    if me in _held or not _may_write(path):
        yield
        return
    with _directory(path.parent):
        handle = _wait_for(path, tell)
        _held.add(me)
        try:
            with temporary(path):
                yield
        finally:
            _held.discard(me)
            _release(path, handle)


def try_lock(path: Path) -> int | None:
    """Lock a file or directory that exists, unless somebody holds it.

    Args:
        path: The file or directory.

    Returns:
        A handle, locked until it is closed; None where it is held or gone, or where the file
        system knows no locks.
    """
    return _tried(path, supported=True)


def make_locked(path: Path) -> int:
    """Make a directory that no other process takes for one that was left behind.

    Args:
        path: The directory.

    Returns:
        A handle, locked until it is closed, where the file system knows locks.

    Raises:
        StorageError: If the file system refuses.
    """
    while True:
        storage.make_directory(path)
        if (handle := _tried(path, supported=False)) is not None:
            return handle


@contextmanager
def _directory(directory: Path) -> Iterator[None]:
    """Have a directory; one that was made for this goes again if nothing was put there."""
    made = storage.make_directory(directory)
    try:
        yield
    finally:
        for place in reversed(made):
            storage.remove_empty(place)


def _wait_for(path: Path, tell: Tell) -> int:
    """Return a handle that holds the lock."""
    since, told = time.monotonic(), False
    while (handle := _opened(path)) is None:
        if not told and time.monotonic() - since > SILENT_S:
            tell(f"waiting for process {_holder(path)}, which is at work in {path.parent}")
            told = True
        time.sleep(_POLL_S)
    try:
        storage.write_text(path, f"{os.getpid()}\n")
    except StorageError:
        _release(path, handle)
        raise
    return handle


def _opened(path: Path) -> int | None:
    return _locked_or_closed(path, storage.create(path), supported=False)


def _tried(path: Path, *, supported: bool) -> int | None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    return _locked_or_closed(path, handle, supported=supported)


def _locked_or_closed(path: Path, handle: int, *, supported: bool) -> int | None:
    """Lock what a handle is of, unless it is held, or no longer what stands at the path.

    Without `supported`, a file system that knows no locks has them all free.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if supported or error.errno not in _UNSUPPORTED:
            os.close(handle)
            return None
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(handle), path.lstat()):
            return handle
    os.close(handle)
    return None


def _release(path: Path, handle: int) -> None:
    with suppress(StorageError):  # without its lock the file means nothing
        storage.remove(path)
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)  # a child that was forked meanwhile holds it, too
    os.close(handle)


def _holder(path: Path) -> str:
    try:
        return path.read_text().strip() or "?"
    except OSError:
        return "?"


def _may_write(path: Path) -> bool:
    place = next(place for place in path.absolute().parents if place.exists())
    return os.access(place, os.W_OK)
