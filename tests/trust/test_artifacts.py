"""What is written is whole, is nobody else's, and shows every change."""

from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest

from tcompress.artifact import MANIFEST_FILE, Artifact, Manifest, Parent
from tcompress.encoder import open_encoder
from tcompress.export.exporting import write_export
from tcompress.locking import lock_within, locked
from tcompress.plan import Precision
from tcompress.runtime import ONNX_KIND, OPENVINO_KIND, PROGRAM_KIND, TORCHSCRIPT_KIND
from tcompress.writing import writing_artifact

from .processes import Zygote

KINDS = ("encoder", ONNX_KIND, TORCHSCRIPT_KIND, PROGRAM_KIND, OPENVINO_KIND)
PRUNE = ("prune", "--criterion", "magnitude", "--heads")
SOMEWHERE = Parent("/somewhere", "0" * 64)


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("zygote")) as zygote:
        yield zygote


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("other")) as zygote:
        yield zygote


class Holding:
    """Another process that is at work in a workspace."""

    def __init__(self, workspace: Path) -> None:
        context = get_context("fork")
        ready, self._done = context.Event(), context.Event()
        self.process = context.Process(target=self._hold, args=(workspace, ready))
        self.process.start()
        assert ready.wait(20)

    def _hold(self, workspace: Path, ready: Event) -> None:
        with locked(lock_within(workspace)):
            ready.set()
            self._done.wait(60)

    def end(self) -> None:
        self._done.set()
        self.process.join()


@pytest.fixture
def holding(text_workspace: Path) -> Iterator[Holding]:
    holding = Holding(text_workspace)
    yield holding
    holding.process.kill()
    holding.process.join()


@pytest.fixture(params=KINDS)
def artifact(request: pytest.FixtureRequest, tmp_path: Path, model_directories: Callable) -> Path:
    """An artifact of every kind."""
    if request.param == OPENVINO_KIND:
        pytest.importorskip("openvino")
    encoder = open_encoder(model_directories("bert"))
    plan = encoder.plan.with_precision(Precision.FP32)
    with writing_artifact(tmp_path / "artifact") as draft:
        if request.param == "encoder":
            encoder.save(draft.directory)
            details = {}
        else:
            details = write_export(encoder, request.param, draft.directory)
        draft.manifest = Manifest(
            request.param, "export", SOMEWHERE, SOMEWHERE, plan, {}, details=details
        )
    return tmp_path / "artifact"


def test_a_flipped_byte_in_any_file_is_named_and_refused(
    artifact: Path, reviews_file: Path, tcompress: Callable
) -> None:
    assert tcompress("inspect", artifact).exit_code == 0
    draw = np.random.default_rng(0)
    names = [*Manifest.read(artifact).files, MANIFEST_FILE]
    for path in (artifact / name for name in names):
        whole = path.read_bytes()
        spoiled = bytearray(whole)
        spoiled[draw.integers(len(whole))] ^= 1
        path.write_bytes(spoiled)
        result = tcompress("inspect", artifact)
        assert result.exit_code == 5, (path, result.output)
        [line] = result.stderr.splitlines()
        assert line.startswith(f"error: {artifact}")
        assert path.name in line
        assert path.name == MANIFEST_FILE or line.count("differs from the manifest") == 1
        words = ("evaluate", artifact, "--model", artifact, "--data", reviews_file)
        result = tcompress(*words, "--output", artifact.parent / "report")
        assert result.exit_code == 5, (path, result.output)
        path.write_bytes(whole)
    assert tcompress("inspect", artifact).exit_code == 0


def test_a_second_command_waits_and_says_for_whom(
    zygote: Zygote, text_workspace: Path, holding: Holding
) -> None:
    running = zygote.start(*PRUNE, "0.3", "--workspace", text_workspace)
    running.said(f"waiting for process {holding.process.pid}, which is at work in {text_workspace}")
    assert not (text_workspace / "artifacts").exists()
    holding.end()
    ended = running.wait()
    assert ended.code == 0, ended.stderr
    assert ended.stderr.count("waiting") == 1
    Artifact.open(text_workspace / "artifacts/prune")


def test_a_holder_that_is_killed_holds_nothing_up(
    zygote: Zygote, text_workspace: Path, holding: Holding
) -> None:
    running = zygote.start(*PRUNE, "0.3", "--workspace", text_workspace)
    running.said("waiting for process")
    holding.process.kill()
    assert running.wait().code == 0
    assert not list(text_workspace.rglob(".tcompress-*"))


@pytest.mark.parametrize("force", [(), ("--force",)], ids=["kept", "replaced"])
def test_two_processes_on_one_output_do_not_interleave(
    zygote: Zygote,
    other: Zygote,
    tmp_path: Path,
    model_directories: Callable,
    force: tuple[str, ...],
) -> None:
    output = tmp_path / "out"
    words = ("--model", model_directories("bert"), "--output", output, *force)
    running = [z.start(*PRUNE, heads, *words) for z, heads in ((zygote, "0.3"), (other, "0.6"))]
    ended = [run.wait() for run in running]
    assert sorted(run.code for run in ended) == ([0, 0] if force else [0, 2]), ended
    if not force:
        [lost] = [run for run in ended if run.code == 2]
        assert "out: exists already; pass --force" in lost.stderr.splitlines()[-1]
    Artifact.open(output)
    assert not list(tmp_path.glob(".tcompress-*"))
