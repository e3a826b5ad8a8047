import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import tcompress as library
from tcompress.artifact import Manifest
from tcompress.compress.cost import Serving
from tcompress.encoder import Encoder
from tcompress.machine import CACHE_VARIABLE
from tcompress.plan import CompressionPlan


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
        pytest.param(["prune"], 2, "say what to remove: --heads RATIO", id="no-goal"),
        pytest.param(["prune", "--macs", "1"], 2, "--macs 1 leaves nothing", id="no-macs"),
        pytest.param(
            ["prune", "--macs", "0.5", "--neurons", "0.5"],
            2,
            "--neurons and --macs contradict each other",
            id="two-goals",
        ),
        pytest.param(
            ["prune", "--speedup", "2", "--max-drop", "0.1"],
            2,
            "--speedup and --max-drop contradict each other",
            id="goals",
        ),
        pytest.param(
            ["prune", "--macs", "0.5", "--scope", "layer"], 2, "--scope layer goes", id="scope"
        ),
        pytest.param(
            ["prune", "--macs", "0.5", "--criterion", "hies"],
            2,
            "hies scores heads only",
            id="hies",
        ),
        pytest.param(
            ["prune", "--macs", "0.5", "--batch", "1"],
            2,
            "--batch goes with --speedup and --latency-ms",
            id="batch",
        ),
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


def test_prune_json_carries_macs_latency_selection_and_reconstruction(
    text_workspace: Path, tcompress
) -> None:
    words = ("prune", "--macs", "0.5", "--json", "--quiet", "--workspace", text_workspace)
    result = tcompress(*words)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    details = document["details"]
    assert details["macs"]["after"] <= 0.5 * details["macs"]["before"]
    assert details["latency"] is None
    assert details["selection"]["labels"] == "data"
    assert 0 <= details["selection"]["accuracy"] <= 1
    assert {refit["sublayer"] for refit in details["reconstruction"]} == {
        "attention",
        "feed-forward",
    }


class SyntheticMeter:
    """An engine whose latencies grow with the plan's units."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving

    def latencies_ms(self, plans: Sequence[CompressionPlan], budget_s: float) -> list[float]:
        return [
            0.2 + 0.1 * sum(plan.head_counts) + 0.01 * sum(plan.neuron_counts) for plan in plans
        ]


def test_pruning_by_latency_is_on_record_and_not_done_again(
    text_workspace: Path, tcompress, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def open_meter(_encoder: Encoder, serving: Serving) -> nullcontext[SyntheticMeter]:
        opened.append(serving)
        return nullcontext(SyntheticMeter(serving))

    monkeypatch.setattr("tcompress.cli.open_meter", open_meter)
    monkeypatch.setenv(CACHE_VARIABLE, str(text_workspace / "cache"))
    words = (
        *("prune", "--speedup", "1.7", "--engine", "pytorch", "--batch", "2", "--tokens", "16"),
        *("--workspace", text_workspace),
    )
    result = tcompress(*words)
    assert result.exit_code == 0, result.output
    assert "speed-up in pytorch fp32 at (2, 16): asked 1.70x, predicted 1.7" in result.stdout
    serving = opened[-1]
    assert (serving.engine, serving.batch, serving.tokens) == ("pytorch", 2, 16)
    again = tcompress(*words, "--json")
    assert "is up to date" in again.stderr
    latency = json.loads(again.stdout)["details"]["latency"]
    assert latency["speedup"] == pytest.approx(1.7, rel=0.03)
    assert latency["speedup"] == pytest.approx(latency["before_ms"] / latency["after_ms"])
    assert latency["serving"]["precision"] == "fp32"
    assert len(opened) == 2
    shutil.rmtree(text_workspace / "artifacts")
    refused = tcompress("prune", "--speedup", "90", "--workspace", text_workspace)
    assert refused.exit_code == 2
    assert "--tokens 128: this encoder reads at most 40 tokens" in refused.stderr
    words = ("prune", "--speedup", "90", "--tokens", "16", "--workspace", text_workspace)
    refused = tcompress(*words)
    assert refused.exit_code == 2
    assert "--speedup 90 leaves nothing: the smallest plan costs 0.2" in refused.stderr
    assert not list(text_workspace.glob("artifacts/*"))


def test_the_smallest_model_within_a_drop_is_found_and_told(
    text_workspace: Path, tcompress
) -> None:
    result = tcompress("prune", "--max-drop", "0.2", "--json", "--workspace", text_workspace)
    assert result.exit_code == 0, result.output
    assert "prune: probe 1, 50% of the MACs removed" in result.stderr
    judged = json.loads(result.stdout)["details"]["selection"]
    assert judged["accuracy_before"] - judged["accuracy"] <= 0.2


@pytest.mark.parametrize("goal", [("--heads", "0.3"), ("--macs", "0.4")])
def test_three_labelled_rows_are_enough_to_prune_by(
    text_workspace: Path, tcompress, tmp_path: Path, goal: tuple[str, str]
) -> None:
    data = tmp_path / "three.csv"
    data.write_text("text,label\nvery very good,good\na dull dull plot,bad\nit was bad,bad\n")
    result = tcompress("prune", *goal, "--data", data, "--workspace", text_workspace)
    assert result.exit_code == 0, result.output
    pruned = library.load(text_workspace / "artifacts/prune")
    assert np.isfinite(pruned.predict(pruned.preprocessor.random_batch(4, 8))).all()


def test_without_examples_pruning_says_that_it_does_not_reconstruct(
    model_directories, tcompress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("prune", "--model", model_directories("bert"), "--output", "cut", "--heads", "0.5")
    result = tcompress(*words, "--criterion", "magnitude")
    assert result.exit_code == 0
    assert "no examples to reconstruct on; name some with --data" in result.stderr
    refused = tcompress(*words, "--force")
    assert refused.exit_code == 2
    assert "name the examples with --data" in refused.stderr


def test_a_drop_is_confirmed_on_a_workspaces_validation_split_only(
    model_directories, reviews_file: Path, tcompress, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = tcompress(
        *("prune", "--model", model_directories("bert"), "--output", "cut"),
        *("--data", reviews_file, "--max-drop", "0.1"),
    )
    assert result.exit_code == 2
    assert "--max-drop is confirmed on a workspace's validation split" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_not_finite_is_refused_before_anything_is_written(
    model_directories, reviews_file: Path, tcompress, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_directories("bert"), model)
    state = load_file(model / "model.safetensors")
    state["classifier.weight"][0, 0] = float("nan")
    save_file(state, model / "model.safetensors")
    result = tcompress(
        *("prune", "--model", model, "--output", tmp_path / "cut"),
        *("--data", reviews_file, "--heads", "0.3"),
    )
    assert result.exit_code == 5
    assert "'classifier.weight' holds values that are not finite" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


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
