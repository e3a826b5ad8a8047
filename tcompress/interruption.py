"""Leaving on SIGINT and SIGTERM: within two seconds, and with nothing left behind.

Python runs its handlers between two instructions of the main thread, and that may stand inside a
native call for minutes. So a thread listens, too: where the main thread has not left by itself
after a second, or at a second signal, it ends the children, removes what is temporary, and ends
the process.
"""

import os
import re
import select
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

GRACE_S = 1.0
"""How long the main thread may take to leave by itself."""
_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
# Whatever has a name of this form, and a free lock, is removed: nothing else may have one.
_SCRATCH = re.compile(r"\.tcompress-[0-9a-f]{32}\.scratch")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it
_REMOVALS = 5  # a native call may still be writing into a directory
_temporary: set[Path] = set()


class Interruption(KeyboardInterrupt):
    """The process was asked to end.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(_SIGNALS[signal.Signals(number)])
        self.exit_code = 128 + number


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Have a path removed where the process is told to end before the block does.

    Args:
        path: A file or directory that the block makes, and removes or renames itself.

    Yields:
        The path.
    """
    _temporary.add(path)
    try:
        yield path
    finally:
        _temporary.discard(path)


@contextmanager
def leaving_nothing() -> Iterator[None]:
    """Take over both signals, and all temporary files of this process and its children.

    Yields:
        Nothing.
    """
    with _scratch_directory():
        asked = _listen()
        try:
            yield
        finally:
            if asked:  # not by way of the interpreter's end: native threads may hold that up
                with suppress(OSError, ValueError):
                    sys.stdout.flush()
                    sys.stderr.flush()
                _leave(asked[0])


def _listen() -> list[int]:
    """Start to listen; returns the list that the numbers of signals are put into."""
    asked: list[int] = []

    def answer(number: int, frame: FrameType | None) -> NoReturn:
        asked.append(number)
        raise Interruption(number)

    listening, telling = os.pipe()
    os.set_blocking(telling, False)
    signal.set_wakeup_fd(telling, warn_on_full_buffer=False)
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and `&` have it
            signal.signal(number, answer)
    threading.Thread(target=_watch, args=(listening,), daemon=True).start()
    return asked


def _watch(listening: int) -> NoReturn:
    """Wait for a signal, and see to it that the process ends."""
    number = _heard(listening)
    if select.select([listening], [], [], GRACE_S)[0]:
        number = _heard(listening)
    words = _SIGNALS[signal.Signals(number)]
    cursor = _SHOW_CURSOR if os.isatty(2) else ""
    with suppress(OSError):
        os.write(2, f"{cursor}error: {words}\n".encode())
    _leave(number)


def _heard(listening: int) -> int:
    """Return the next of our signals; libraries may handle others."""
    while (number := os.read(listening, 1)[0]) not in _SIGNALS:
        pass
    return number


def _leave(number: int) -> NoReturn:
    """End the children, remove what is temporary, and end the process."""
    import psutil

    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    for path in tuple(_temporary):
        _remove(path)
    os._exit(128 + number)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
    for _ in range(_REMOVALS):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _scratch_directory() -> Iterator[None]:
    """Let all temporary files lie in a directory that goes with the process."""
    with suppress(OSError):  # whoever needs a temporary file will say so
        parent = Path(tempfile.gettempdir())
        _remove_left(parent)
        path = _locked_directory(parent)
        tempfile.tempdir = os.environ["TMPDIR"] = str(path)
        _temporary.add(path)
    try:
        yield
    finally:
        for path in tuple(_temporary):
            _remove(path)


def _locked_directory(parent: Path) -> Path:
    """Make a directory that is locked while this process lives."""
    while True:
        path = parent / f".tcompress-{os.urandom(16).hex()}.scratch"
        path.mkdir(mode=0o700)
        if _locked(path, supported=False) is not None:  # open, and so locked, to the end
            return path


def _remove_left(parent: Path) -> None:
    """Remove the directories that killed processes of this user left."""
    for path in parent.iterdir():
        if _SCRATCH.fullmatch(path.name) and (handle := _locked(path, supported=True)) is not None:
            if os.fstat(handle).st_uid == os.geteuid():
                shutil.rmtree(path, ignore_errors=True)
            os.close(handle)


def _locked(directory: Path, *, supported: bool) -> int | None:
    """Return a handle that holds the lock; None where it is held, or where the directory is gone.

    Between a directory's making and its locking another process may take it for one that was left.
    Without `supported`, a file system that knows no locks has them all free.
    """
    import fcntl

    try:
        handle = os.open(directory, _DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if supported or isinstance(error, BlockingIOError):
            os.close(handle)
            return None
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(handle), directory.lstat()):
            return handle
    os.close(handle)
    return None
