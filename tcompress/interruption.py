"""Leaving on SIGINT, SIGTERM and SIGHUP: in two seconds, with one line, and with nothing left.

Python runs its handlers between two instructions of the main thread, and that may stand inside a
native call for minutes. So a thread listens, too: where the main thread has not left by itself
after a second, or at a second signal, it ends the children, removes what is temporary, and ends
the process.

A handler raises only where the exception is caught. Before, signals are held back.
"""

import os
import re
import select
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

GRACE_S = 1.0
"""How long the main thread may take to leave by itself."""
SIGNALS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "the terminal is gone",
}
"""What ends a command, and how that is called."""
# Whatever has a name of this form, and a free lock, is removed: nothing else may have one.
_SCRATCH = re.compile(r"\.tcompress-[0-9a-f]{32}\.scratch")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it
_REMOVALS = 5  # a native call may still be writing into a directory
_temporary: set[Path] = set()
_asked: list[int] = []  # numbers of signals
_ending = threading.Lock()


class Interruption(BaseException):
    """The process was asked to end; click and other libraries would answer a `KeyboardInterrupt`.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(SIGNALS[signal.Signals(number)])


def asked_to_end() -> bool:
    """Return whether a signal has come: whatever is raised then follows from that."""
    return bool(_asked)


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


def leaving_nothing(command: Callable[[], object]) -> None:
    """Run a command; a signal ends it, its children and all temporary files, and the process.

    Args:
        command: What to run; afterwards the interpreter is to end.
    """
    _hold_back()
    _listen()
    try:
        try:
            _let_through()
            with suppress(OSError):  # whoever needs a temporary file will say so
                _use_scratch_directory()
            command()
        finally:
            _hold_back()
    except Interruption:
        assert _asked
    finally:
        if _asked:  # not by way of the interpreter's end: native threads may hold that up
            _end(_asked[0])
        for path in tuple(_temporary):
            _remove(path)
        _handle(lambda number, _: _end(number))
        _let_through()


def _hold_back() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _let_through() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _handle(handler: Callable[[int, FrameType | None], object]) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and `&` have it
            signal.signal(number, handler)


def _listen() -> None:
    """Let the first signal raise, and a thread hear all."""
    listening, telling = os.pipe()
    os.set_blocking(telling, False)
    signal.set_wakeup_fd(telling, warn_on_full_buffer=False)
    sys.unraisablehook = _show_unraisable
    threading.Thread(target=_watch, args=(listening,), daemon=True).start()
    _handle(_answer)


def _answer(number: int, _: FrameType | None) -> None:
    _asked.append(number)
    if len(_asked) == 1:  # another would break into what the first lets go of
        raise Interruption(number)


def _show_unraisable(found: "sys.UnraisableHookArgs") -> None:
    """Where the handler raised inside a destructor, the thread that listens ends the process."""
    if not isinstance(found.exc_value, Interruption):
        sys.__unraisablehook__(found)


def _watch(listening: int) -> NoReturn:
    """Wait for a signal, and see to it that the process ends."""
    number = _heard(listening)
    if select.select([listening], [], [], GRACE_S)[0]:
        number = _heard(listening)
    _end(number)


def _heard(listening: int) -> int:
    """Return the next of our signals; libraries may handle others."""
    while (number := os.read(listening, 1)[0]) not in SIGNALS:
        pass
    return number


def _end(number: int) -> NoReturn:
    """Say why, end the children, remove what is temporary, and end the process."""
    import psutil

    _hold_back()
    _ending.acquire()  # the other thread, if it comes here, waits for the end
    cursor = _SHOW_CURSOR if os.isatty(2) else ""
    with suppress(OSError):
        os.write(2, f"{cursor}error: {SIGNALS[signal.Signals(number)]}\n".encode())
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


def _use_scratch_directory() -> None:
    """Let all temporary files lie in a directory that goes with the process."""
    parent = Path(tempfile.gettempdir())
    path = _locked_directory(parent)
    tempfile.tempdir = os.environ["TMPDIR"] = str(path)
    _remove_left(parent)


def _locked_directory(parent: Path) -> Path:
    """Make a directory that is locked while this process lives."""
    while True:
        path = parent / f".tcompress-{os.urandom(16).hex()}.scratch"
        _temporary.add(path)
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
