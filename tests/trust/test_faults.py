"""Every change of the file system fails in turn; the next run mends it.

As SQLite's tests do with their VFS: the calls of a run are counted once, and then call 0, 1, 2, ...
fails with EIO, ENOSPC or the death of the process, once or from then on.
"""

import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import pytest

from tcompress.artifact import MANIFEST_FILE, Artifact
from tcompress.staging import STAGING_PREFIX

from .faults import Fault, Kind
from .processes import Ended, Zygote
from .zygote import FORKED_ENGINES

VARIANTS = [
    (Kind.EIO, False),
    (Kind.EIO, True),
    (Kind.ENOSPC, False),
    (Kind.ENOSPC, True),
    (Kind.KILL, False),
]
STAGES = (
    ("prune", "--heads", "0.3", "--criterion", "magnitude", "--force"),
    ("quantize", "--force"),
    ("export", "--force"),
)
DIGITS = (
    ("init", "--demo", "digits"),
    ("prune", "--heads", "0.3", "--neurons", "0.3", "--force"),
    ("finetune", "--epochs", "1", "--force"),
    ("quantize", "--force"),
    ("export", "--format", "onnx", "--force"),
    ("export", "--format", "torchscript", "--force"),
    ("evaluate", "--budget-s", "0.1", "--no-mix"),
)
FOREIGN = ("notes.txt", "artifacts/notes.txt", "artifacts/.tcompress-mine.tmp", ".tcompress-x.old")
"""Files of the user's beside what is written; two have names that only look like tcompress's."""
_DIED = -signal.SIGKILL
Commands = tuple[tuple[str, ...], ...]


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    folder = tmp_path_factory.mktemp("zygote")
    env = {FORKED_ENGINES: "1", "XDG_CACHE_HOME": str(folder / "cache")}
    with Zygote(folder, env) as zygote:
        yield zygote


