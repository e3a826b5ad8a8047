"""SIGINT, SIGTERM and SIGHUP: out in two seconds, one line, the exit code, and nothing left."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tcompress import interruption

from .processes import Zygote

MOST_S = 2.0
WORDS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "the terminal is gone",
}
STAGES = {
    "prune": ("prune", "--heads", "0.3"),
    "finetune": ("finetune", "--epochs", "1000"),
    "export": ("export", "--precision", "int8"),
    "evaluate": ("evaluate", "--budget-s", "60"),
}
# A native call of about a minute, with a child and temporary files beside it.
STUCK = """
import subprocess, sys, tempfile, torch
from tcompress.interruption import leaving_nothing, temporary
from pathlib import Path
def command():
    with tempfile.TemporaryDirectory() as folder, temporary(Path("staging")) as mine:
        mine.mkdir()
        Path(folder, "big").write_bytes(b"0" * 10_000)
        matrix = torch.rand(4000, 4000, dtype=torch.float64)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(child.pid, flush=True)
        torch.linalg.eigvals(matrix)
leaving_nothing(command)
"""
# Sends itself a signal when a module is about to be imported.
AT_AN_IMPORT = """
import os, sys
module, number = sys.argv.pop(1), int(sys.argv.pop(1))
class Sender:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), number)
sys.meta_path.insert(0, Sender())
from tcompress.__main__ import main
main()
"""
# Forks once for every line of the module that sees to signals, sends one there, and tells of those
# that ended in another way than they should.
AT_EVERY_LINE = """
import os, signal, sys
from tcompress import cli, interruption
import psutil
sys.argv = ["tcompress", "--version"]
number = signal.Signals(int(os.environ["NUMBER"]))
expected = 128 + number, f"error: {interruption.SIGNALS[number]}\\n"

