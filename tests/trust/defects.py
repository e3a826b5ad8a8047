"""What a command must never do, done in its place: whether the harness sees it.

Each is called in the forked child with the case's input, the output and the canary, and returns to
a refusal that is as it should be, so that nothing but the defect can be found.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

REFUSAL = "error: model.bin: damaged; write it again"


def run(name: str) -> NoReturn:
    """Do what a defect does, and refuse the input.

    Args:
        name: Name of a function below.
    """
    globals()[name](*map(Path, sys.argv[1:]))
    sys.stderr.write(f"{REFUSAL}\n")
    sys.exit(5)


class _Creates:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.mknod, (str(self._path),)


def nothing(given: Path, output: Path, canary: Path) -> None:
    """Do as promised."""
    given.joinpath("model.bin").read_bytes()


def unpickles(given: Path, output: Path, canary: Path) -> None:
    pickle.loads(pickle.dumps(_Creates(canary)))


def imports(given: Path, output: Path, canary: Path) -> None:
    sys.path.insert(0, str(given))
    import_module("module_of_the_case")


def evaluates(given: Path, output: Path, canary: Path) -> None:
    exec(compile("1", str(given / "model.bin"), "exec"))


def starts_a_process(given: Path, output: Path, canary: Path) -> None:
    subprocess.run(["true"], check=True)


def runs_a_shell(given: Path, output: Path, canary: Path) -> None:
    os.system("true")


def forks(given: Path, output: Path, canary: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def connects(given: Path, output: Path, canary: Path) -> None:
    with socket.socket() as connection:
        connection.connect_ex(("127.0.0.1", 9))


def sends(given: Path, output: Path, canary: Path) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as connection:
        connection.sendto(b"x", ("127.0.0.1", 9))


def asks_for_an_address(given: Path, output: Path, canary: Path) -> None:
    socket.gethostbyname("localhost")


def child_reads(given: Path, output: Path, canary: Path) -> None:
    subprocess.run([sys.executable, "-c", "open('/etc/passwd')"], check=True)


def reads_outside(given: Path, output: Path, canary: Path) -> None:
    Path("/etc/passwd").read_bytes()


def reads_through_a_link(given: Path, output: Path, canary: Path) -> None:
    link = output / "link"
    output.mkdir()
    link.symlink_to("/etc/passwd")
    link.read_bytes()
    link.unlink()
    output.rmdir()


def writes_outside(given: Path, output: Path, canary: Path) -> None:
    canary.with_name("written").write_bytes(b"")


def removes_outside(given: Path, output: Path, canary: Path) -> None:
    canary.with_name("foreign").rmdir()


def changes_its_input(given: Path, output: Path, canary: Path) -> None:
    given.joinpath("model.bin").write_bytes(b"changed")


def leaves_a_part(given: Path, output: Path, canary: Path) -> None:
    output.mkdir()
    output.joinpath("model.safetensors").write_bytes(b"half")


def leaves_a_staging_directory(given: Path, output: Path, canary: Path) -> None:
    output.with_name(".tcompress-x.tmp").mkdir()


def leaves_a_temporary_file(given: Path, output: Path, canary: Path) -> None:
    Path(os.environ["TMPDIR"], "tcompress-x").write_bytes(b"")


def raises(given: Path, output: Path, canary: Path) -> None:
    raise LookupError(given)


def prints_a_traceback(given: Path, output: Path, canary: Path) -> None:
    sys.stdout.write("Traceback (most recent call last):\n")


def takes_memory(given: Path, output: Path, canary: Path) -> None:
    bytearray(64 << 30)


def says_it_twice(given: Path, output: Path, canary: Path) -> None:
    sys.stderr.write(f"{REFUSAL}\n")


def colours(given: Path, output: Path, canary: Path) -> None:
    sys.stderr.write("error: \x1b[31mmodel.bin\n")
    sys.exit(5)


def says_nothing(given: Path, output: Path, canary: Path) -> None:
    sys.exit(5)


def accepts(given: Path, output: Path, canary: Path) -> None:
    sys.exit(0)


def hangs(given: Path, output: Path, canary: Path) -> None:
    time.sleep(60)


def computes_for_ever(given: Path, output: Path, canary: Path) -> None:
    while True:
        pass


def crashes(given: Path, output: Path, canary: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
