"""What is done again after a change, and what a killed stage continues from."""

import json
import shutil
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import tomli_w
from click.testing import Result

from tcompress import stage_key
from tcompress.artifact import MANIFEST_FILE, Manifest
from tcompress.compress.surgeon import Surgeon
from tcompress.console import Console
from tcompress.encoder import Encoder

Command = Callable[..., Result]


@pytest.fixture
def workspace(text_workspace: Path, reviews_file: Path, tcompress: Command) -> Path:
    """A workspace that holds its model and its data, with three artifacts."""
    config = text_workspace / "tcompress.toml"
    document = tomllib.loads(config.read_text())
    shutil.copytree(document["model"], text_workspace / "model")
    shutil.copy(reviews_file, text_workspace / "data.csv")
    document["data"]["file"], document["model"] = "data.csv", "model"
    config.write_text(tomli_w.dumps(document))
    _stages(tcompress, text_workspace)
    return text_workspace


def _stages(tcompress: Command, workspace: Path) -> dict[str, str]:
    """Run the stages; returns what each said of being up to date, or not."""
    said = {}
    for words in (
        ["score", "--criterion", "magnitude", "--criterion", "curvature"],
        ["prune", "--heads", "0.3", "--criterion", "curvature", "--force"],
        ["quantize", "--model", workspace / "artifacts/prune", "--force"],
        ["export", "--model", workspace / "artifacts/quantize", "--force"],
    ):
        result = tcompress(*words, "--workspace", workspace)
        assert result.exit_code == 0, result.output
        lines = [line for line in result.stderr.splitlines() if "up to date" in line]
        said[words[0]] = lines[0] if lines else "new"
    return said


def test_a_changed_model_redoes_all_and_each_stage_says_why(
    workspace: Path, tcompress: Command
) -> None:
    path = workspace / "model" / "config.json"
    path.write_text(path.read_text().replace('"layer_norm_eps": 1e-12', '"layer_norm_eps": 1e-5'))
    inspected = tcompress("inspect", workspace / "artifacts/prune", "--json")
    assert json.loads(inspected.stdout)["stale"] == ["the model changed"]
    said = _stages(tcompress, workspace)
    assert said["score"] == "score: not up to date: model changed"
    assert said["prune"] == "prune: not up to date: the model changed"
    assert said["quantize"] == "quantize: not up to date: the model changed"
    assert said["export"] == "export: not up to date: the model changed"


def test_a_model_that_changes_in_the_middle_is_not_taken_for_what_was_read(
    workspace: Path, tcompress: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, output = workspace / "model" / "config.json", workspace / "artifacts/prune"
    before, save = Manifest.read(output).digest, Encoder.save

    def save_and_change(encoder: Encoder, directory: Path) -> None:
        save(encoder, directory)
        config.write_text(config.read_text().replace("1e-12", "1e-05"))

    words = ("prune", "--heads", "0.5", "--criterion", "magnitude", "--force")
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "save", save_and_change)
        result = tcompress(*words, "--workspace", workspace)
    assert result.exit_code == 5
    assert "model: changed while prune worked on it; run it again" in result.stderr
    assert Manifest.read(output).digest == before
    assert tcompress(*words, "--workspace", workspace).exit_code == 0
    assert json.loads(tcompress("inspect", output, "--json").stdout)["stale"] == []


def test_changed_data_redoes_what_reads_it_and_no_more(workspace: Path, tcompress: Command) -> None:
    path = workspace / "data.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, "it was not very good,bad", "dull dull dull,bad"]) + "\n")
    said = _stages(tcompress, workspace)
    assert said["score"] == "score: not up to date: data changed"
    assert "validation changed" in said["prune"] or "data changed" in said["prune"]
    assert not said["prune"].endswith("is up to date")


def test_a_new_library_redoes_what_uses_it_and_no_more(
    workspace: Path, tcompress: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = stage_key.library_versions() | {"onnxruntime": "99.1"}
    monkeypatch.setattr(stage_key, "library_versions", lambda: versions)
    said = _stages(tcompress, workspace)
    before = Manifest.read(workspace / "artifacts/export/onnx").versions["onnxruntime"]
    assert said.pop("export") == f"export: not up to date: onnxruntime {before} -> 99.1"
    assert all(line.endswith("is up to date") for line in said.values())


def test_a_workspace_may_be_moved(
    workspace: Path, tcompress: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = workspace.rename(workspace.with_name("elsewhere"))
    said = _stages(tcompress, moved)
    assert all(line.endswith("is up to date") for line in said.values()), said
    parent = Manifest.read(moved / "artifacts/quantize").parent
    assert Path(parent.path) == moved / "artifacts/prune"
    result = tcompress("finetune", "--epochs", "1", "--workspace", moved)
    assert result.exit_code == 0, result.output  # it finds the teacher


def test_nothing_is_done_twice_even_where_a_manifest_is_from_before_keys_were_kept(
    workspace: Path, tcompress: Command
) -> None:
    path = workspace / "artifacts/prune" / MANIFEST_FILE
    document = json.loads(path.read_text())
    del document["key"], document["seal"]
    path.write_text(json.dumps(document))
    said = _stages(tcompress, workspace)
    assert all(line.endswith("is up to date") for line in said.values()), said


def _killed_in(phase: str, after: int) -> Callable[..., Iterator[object]]:
    def track(_: Console, items: Iterable[object], what: str, total: int = 0) -> Iterator[object]:
        for number, item in enumerate(items):
            if what == phase and number == after:
                raise KeyboardInterrupt
            yield item

    return track


@pytest.mark.parametrize("after", [1, 2])
def test_a_kill_in_reconstruction_costs_neither_the_survey_nor_the_layers_before(
    text_workspace: Path,
    tcompress: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    words = ("prune", "--heads", "0.3", "--neurons", "0.3", "--workspace", text_workspace)
    artifacts = text_workspace / "artifacts"
    assert tcompress(*words, "--output", tmp_path / "whole").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(Console, "track", _killed_in("reconstructing layers", after))
        assert tcompress(*words).exit_code == 130
    kinds = sorted(path.name.split(".")[-2].split("-")[0] for path in artifacts.iterdir())
    assert kinds == ["cut", "survey"]

    monkeypatch.setattr(Surgeon, "of", None)  # measured again, it would fail
    result = tcompress(*words)
    assert result.exit_code == 0, result.output
    assert f"reconstruction continues after layer {after - 1}" in result.stderr
    whole, resumed = (Manifest.read(path) for path in (tmp_path / "whole", artifacts / "prune"))
    assert whole.digest == resumed.digest
    assert whole.details == resumed.details
    assert [path.name for path in artifacts.iterdir()] == ["prune"]


def test_what_another_run_left_is_swept(
    text_workspace: Path, tcompress: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--neurons", "0.3", "--workspace", text_workspace)
    with monkeypatch.context() as patch:
        patch.setattr(Console, "track", _killed_in("reconstructing layers", 1))
        assert tcompress("prune", "--heads", "0.3", *words).exit_code == 130
    result = tcompress("prune", "--heads", "0.5", *words)
    assert "continues" not in result.stderr
    assert [path.name for path in (text_workspace / "artifacts").iterdir()] == ["prune"]
