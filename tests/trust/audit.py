"""What a process does besides computing: an audit hook that writes down what it should not do.

Nothing of tcompress is imported here: the hook also goes into its worker processes.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VARIABLE = "TCOMPRESS_TEST_AUDIT"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = (
    *("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink"),
    *("os.truncate", "os.chmod", "os.chown", "os.utime"),
)
_NEVER = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty"),
    *("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"),
)
_NETWORK = ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg")
# Whoever unpickles one of these can run anything.
_DANGEROUS = ("os", "posix", "nt", "subprocess", "sys", "runpy", "builtins.eval", "builtins.exec")


@dataclass(frozen=True)
class Bounds:
    """What an audited process may do.

    Attributes:
        log: File that findings are written to, one per line.
        case: Where the input lies: nothing below it may run, or be written.
        readable: Directories that may be read.
        writable: Directories that may be written, and read.
    """

    log: str
    case: str
    readable: tuple[str, ...]
    writable: tuple[str, ...]

    def environment(self) -> dict[str, str]:
        """Return variables by which worker processes learn of the bounds."""
        return {
            VARIABLE: json.dumps(asdict(self)),
            "PYTHONPATH": str(Path(__file__).with_name("audit_site")),
        }


def arm_from_environment() -> None:
    """Audit this process, if its parent is audited."""
    if VARIABLE in os.environ:
        arm(json.loads(os.environ[VARIABLE]))


def arm(bounds: Mapping[str, Any]) -> None:
    """Audit this process from now on; there is no way back.

    Args:
        bounds: A `Bounds` as JSON.
    """
    log = os.open(bounds["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    case = bounds["case"]
    readable = (*bounds["readable"], *bounds["writable"], case)
    writable = (*bounds["writable"], os.devnull)

    def inside(path: Any, places: tuple[str, ...]) -> bool:
        found = os.path.realpath(os.fsdecode(path))
        return any(found == place or found.startswith(f"{place}{os.sep}") for place in places)

    def finding(*words: object) -> None:
        line = " ".join(str(word) for word in words)
        os.write(log, f"{line}\n".encode(errors="backslashreplace"))

    def opened(path: Any, mode: str | None, flags: int) -> None:
        if isinstance(path, int):
            return
        if flags & _WRITING:
            if not inside(path, writable):
                finding("write", path)
        elif not inside(path, readable):
            finding("read", path)

    def changed(event: str, arguments: tuple[Any, ...]) -> None:
        for path in arguments[: 2 if event in ("os.rename", "os.link") else 1]:
            target = arguments[1] if event == "os.symlink" else path
            if not isinstance(target, int) and not inside(target, writable):
                finding(event, target)

    def ran(code: Any) -> None:
        name = getattr(code, "co_filename", code)
        if isinstance(name, str | bytes) and inside(name, (case,)):
            finding("code", name)

    def started(program: Any, words: Any) -> None:
        ours = [sys.executable, "-P", "-m"]
        if str(program) == "fc-list":  # matplotlib asks it for fonts
            return
        if list(words)[:3] != ours or not str(list(words)[3]).startswith("tcompress."):
            finding("process", program, list(words))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            opened(*arguments)
        elif event in _CHANGES:
            changed(event, arguments)
        elif event in ("exec", "compile"):
            ran(arguments[0] if event == "exec" else arguments[1])
        elif event == "subprocess.Popen":
            started(arguments[0], arguments[1])
        elif event in _NEVER:
            finding(event, *arguments)
        elif event in _NETWORK and not isinstance(arguments[-1], str | bytes | None):
            finding(event, arguments[-1])
        elif event == "pickle.find_class":
            name = ".".join(arguments)
            if arguments[0] in _DANGEROUS or name in _DANGEROUS:
                finding("unpickled", name)
        elif event == "ctypes.dlopen" and arguments[0] and inside(arguments[0], (case,)):
            finding("library", arguments[0])

    sys.addaudithook(hook)
