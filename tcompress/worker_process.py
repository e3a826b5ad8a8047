"""A worker in a process of its own: the end that asks, and the end that answers.

Engines get a process each for two reasons. One that crashes takes nothing else along. And thread
pools spin after a call: two engines in one process, or in two that both run, slow each other down;
so a worker's process is suspended whenever it is not asked anything.

Requests and replies are pickles on the standard input and output of the process, between a program
and itself. The answering end is imported before its engine, so nothing heavy may be imported here.
"""

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, ClassVar, Self

import psutil

from . import errors
from .errors import MeasurementError, TcompressError
from .machine import usable_cpus
from .process_limits import limit_process

_DONE, _REFUSED, _FAILED = "done", "refused", "failed"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_LAST_WORDS = 300
_SECONDS_TO_DIE = 5
_SECONDS_TO_STOP = 1
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


class WorkerProcess:
    """A worker's module in a process of its own, awake only while it answers.

    The process starts at once; the first question waits until `open` is answered. Use it in a
    `with` statement: the process ends with the block.

    Args:
        program: The module to run in this Python, whose `main` serves a worker; or a command that
            speaks the same requests.
        name: How errors call it.
        threads: Threads, and CPUs, that it may use; else all that this process may use.
        opening: Arguments of the worker's `open`; the number of threads is added.

    Attributes:
        failure: What is raised where the process failed.
        refusal: What is raised where a signal ended it while it opened its file; None: `failure`.
    """

    failure: ClassVar[type[TcompressError]] = MeasurementError
    refusal: ClassVar[type[TcompressError] | None] = None

    def __init__(
        self,
        program: str | Sequence[str],
        *,
        name: str,
        threads: int | None,
        opening: dict[str, Any],
    ) -> None:
        self.name = name
        self._opened: tuple[Any] | None = None
        threads = min(threads or usable_cpus(), usable_cpus())
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        # -P: a file named torch.py in the user's directory is not torch.
        own = (sys.executable, "-P", "-m")
        command = (*own, program) if isinstance(program, str) else tuple(program)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=os.environ | dict.fromkeys(_THREAD_VARIABLES, str(threads)),
        )
        self._handle = psutil.Process(self._process.pid)
        try:
            _pin(self._handle, threads)
            self._send("open", **opening, threads=threads)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                _close_quietly(stream)

    def opened(self) -> Any:
        """Return what the worker answered to `open`; waits until it has.

        Raises:
            TcompressError: What opening raised; `failure`, if the process failed.
        """
        if self._opened is None:
            answer = self._receive()
            self._rest()
            self._opened = (answer,)
        return self._opened[0]

    def ask(self, request: str, **arguments: Any) -> Any:
        """Wake the process, ask, wait for the answer, let it sleep.

        Args:
            request: Name of the worker's method.
            arguments: Its arguments.

        Raises:
            TcompressError: What the method raised; `failure`, if the process failed.
        """
        self.opened()
        try:
            self._handle.resume()
        except psutil.NoSuchProcess as error:
            raise self._death() from error
        self._send(request, **arguments)
        answer = self._receive()
        self._rest()
        return answer

    def _rest(self) -> None:
        """Suspend the process and wait until it has stopped: the next one may be timed at once."""
        try:
            self._handle.suspend()
            deadline = time.monotonic() + _SECONDS_TO_STOP
            while self._handle.status() != psutil.STATUS_STOPPED and time.monotonic() < deadline:
                time.sleep(0.0005)
        except psutil.NoSuchProcess as error:
            raise self._death() from error

    def _send(self, request: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump((request, arguments), self._process.stdin)
            self._process.stdin.flush()
        except OSError as error:
            raise self._death() from error

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        try:
            outcome, value = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError) as error:
            raise self._death() from error
        if outcome == _DONE:
            return value
        if outcome == _REFUSED:
            raise _rebuilt(*value)
        msg = f"{self.name}: the engine failed: {value}"
        raise self.failure(msg)

    def _death(self) -> TcompressError:
        try:
            code = self._process.wait(_SECONDS_TO_DIE)
        except subprocess.TimeoutExpired:  # it lives, but what it said was no reply
            self._process.kill()
            code = self._process.wait()
        self._stderr.seek(0)
        words = self._stderr.read().decode(errors="replace").strip().splitlines()
        said = f"; it said: {words[-1][:_LAST_WORDS]}" if words else ""
        what = f"the engine process ended {_manner(code)}"
        if self.refusal is None or self._opened is not None or code >= 0:
            return self.failure(f"{self.name}: {what}{said}")
        return self.refusal(f"{self.name}: {what} as it opened the file{said}; make it again")


def serve(worker: object) -> None:
    """Answer requests until the standard input ends.

    Args:
        worker: Every public method answers the request of its name.
    """
    requests, replies = _take_over_streams()
    _follow_parent()
    limit_process()
    while True:
        try:
            name, arguments = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(_answer(getattr(worker, name), arguments), replies)
        replies.flush()


def _answer(method: Callable[..., Any], arguments: dict[str, Any]) -> tuple[str, Any]:
    try:
        return _DONE, method(**arguments)
    except TcompressError as error:
        return _REFUSED, (type(error).__name__, str(error))
    except Exception as error:  # engines raise many kinds; the parent names the artifact
        return _FAILED, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _take_over_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Keep the two pipes for ourselves; what libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return sys.stdin.buffer, replies


def _follow_parent() -> None:
    """Leave interrupts to the parent, and end when it ends, even while suspended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _manner(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"by {signal.Signals(-code).name}{hint}"


def _pin(process: psutil.Process, threads: int) -> None:
    """Give the process as many CPUs as threads: engines count CPUs to size their pools."""
    if not hasattr(os, "sched_getaffinity"):
        return
    usable = sorted(os.sched_getaffinity(0))
    if threads < len(usable):
        process.cpu_affinity(usable[:threads])


def _rebuilt(kind: str, message: str) -> TcompressError:
    """Make the error that the process raised; some kinds compose their message themselves."""
    made = getattr(errors, kind, TcompressError)
    error: TcompressError = made.__new__(made, message)
    return error


def _close_quietly(stream: Any) -> None:
    with suppress(BrokenPipeError):  # a request may still be on its way to a dead process
        stream.close()
