"""One process per engine, awake only while it answers.

Thread pools of engines spin after a call: two engines in one process, or in two processes that
both run, slow each other down. Each engine therefore works in a process of its own, which is
suspended whenever it is not asked anything.
"""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tcompress import errors
from tcompress.data import Examples
from tcompress.errors import MeasurementError, TcompressError
from tcompress.machine import usable_cpus

from .engine_info import EngineInfo
from .worker import DONE, REFUSED

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_LAST_WORDS = 300
_SECONDS_TO_DIE = 5
_SECONDS_TO_STOP = 1


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
    """

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
            TcompressError: What opening raised.
            MeasurementError: If the process failed.
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
            TcompressError: What the method raised.
            MeasurementError: If the process failed.
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
        if outcome == DONE:
            return value
        if outcome == REFUSED:
            raise _rebuilt(*value)
        msg = f"{self.name}: the engine failed: {value}"
        raise MeasurementError(msg)

    def _death(self) -> MeasurementError:
        try:
            code = self._process.wait(_SECONDS_TO_DIE)
        except subprocess.TimeoutExpired:  # it lives, but what it said was no reply
            self._process.kill()
            code = self._process.wait()
        self._stderr.seek(0)
        words = self._stderr.read().decode(errors="replace").strip().splitlines()
        said = f"; it said: {words[-1][:_LAST_WORDS]}" if words else ""
        return MeasurementError(f"{self.name}: the engine process ended {_manner(code)}{said}")


class EngineProcess(WorkerProcess):
    """An artifact, opened on its own engine in a process of its own.

    Args:
        directory: A model directory or an artifact.
        name: How errors call it; else the directory.
        device: `cpu` or `cuda`.
        precision: `bf16` or `fp16` to run an encoder in that format; otherwise its plan counts.
        threads: Threads, and CPUs, that it may use; else all that this process may use.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str | None = None,
        device: str = "cpu",
        precision: str = "fp32",
        threads: int | None = None,
    ) -> None:
        super().__init__(
            "tcompress.evaluate.worker",
            name=name or str(directory),
            threads=threads,
            opening={
                "directory": directory.resolve(),
                "device": device,
                "precision": precision,
            },
        )

    @property
    def info(self) -> EngineInfo:
        """What the engine says about itself; waits until the artifact is open.

        Raises:
            TcompressError: What opening the artifact raised.
            MeasurementError: If the process failed.
        """
        info: EngineInfo = self.opened()
        return info

    def encode(self, examples: Examples, size: int) -> tuple[int, int]:
        """Hand over examples for `predict`.

        Args:
            examples: The examples.
            size: Examples per batch.

        Returns:
            Number of batches, and how many examples were truncated.

        Raises:
            DataError: If the examples do not fit the model.
            MeasurementError: If the process failed.
        """
        batches, truncated = self.ask("encode", examples=examples, size=size)
        return int(batches), int(truncated)

    def predict(self, indices: Iterable[int]) -> Iterator[tuple[list[int], Any]]:
        """Answer batches of the examples that were handed over.

        Args:
            indices: Numbers of the batches.

        Yields:
            Positions of a batch's examples, and their logits, `(batch, labels)` float32.

        Raises:
            MeasurementError: If the process failed.
        """
        for index in indices:
            yield self.ask("predict", index=index)

    def fix(self, batch: int, tokens: int, seed: int = 0) -> None:
        """Set the shape that `turn` measures.

        Args:
            batch: Examples per call.
            tokens: Tokens per example.
            seed: Seed of the inputs' values.

        Raises:
            MeasurementError: If the process failed.
        """
        self.ask("fix", batch=batch, tokens=tokens, seed=seed)

    def turn(self, calls: int, warmup: int) -> list[int]:
        """Measure calls, while every other engine process sleeps.

        Args:
            calls: Measured calls.
            warmup: Calls before them.

        Returns:
            Duration of each measured call, in ns.

        Raises:
            MeasurementError: If the process failed.
        """
        return list(self.ask("time", calls=calls, warmup=warmup))

    def memory_peak_bytes(self) -> int:
        """Return the most memory that the process has held."""
        return int(self.ask("memory"))


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