@dataclass
class Loop:
    """Runs a pipeline with faults in it.

    Attributes:
        zygote: Runs the commands.
        root: An empty directory, for workspaces and what they looked like before each command.
        commands: The pipeline.
        calls: Of each command, how many calls it makes.
        wanted: Digests of the artifacts of a run without faults.
        outcomes: How many runs with a fault ended how.
        operations: How often each kind of call was the first that failed.
    """

    zygote: Zygote
    root: Path
    commands: Commands
    calls: list[int] = field(default_factory=list)
    wanted: dict[str, str] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    @property
    def trace(self) -> Path:
        return self.root / "trace"

    def record(self) -> None:
        """Run the pipeline without a fault; keep what the workspace looked like on the way."""
        for name in FOREIGN:
            (self.workspace / name).parent.mkdir(parents=True, exist_ok=True)
            (self.workspace / name).write_text(f"mine: {name}")
        for number, words in enumerate(self.commands):
            shutil.copytree(self.workspace, self.root / f"before-{number}")
            ended = self.run(words)
            assert ended.code == 0, ended.stderr
            self.calls.append(len(self._traced()))
        self.wanted = self.digests()

    def run(self, words: tuple[str, ...], fault: Fault | None = None) -> Ended:
        told = (fault or Fault()).request(self.trace)
        return self.zygote.run(*words, "--workspace", self.workspace, **told)

    def digests(self) -> dict[str, str]:
        """Verify every directory that a reader takes for an artifact."""
        return {
            str(path.parent.relative_to(self.workspace)): Artifact.open(path.parent).manifest.digest
            for path in self.workspace.rglob(MANIFEST_FILE)
            if STAGING_PREFIX not in str(path.relative_to(self.workspace))
        }

    def points(self, most: int | None = None) -> list[tuple[int, Fault]]:
        """Return every fault, or about so many, with the number of the command that has it."""
        calls = [(number, call) for number, n in enumerate(self.calls) for call in range(n)]
        points = [
            (number, Fault(kind, call, persistent))
            for (number, call), (kind, persistent) in product(calls, VARIANTS)
        ]
        step = max(1, len(points) // (most or len(points)))
        return points[:: step + (step % len(VARIANTS) == 0)]  # not always the same kind

    def survive(self, number: int, fault: Fault) -> None:
        """Run a command with a fault, and again without."""
        shutil.rmtree(self.workspace)
        shutil.copytree(self.root / f"before-{number}", self.workspace)
        before = self.digests()
        ended = self.run(self.commands[number], fault)
        self.outcomes[_outcome(ended)] += 1
        self.operations[self._traced()[fault.call].partition(":")[0]] += 1
        assert ended.code in ((_DIED,) if fault.kind is Kind.KILL else (0, 6)), ended.stderr
        if ended.code == 6:
            *_, last = said = ended.stderr.splitlines()
            assert [line for line in said if line.startswith(("error", "Trace"))] == [last]
        found = self.digests()
        assert found.items() <= (before | self.wanted).items()
        self._check_foreign()
        again = self.run(self.commands[number])
        assert again.code == 0, again.stderr
        mended = self.digests()
        assert mended.items() <= self.wanted.items()
        assert mended == found or ended.code != 0
        assert len(mended) == len(before) + (self.commands[number][0] in WRITERS)
        assert not [
            path for path in self.workspace.rglob(".tcompress-*") if not self._is_foreign(path)
        ]
        self._check_foreign()

    def finish(self, number: int) -> None:
        """Run the rest of the pipeline."""
        for words in self.commands[number + 1 :]:
            assert self.run(words).code == 0
        assert self.digests() == self.wanted

    def summary(self) -> str:
        """Return what happened, for a document to quote."""
        told = ", ".join(f"{count} {how}" for how, count in sorted(self.outcomes.items()))
        kinds = ", ".join(f"{n} {name}" for name, n in sorted(self.operations.items()))
        total = f"{self.outcomes.total()} faults at {sum(self.calls)} calls"
        return f"faults: {total} of {len(self.commands)} commands: {told}; calls: {kinds}"

    def _traced(self) -> list[str]:
        return self.trace.read_text().splitlines()

    def _is_foreign(self, path: Path) -> bool:
        return str(path.relative_to(self.workspace)) in FOREIGN

    def _check_foreign(self) -> None:
        for name in FOREIGN:
            assert (self.workspace / name).read_text() == f"mine: {name}"


WRITERS = ("prune", "finetune", "quantize", "export")


def _outcome(ended: Ended) -> str:
    return {0: "mended at once", 6: "refused with exit code 6", _DIED: "killed"}.get(
        ended.code, f"exit code {ended.code}"
    )


def _shown(request: pytest.FixtureRequest, line: str) -> None:
    request.config.get_terminal_writer().line(line)


@pytest.fixture
def tiny_loop(zygote: Zygote, tmp_path: Path, text_workspace: Path) -> Loop:
    loop = Loop(zygote, tmp_path, STAGES)
    loop.record()
    return loop


def test_a_sample_of_faults_leaves_nothing_that_the_next_run_does_not_mend(
    tiny_loop: Loop, request: pytest.FixtureRequest
) -> None:
    assert len(tiny_loop.points()) > 200
    for number, fault in tiny_loop.points(25):
        tiny_loop.survive(number, fault)
    _shown(request, tiny_loop.summary())


@pytest.mark.slow
def test_no_fault_in_the_digits_pipeline_leaves_what_the_next_run_does_not_mend(
    zygote: Zygote, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    assert zygote.run(*DIGITS[0], "--workspace", tmp_path / "warm").code == 0
    loop = Loop(zygote, tmp_path, DIGITS)
    loop.record()
    most = int(os.environ.get("TCOMPRESS_TEST_FAULTS", 250))  # 0: all, for hours
    try:
        for place, (number, fault) in enumerate(loop.points(most)):
            loop.survive(number, fault)
            if place % 100 == 0:
                loop.finish(number)
    finally:  # hours may have gone into it
        _shown(request, loop.summary())