def ended(at):
    hearing, saying = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(saying, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        seen = 0
        def trace(frame, event, _):
            nonlocal seen
            if frame.f_code.co_filename != interruption.__file__:
                return None
            if event == "line":
                seen += 1
                if seen in at:
                    os.kill(os.getpid(), number)
            return trace
        sys.settrace(trace)
        cli.main()
    os.close(saying)
    said = os.fdopen(hearing).read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said

line = 0
cli.leaving_nothing = lambda command, run=interruption.leaving_nothing: end(lambda: run(command))
def end(run):
    signal.pthread_sigmask(signal.SIG_BLOCK, interruption.SIGNALS)  # as the way in does
    code = 0
    try:
        run()
    except SystemExit as error:
        code = error.code
    os._exit(code)
while (found := ended({line := line + 1, line + 2}))[0] != 0:
    if found != expected:
        print(line, *found)
assert line > 30, line
"""


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("zygote")) as zygote:
        yield zygote


def _temporary(root: Path) -> list[Path]:
    return [path for path in root.rglob(".tcompress-*") if path.suffix != ".checkpoint"]


@pytest.mark.parametrize(
    ("number", "delay_s"),
    [(signal.SIGINT, 0.05), (signal.SIGTERM, 0.2), (signal.SIGINT, 0.3), (signal.SIGHUP, 0.1)],
    ids=["SIGINT at once", "SIGTERM", "SIGINT", "SIGHUP"],
)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_told_to_end_is_gone_in_two_seconds(
    zygote: Zygote, text_workspace: Path, stage: str, number: signal.Signals, delay_s: float
) -> None:
    scratch = text_workspace.parent / "scratch"
    scratch.mkdir()
    words = (*STAGES[stage], "--workspace", text_workspace)
    running = zygote.start(*words, env={"TMPDIR": str(scratch)})
    while not any(scratch.iterdir()) and not running.ends_within(0.01):
        pass  # a busy machine takes its time to come as far as the command line
    time.sleep(delay_s)
    children = running.children()
    running.send(number)
    ended = running.wait()
    assert ended.code == 128 + number, ended.stderr
    assert ended.seconds < MOST_S
    assert ended.stderr.endswith(f"error: {WORDS[number]}\n")
    assert not [child for child in children if child.is_running()]
    assert not list(scratch.iterdir())
    assert not _temporary(text_workspace)


@pytest.mark.parametrize(
    ("signals", "most_s"), [(1, MOST_S), (2, 0.5)], ids=["once", "a second time at once"]
)
def test_a_native_call_that_goes_on_for_a_minute_holds_nothing_up(
    tmp_path: Path, signals: int, most_s: float
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK],
        cwd=tmp_path,
        env={"OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    time.sleep(0.3)
    start = time.monotonic()
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    _, said = process.communicate(timeout=10)
    assert time.monotonic() - start < most_s
    assert process.returncode == 128 + signal.SIGTERM
    assert said == "error: terminated\n"
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert not list(scratch.iterdir())
    assert not (tmp_path / "staging").exists()


@pytest.mark.parametrize("gap_s", [0.0, 0.005, 0.05])
def test_a_second_signal_adds_nothing_to_the_line(
    zygote: Zygote, text_workspace: Path, tmp_path: Path, gap_s: float
) -> None:
    words = (*STAGES["finetune"], "--workspace", text_workspace)
    running = zygote.start(*words, env={"TMPDIR": str(tmp_path)})
    while not list(tmp_path.glob("*.scratch")) and not running.ends_within(0.01):
        pass
    time.sleep(0.2)
    running.send(signal.SIGINT)
    time.sleep(gap_s)
    with suppress(ProcessLookupError):
        running.send(signal.SIGINT)
    ended = running.wait()
    assert ended.code == 130
    assert ended.stderr.endswith("error: interrupted\n")
    assert ended.stderr.count("error:") == 1
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("number", WORDS)
@pytest.mark.parametrize("module", ["tcompress.cli", "click", "tcompress.interruption"])
def test_a_signal_while_the_command_line_is_imported_is_answered(
    number: signal.Signals, module: str
) -> None:
    code = f"import signal; signal.signal({int(number)}, signal.SIG_DFL)\n{AT_AN_IMPORT}"
    script = (sys.executable, "-c", code, module, str(int(number)), "--version")
    ended = subprocess.run(script, capture_output=True, text=True, check=False)
    assert ended.stderr == f"error: {WORDS[number]}\n"
    assert ended.returncode == 128 + number


def test_a_signal_at_any_line_is_answered() -> None:
    script = (sys.executable, "-c", AT_EVERY_LINE)
    env = os.environ | {"NUMBER": str(int(signal.SIGTERM))}
    ended = subprocess.run(script, env=env, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_signal_that_is_ignored_as_by_nohup_stays_so() -> None:
    script = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{AT_AN_IMPORT}"
    words = (sys.executable, "-c", script, "click", str(int(signal.SIGHUP)), "--version")
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_way_in_holds_back_what_is_answered() -> None:
    script = (
        "import signal, sys; from tcompress import cli, __main__;"
        "cli.main = lambda: print(*sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())));"
        "__main__.main()"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout.split() == [str(int(number)) for number in sorted(interruption.SIGNALS)]


def test_what_a_killed_command_left_is_removed_by_the_next(
    zygote: Zygote, text_workspace: Path, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    env = {"TMPDIR": str(scratch)}
    running = zygote.start(*STAGES["finetune"], "--workspace", text_workspace, env=env)
    while not any(scratch.iterdir()) and not running.ends_within(0.01):
        pass
    (left,) = scratch.iterdir()
    (left / "big").write_bytes(b"0" * 10_000)
    running.kill()
    assert running.wait().code == -signal.SIGKILL
    assert (left / "big").exists()
    assert zygote.run("--version", env=env).code == 0
    assert not list(scratch.iterdir())


def test_what_others_named_nearly_so_is_left_alone(zygote: Zygote, tmp_path: Path) -> None:
    digits = "0123456789abcdef" * 2
    names = {
        *("tcompress-run-1", "tcompress-run-results", ".tcompress-run-1", ".tcompress-cache"),
        *(f"tcompress-{digits}.scratch", f".tcompress-{digits}", f".tcompress-{digits}.tmp"),
        *(f".tcompress-{digits[1:]}.scratch", f".tcompress-{digits}.scratch.old"),
        f".tcompress-{digits[1:]}g.scratch",
    }
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "results").write_text("a week of work")
    (tmp_path / f".tcompress-{digits}.scratch").symlink_to("tcompress-run-1")
    assert zygote.run("--version", env={"TMPDIR": str(tmp_path)}).code == 0
    assert {path.parent.name for path in tmp_path.glob("*/results")} >= names


def test_a_directory_that_another_process_took_for_left_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Path] = []

    def flock(handle: int, operation: int, lock=fcntl.flock) -> None:
        if not taken:
            taken.extend(tmp_path.iterdir())
            shutil.rmtree(taken[0])
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    made = interruption._locked_directory(tmp_path)
    assert list(tmp_path.iterdir()) == [made]
    assert made not in taken
    interruption._remove_left(tmp_path)
    assert made.is_dir()
