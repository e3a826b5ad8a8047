"""Engine processes of the tests fork from one that has imported what all engines import.

Importing torch and transformers takes seconds, and the tests start more than a hundred engines.
Nothing else differs: a process of its own, with its own pipes. Tests marked `fresh_engines` start
theirs as users do.
"""

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

_SUPPORTED = hasattr(os, "pidfd_open")
_OWN = (sys.executable, "-P", "-m")
_KNOWN_OPTIONS = {"stdin", "stdout", "stderr", "env"}
NUMBER_BYTES = 8


class ForkServer:
    """The process that engines fork from, started with the first of them."""

    def __init__(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            script = Path(__file__).with_name("engine_fork_server.py")
            self._process = subprocess.Popen(
                [sys.executable, "-P", script, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            )

    def fork(self, module: str, env: dict[str, str], streams: list[int]) -> None:
        """Start a module; its process's id, and later its exit code, go to the last stream."""
        request = pickle.dumps((module, env, str(Path.cwd()), os.getpid()))
        socket.send_fds(self._requests, [request], streams)

    def close(self) -> None:
        self._requests.close()  # which ends it
        self._process.wait()


class ForkedProcess:
    """As much of a `subprocess.Popen` as a `WorkerProcess` asks for."""

    def __init__(self, server: ForkServer, module: str, stderr: Any, env: dict[str, str]) -> None:
        pipes = [os.pipe() for _ in range(3)]
        (requests, stdin), (stdout, replies), (self._told, tell) = pipes
        server.fork(module, env, [requests, replies, stderr.fileno(), tell])
        for handle in (requests, replies, tell):
            os.close(handle)
        self.pid = int.from_bytes(os.read(self._told, NUMBER_BYTES), signed=True)
        self.stdin, self.stdout = os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb")
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("engine", timeout or 0)
            self.returncode = int.from_bytes(os.read(self._told, NUMBER_BYTES), signed=True)
            os.close(self._told)
        return self.returncode

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class Forking:
    """Stands in for the module `subprocess` where engine processes are started."""

    PIPE, TimeoutExpired = subprocess.PIPE, subprocess.TimeoutExpired
    enabled: ClassVar[bool] = _SUPPORTED
    _server: ClassVar[ForkServer | None] = None

    @classmethod
    def allow(cls, allowed: bool) -> None:
        cls.enabled = allowed and _SUPPORTED

    @classmethod
    def close(cls) -> None:
        if cls._server is not None:
            cls._server.close()
            cls._server = None

    @classmethod
    def Popen(cls, command: tuple[str, ...], **options: Any) -> Any:  # noqa: N802 - its name
        *own, module = command
        if not cls.enabled or tuple(own) != _OWN or options.keys() != _KNOWN_OPTIONS:
            return subprocess.Popen(command, **options)
        cls._server = cls._server or ForkServer()
        return ForkedProcess(cls._server, module, options["stderr"], options["env"])
