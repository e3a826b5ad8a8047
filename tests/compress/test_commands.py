import json
import shutil
from pathlib import Path

import pytest

import tcompress as library
from tcompress.artifact import Manifest


def test_the_stages_chain_without_arguments(text_workspace: Path, tcompress) -> None:
    for words in (["score"], ["prune", "--heads", "0.3"], ["finetune"], ["quantize"]):
        result = tcompress(*words, "--workspace", text_workspace)
        assert result.exit_code == 0, result.output
    result = tcompress("inspect", text_workspace / "artifacts/quantize", "--json")
    document = json.loads(result.stdout)
    assert document["verified"] is True
    assert sum(document["plan"]["heads"]) == 8  # 12 - round(0.3 * 12)
    assert document["plan"]["precision"][0] == {"attention": "int8", "feed_forward": "int8"}
    assert document["parent"]["path"] == str((text_workspace / "artifacts/finetune").resolve())
    assert sum(library.load(text_workspace / "artifacts/finetune").anatomy.head_counts) == 8


def test_an_unchanged_stage_is_not_done_again(text_workspace: Path, tcompress) -> None:
    words = ("prune", "--heads", "0.3", "--workspace", text_workspace)
    tcompress(*words)
    manifest = (text_workspace / "artifacts/prune/manifest.json").read_bytes()
    result = tcompress(*words)
    assert result.exit_code == 0
    assert "is up to date" in result.stderr
    assert (text_workspace / "artifacts/prune/manifest.json").read_bytes() == manifest


def test_another_result_is_replaced_only_by_force(text_workspace: Path, tcompress) -> None:
    tcompress("prune", "--heads", "0.3", "--workspace", text_workspace)
    again = ("prune", "--heads", "0.5", "--workspace", text_workspace)
    refused = tcompress(*again)
    assert refused.exit_code == 2
    assert "exists already; pass --force" in refused.stderr
    assert tcompress(*again, "--force").exit_code == 0
    plan = library.load(text_workspace / "artifacts/prune").plan
    assert sum(plan.head_counts) == 6


def test_pruning_twice_starts_from_the_unpruned_model_both_times(
    text_workspace: Path, tcompress
) -> None:
    for words in (
        ["prune", "--heads", "0.3"],
        ["finetune"],
        ["prune", "--heads", "0.3", "--force"],
    ):
        assert tcompress(*words, "--workspace", text_workspace).exit_code == 0
    assert sum(library.load(text_workspace / "artifacts/prune").plan.head_counts) == 8


def test_repeating_a_stage_does_not_undo_what_was_built_on_it(
    text_workspace: Path, tcompress
) -> None:
    def stage(*words: str) -> None:
        result = tcompress(*words, "--force", "--workspace", text_workspace)
        assert result.exit_code == 0, result.output

    prune = ("prune", "--criterion", "magnitude", "--heads")
    for words in ((*prune, "0.3"), ("quantize",), (*prune, "0.5"), (*prune, "0.3"), ("export",)):
        stage(*words)
    manifest = Manifest.read(text_workspace / "artifacts/export/onnx")
    assert manifest.precision == "int8"
    assert manifest.parent.path.endswith("quantize")


def test_finetuning_before_and_after_pruning_keeps_both(text_workspace: Path, tcompress) -> None:
    for words in (["finetune"], ["prune", "--heads", "0.3"], ["finetune"], ["quantize"]):
        result = tcompress(*words, "--workspace", text_workspace)
        assert result.exit_code == 0, result.output
    parents = {
        path.name: Path(Manifest.read(path).parent.path).name
        for path in (text_workspace / "artifacts").iterdir()
    }
    assert parents["prune"] == "finetune"
    assert parents["finetune-again"] == "prune"
    assert parents["quantize"] == "finetune-again"


def test_another_configuration_is_another_model(
    tcompress, model_directories, reviews_file: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_directories("bert"), model)
    words = ("quantize", "--model", model, "--output", tmp_path / "q")
    assert tcompress(*words).exit_code == 0
    config = model / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"relu"'))
    again = tcompress(*words)
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_score_prints_one_json_document(text_workspace: Path, tcompress) -> None:
    result = tcompress("score", "--json", "--quiet", "--workspace", text_workspace)
    document = json.loads(result.stdout)
    assert document["schema_version"] == 1
    assert [len(layer) for layer in document["heads"]] == [4, 4, 4]
    assert document == json.loads((text_workspace / "scores.json").read_text())


def test_labels_may_be_missing_for_scoring(text_workspace: Path, tcompress, tmp_path) -> None:
    unlabelled = tmp_path / "plain.csv"
    unlabelled.write_text("text\nthe film was good\nthe plot was dull\n")
    result = tcompress("score", "--data", unlabelled, "--json", "--workspace", text_workspace)
    assert json.loads(result.stdout)["calibration"]["labels"] == "the model's own predictions"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        pytest.param(["prune", "--heads", "1.5"], 2, "1.5 is not in the range", id="ratio"),
        pytest.param(["prune", "--heads", "1"], 2, "--drop-sublayers", id="nothing-left"),
        pytest.param(["score", "--model", "nowhere"], 5, "nowhere: no such model", id="no-model"),
        pytest.param(["score", "--data", "no.csv"], 5, "no.csv: no such data file", id="no-data"),
        pytest.param(
            ["score", "--text-column", "body", "--data", "{data}"],
            5,
            "no column 'body'; it has: text, label",
            id="column",
        ),
        pytest.param(
            ["finetune", "--precision", "fp16", "--device", "cpu"], 2, "fp16 trains", id="fp16"
        ),
        pytest.param(["finetune", "--device", "cuda"], 6, "no GPU here", id="no-gpu"),
    ],
)
def test_bad_requests_end_in_one_line_and_leave_nothing(
    text_workspace: Path,
    reviews_file: Path,
    tcompress,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = [word.format(data=reviews_file) for word in words]
    result = tcompress(*words, "--workspace", text_workspace)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert [path.name for path in text_workspace.iterdir()] == ["tcompress.toml"]


def test_a_label_that_the_model_does_not_know_is_named(
    text_workspace: Path, tcompress, tmp_path: Path
) -> None:
    data = tmp_path / "labels.csv"
    data.write_text("text,label\nthe film was good,superb\n")
    result = tcompress("score", "--data", data, "--workspace", text_workspace)
    assert result.exit_code == 5
    assert "label 'superb' is not known to the model, whose labels are: bad, good" in result.stderr


def test_texts_longer_than_the_model_are_cut_and_counted(
    text_workspace: Path, tcompress, tmp_path: Path
) -> None:
    data = tmp_path / "long.csv"
    data.write_text(f"text,label\n{'film ' * 60},good\nthe film,bad\n")
    result = tcompress("score", "--data", data, "--workspace", text_workspace)
    assert result.exit_code == 0
    assert "1 of 2 examples are longer than the model's 40 positions" in result.stderr


def test_outside_a_workspace_both_ways_out_are_named(tmp_path: Path, tcompress) -> None:
    result = tcompress("score", "--workspace", tmp_path)
    assert result.exit_code == 2
    assert "tcompress init MODEL --data FILE" in result.stderr
    assert "--model" in result.stderr


def test_a_stage_works_without_a_workspace(
    model_directories, tcompress, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = tcompress(
        *("prune", "--model", model_directories("bert"), "--output", "cut"),
        *("--heads", "0.5", "--criterion", "magnitude"),
    )
    assert result.exit_code == 0, result.output
    assert sum(library.load(tmp_path / "cut").plan.head_counts) == 6
