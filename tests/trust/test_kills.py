"""SIGKILL at random times; the next run ends with the same artifacts as one that nobody killed."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tcompress.artifact import Artifact
from tcompress.workspace import Workspace

from .processes import Zygote
from .zygote import FORKED_ENGINES

RUN = (("run", "--heads", "0.3", "--epochs", "2", "--budget-s", "0.2", "--max-drop", "0.5"),)
# What `run` does before it measures.
STAGES = (
    ("score", "--criterion", "curvature"),
    ("prune", "--heads", "0.3", "--neurons", "0.3", "--force"),
    ("finetune", "--epochs", "6", "--force"),
    ("quantize", "--force"),
)
Commands = tuple[tuple[str, ...], ...]


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("zygote"), {FORKED_ENGINES: "1"}) as zygote:
        yield zygote


class Runs:
    """Runs of the same commands in workspaces of their own, killed or not."""

    def __init__(self, zygote: Zygote, root: Path, model: Path, data: Path) -> None:
        self._zygote = zygote
        self._root = root
        self._source = (model, "--data", data)
        self.killed: Counter[str] = Counter()

    def workspace(self, name: str) -> Path:
        directory = self._root / name
        ended = self._zygote.run("init", *self._source, "--workspace", directory)
        assert ended.code == 0, ended.stderr
        return directory

    def run(self, workspace: Path, commands: Commands, kill_after_s: float | None = None) -> bool:
        """Run commands; returns whether they came to their end before they were killed."""
        until = None if kill_after_s is None else time.monotonic() + kill_after_s
        for words in commands:
            running = self._zygote.start(*words, "--workspace", workspace)
            if until is not None and not running.ends_within(max(0.0, until - time.monotonic())):
                children = running.kill()
                ended = running.wait()
                psutil.wait_procs(children, timeout=5)
                assert not [child for child in children if child.is_running()]
                if ended.code == -signal.SIGKILL:
                    self.killed[_at(ended.stderr) if words[0] == "run" else words[0]] += 1
                    return False
            else:
                ended = running.wait()
            assert ended.code in ((0, 3, 4) if words[0] == "run" else (0,)), ended.stderr
        return True


@pytest.fixture
def runs(zygote: Zygote, tmp_path: Path, model_directories: Callable, reviews_file: Path) -> Runs:
    return Runs(zygote, tmp_path, model_directories("bert"), reviews_file)


def _at(stderr: str) -> str:
    """Return the stage that `run` was in."""
    begun = [line.split()[2] for line in stderr.splitlines() if line.startswith("$ tcompress")]
    return begun[-1] if begun else "start"


def _digests(workspace: Path) -> dict[str, str]:
    """Verify all artifacts, whole or not; what is not whole has no manifest."""
    artifacts = Workspace.open(workspace).artifacts()
    return {
        str(artifact.directory.relative_to(workspace)): Artifact.open(
            artifact.directory
        ).manifest.digest
        for artifact in artifacts
    }


def _survive(runs: Runs, commands: Commands, kills: int) -> str:
    """Kill so often, at times drawn evenly; returns what happened, for a document."""
    whole = runs.workspace("whole")
    start = time.monotonic()
    runs.run(whole, commands)
    seconds, wanted = time.monotonic() - start, _digests(whole)
    assert set(wanted) >= {f"artifacts/{stage}" for stage in ("prune", "finetune", "quantize")}
    draw, workspaces = random.Random(0), 0
    while runs.killed.total() < kills:
        workspaces += 1
        workspace = runs.workspace(f"killed-{workspaces}")
        while runs.killed.total() < kills:
            if runs.run(workspace, commands, draw.uniform(0, seconds)):
                break
            found = _digests(workspace)
            assert found.items() <= wanted.items()
        runs.run(workspace, commands)
        assert _digests(workspace) == wanted
        assert not [path for path in workspace.rglob(".tcompress-*") if path.suffix != ".lock"]
    stages = ", ".join(f"{count} in {stage}" for stage, count in sorted(runs.killed.items()))
    return f"kills: {kills} in {workspaces} runs of {seconds:.1f} s ({stages}); all ended the same"


def test_five_kills_leave_nothing_that_the_next_run_does_not_mend(
    runs: Runs, request: pytest.FixtureRequest
) -> None:
    request.config.get_terminal_writer().line(_survive(runs, STAGES, 5))


@pytest.mark.slow
@pytest.mark.parametrize("commands", [(*STAGES, ("export", "--force")), RUN], ids=["stages", "run"])
def test_a_hundred_kills_leave_nothing_that_the_next_run_does_not_mend(
    runs: Runs, request: pytest.FixtureRequest, commands: Commands
) -> None:
    request.config.get_terminal_writer().line(_survive(runs, commands, 100))
