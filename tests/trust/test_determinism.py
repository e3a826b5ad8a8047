"""Same machine, same libraries, same seed: the same artifacts, whatever else is different."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification

from tcompress.artifact import Manifest
from tcompress.workspace import Workspace

from .processes import Zygote

COMMANDS = (
    ("score", "--criterion", "curvature", "--criterion", "hies"),
    ("prune", "--heads", "0.3", "--neurons", "0.3"),
    ("finetune", "--epochs", "1"),
    ("quantize",),
    ("export",),
)
OTHER_FORMATS = (("export", "--format", "torchscript"), ("export", "--format", "program"))
# Sums are split between threads, and floating-point sums depend on their order.
DEPENDS_ON_THREADS = {"prune", "finetune"}
# What is fixed when Python starts, and what is not.
STARTS: tuple[dict[str, str], ...] = (
    {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
    {"PYTHONHASHSEED": "4711", "LC_ALL": "POSIX"},
)
PLACES = ("one", "another, with blanks", "üñí 🎉")


@pytest.fixture(scope="module")
def zygotes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Zygote]]:
    first, second = (
        Zygote(tmp_path_factory.mktemp(f"zygote{number}"), env) for number, env in enumerate(STARTS)
    )
    with first, second:
        yield [first, second]


@pytest.fixture
def larger(model_directories: Callable, tmp_path: Path) -> Path:
    """A classifier that is worth more than one thread."""
    directory = tmp_path / "larger"
    shutil.copytree(model_directories("bert"), directory)
    sizes = {"hidden_size": 192, "intermediate_size": 768, "initializer_range": 0.05}
    document = (
        json.loads((directory / "config.json").read_text()) | sizes | {"num_hidden_layers": 4}
    )
    (directory / "config.json").write_text(json.dumps(document))
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig.from_pretrained(directory))
    save_file(model.state_dict(), directory / "model.safetensors")
    return directory


Make = Callable[..., dict[str, str]]


@pytest.fixture
def made(model_directories: Callable, reviews_file: Path) -> Make:
    """Make everything in a workspace; returns the digests of the artifacts and of the scores."""
    source = (model_directories("bert"), "--data", reviews_file)

    def make(
        zygote: Zygote,
        workspace: Path,
        umask: int,
        env: dict[str, str],
        commands: tuple[tuple[str, ...], ...] = COMMANDS,
    ) -> dict[str, str]:
        for words in (("init", *source), *commands):
            ended = zygote.run(*words, "--workspace", workspace, umask=umask, env=env)
            assert ended.code == 0, ended.stderr
        artifacts = Workspace.open(workspace).artifacts()
        assert len(artifacts) == len(commands) - 1
        names = {a.manifest.digest: str(a.directory.relative_to(workspace)) for a in artifacts}
        scores = (workspace / "scores.json").read_text().partition('"model"')[0]
        return {name: digest for digest, name in names.items()} | {"scores": scores}

    return make


def test_two_of_two_are_the_same(zygotes: list[Zygote], made: Make, tmp_path: Path) -> None:
    plain, odd = zygotes
    one = made(plain, tmp_path / PLACES[0], 0o022, {})
    other = made(odd, tmp_path / PLACES[2], 0o077, {"TZ": "Asia/Kathmandu"})
    assert one == other


@pytest.mark.slow
def test_ten_of_ten_are_the_same(zygotes: list[Zygote], made: Make, tmp_path: Path) -> None:
    draw = random.Random(0)
    found = [
        made(
            draw.choice(zygotes),
            tmp_path / f"{draw.choice(PLACES)} {number}",
            draw.choice((0o022, 0o077, 0o002)),
            {"TZ": draw.choice(("UTC", "Asia/Kathmandu"))},
            (*COMMANDS, *OTHER_FORMATS),
        )
        for number in range(10)
    ]
    assert all(digests == found[0] for digests in found)


@pytest.mark.slow
def test_only_these_stages_depend_on_the_number_of_threads(
    larger: Path, reviews_file: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    workspace = tmp_path / "workspace"
    outputs = {
        "prune": ("prune", "--heads", "0.3", "--neurons", "0.3"),
        "finetune": ("finetune", "--epochs", "1"),
        "quantize": ("quantize",),
        "export/onnx": ("export",),
        "export/torchscript": ("export", "--format", "torchscript"),
    }
    folders = [tmp_path / f"{count} threads" for count in (1, 2)]
    for folder in folders:
        folder.mkdir()
    first, second = (Zygote(folder, {"OMP_NUM_THREADS": folder.name[0]}) for folder in folders)
    same = {}
    with first, second:
        place = ("--workspace", workspace)
        assert first.run("init", larger, "--data", reviews_file, *place).code == 0
        for name, words in outputs.items():
            other = tmp_path / "other" / name
            # of two, so that the second reads what the first read
            for zygote, output in ((second, other), (first, workspace / "artifacts" / name)):
                ended = zygote.run(*words, *place, "--output", output)
                assert ended.code == 0, ended.stderr
            digests = [Manifest.read(path).digest for path in (other, output)]
            same[name] = digests[0] == digests[1]
    request.config.get_terminal_writer().line(f"same with one and two threads: {same}")
    assert {name for name, equal in same.items() if not equal} <= DEPENDS_ON_THREADS
