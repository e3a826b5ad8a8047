"""Command lines in processes of their own, which may be told to end or be killed."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Exit code; the negative number of the signal that killed it.
        stdout: What it printed.
        stderr: What it said.
        seconds: From the last signal that it was sent but SIGKILL, or its start.
    """

    code: int
    stdout: str
    stderr: str
    seconds: float


class Running:
    """A command that runs."""

    def __init__(self, zygote: "Zygote", pid: int) -> None:
        self.pid = pid
        self._zygote = zygote
        self._since = time.monotonic()

    def said(self, words: str, timeout_s: float = 60) -> None:
        """Wait until it has said something on stderr."""
        until = time.monotonic() + timeout_s
        while words not in self._zygote.stderr.read_text(errors="replace"):
            assert time.monotonic() < until, self._zygote.stderr.read_text()
            assert psutil.pid_exists(self.pid), self._zygote.stderr.read_text()
            time.sleep(0.005)

    def children(self) -> list[psutil.Process]:
        """Return the processes that it started, or had forked from the engines' server."""
        psutil.Process(self.pid)  # raises where it has ended
        zygote = psutil.Process(self._zygote.pid)
        beside = zygote.children()  # the command, and the server
        return [found for found in zygote.children(recursive=True) if found not in beside]

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)
        self._since = time.monotonic()

    def kill(self) -> list[psutil.Process]:
        """Kill it, unless it has just ended by itself; returns the processes it had then."""
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            children = self.children()
            os.kill(self.pid, signal.SIGKILL)
            return children
        return []

    def ends_within(self, seconds: float) -> bool:
        return bool(select.select([self._zygote.replies], [], [], seconds)[0])

    def wait(self) -> Ended:
        status = int(self._zygote.replies.readline())
        seconds = time.monotonic() - self._since
        return Ended(
            os.waitstatus_to_exitcode(status),
            self._zygote.stdout.read_text(errors="replace"),
            self._zygote.stderr.read_text(errors="replace"),
            seconds,
        )


class Zygote:
    """Runs command lines, one at a time, without the seconds that imports take."""

    def __init__(self, folder: Path, env: dict[str, str] | None = None) -> None:
        self.stdout, self.stderr = folder / "stdout", folder / "stderr"
        self.cwd = folder
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}),
        )
        assert self._process.stdout is not None
        self.replies = self._process.stdout
        self.pid = self._process.pid

    def start(
        self,
        *words: object,
        cwd: Path | None = None,
        umask: int = 0o022,
        env: dict[str, str] | None = None,
        without: tuple[str, ...] = (),
        **fault: object,
    ) -> Running:
        for path in (self.stdout, self.stderr):
            path.write_bytes(b"")
        request = {
            "words": [str(word) for word in words],
            "cwd": str(cwd or self.cwd),
            "umask": umask,
            "env": env or {},
            "without": without,
            "stdout": str(self.stdout),
            "stderr": str(self.stderr),
            **fault,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        return Running(self, int(self.replies.readline()))

    def run(self, *words: object, **options: object) -> Ended:
        return self.start(*words, **options).wait()  # type: ignore[arg-type]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
