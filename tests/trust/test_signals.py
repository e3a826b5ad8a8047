"""SIGINT and SIGTERM: out in two seconds, the right exit code, and nothing left."""

import fcntl
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tcompress import interruption

from .processes import Zygote

MOST_S = 2.0
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
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
with leaving_nothing(), tempfile.TemporaryDirectory() as folder, temporary(Path("staging")) as mine:
    mine.mkdir()
    Path(folder, "big").write_bytes(b"0" * 10_000)
    matrix = torch.rand(4000, 4000, dtype=torch.float64)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.pid, flush=True)
    torch.linalg.eigvals(matrix)
"""


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("zygote")) as zygote:
        yield zygote


def _temporary(root: Path) -> list[Path]:
    return [path for path in root.rglob(".tcompress-*") if path.suffix != ".checkpoint"]


@pytest.mark.parametrize(
    ("number", "delay_s"),
    [(signal.SIGINT, 0.05), (signal.SIGTERM, 0.2), (signal.SIGINT, 0.3)],
    ids=["SIGINT at once", "SIGTERM", "SIGINT"],
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
