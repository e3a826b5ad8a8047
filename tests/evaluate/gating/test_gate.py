import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from tcompress.artifact import Artifact
from tcompress.cli import cli
from tcompress.encoder import WEIGHTS_FILE, open_encoder
from tcompress.errors import ModelError
from tcompress.evaluate.gating.gate import check_labels, judge_sides
from tcompress.evaluate.gating.sides import Sides
from tcompress.evaluate.gating.verdict import GateReport
from tcompress.evaluate.noninferiority import Verdict
from tcompress.transformer import ARCHITECTURE_FILE
from tcompress.workspace import Workspace

CLASSES = 3
LABELS = ("cat", "dog", "owl")
WEIGHT = np.random.default_rng(1).standard_normal((4, CLASSES))


def gate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["gate", "--quiet", *map(str, arguments)])


def logits(classes: np.ndarray) -> np.ndarray:
    return np.eye(CLASSES, dtype=np.float32)[classes]


def gate_accuracy(
    baseline: np.ndarray, candidate: np.ndarray, truth: np.ndarray, max_drop: float
) -> GateReport:
    return judge_sides(Sides(baseline, candidate, truth, LABELS), max_drop)


def answers(n: int) -> np.ndarray:
    return np.arange(n) % CLASSES


@pytest.fixture
def labelled(source: Path, tmp_path: Path) -> Callable[[int], Path]:
    """Write examples that the source answers right, all of them."""

    def write(count: int) -> Path:
        inputs = np.random.default_rng(3).standard_normal((count, 6, 4), dtype=np.float32)
        encoder = open_encoder(source)
        mask = np.ones(inputs.shape[:2], dtype=np.int64)
        found = encoder.predict({"inputs": inputs, "attention_mask": mask}).argmax(1)
        path = tmp_path / f"{count}.npz"
        np.savez(path, inputs=inputs, labels=np.asarray(encoder.labels)[found])
        return path

    return write


@pytest.fixture
def damaged(source: Path, tmp_path: Path) -> Path:
    """The source with the matrices of its first layer zeroed."""
    target = tmp_path / "damaged"
    target.mkdir()
    state = load_file(source / WEIGHTS_FILE)
    for name, value in state.items():
        if name.startswith("encoder.layers.0.") and "norm" not in name:
            value.zero_()
    save_file(state, target / WEIGHTS_FILE)
    (target / ARCHITECTURE_FILE).write_bytes((source / ARCHITECTURE_FILE).read_bytes())
    return target


def test_equal_model_passes_with_enough_examples(
    workspace: Workspace,
    source: Path,
    labelled: Callable[[int], Path],
    write_encoder: Callable[..., Artifact],
):
    artifacts = workspace.artifacts_directory
    write_encoder(source, artifacts / "prune", "prune")
    found = gate(
        "--workspace", workspace.directory, "--max-drop", "0.02", "--data", labelled(400), "--json"
    )
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert (report["schema_version"], report["verdict"]) == (1, "pass")
    assert report["candidate"] == str(artifacts / "prune")
    assert report["baseline"] == str(source)
    drop = report["checks"][0]
    assert drop == {
        "name": "accuracy_drop",
        "verdict": "pass",
        "estimate": 0.0,
        "bound": pytest.approx(1 - 0.05 ** (1 / 400)),
        "limit": 0.02,
        "n": 400,
        "unit": "fraction",
        "words": "accuracy stayed the same, a drop of at most 0.75 (95 %), limit 2.00, n = 400",
    }
    assert report["counts"] == {"both_right": 400, "lost": 0, "gained": 0, "both_wrong": 0}
    assert report["notes"] == []


def test_zeroed_layer_is_a_regression(source: Path, damaged: Path, labelled: Callable[[int], Path]):
    models = ("--baseline", source, "--candidate", damaged)
    found = gate("--max-drop", "0.02", "--data", labelled(400), *models)
    assert found.exit_code == 3, found.output
    headline = found.stdout.splitlines()[0]
    assert headline.startswith("REGRESSION: ")
    assert "accuracy dropped " in headline
    assert "n = 400" in headline
    assert "the candidate was not made from the model" in found.stdout


def test_twenty_examples_are_inconclusive(source: Path, labelled: Callable[[int], Path]):
    models = ("--baseline", source, "--candidate", source)
    found = gate("--max-drop", "0.01", "--data", labelled(20), *models)
    assert found.exit_code == 4, found.output
    assert found.stdout.startswith("INCONCLUSIVE: accuracy stayed the same, ")
    assert "20 examples can prove a limit of 13.91 points" in found.stdout
    assert "about 299 examples" in found.stdout
    assert "20 examples can never prove a limit of 1.00 points" in found.stderr


def test_newest_export_is_judged_and_a_newer_encoder_is_mentioned(
    workspace: Workspace,
    source: Path,
    write_encoder: Callable[..., Artifact],
    write_onnx: Callable[..., Artifact],
):
    artifacts = workspace.artifacts_directory
    write_onnx(source, artifacts / "export" / "onnx", WEIGHT)
    write_encoder(source, artifacts / "quantize", "quantize")
    found = gate("--workspace", workspace.directory, "--max-drop", "0.02", "--json")
    assert json.loads(found.stdout)["candidate"] == str(artifacts / "export" / "onnx")
    assert f"{artifacts / 'quantize'} is newer than that" in found.stderr


def test_candidate_with_broken_weights_is_refused(
    source: Path, damaged: Path, labelled: Callable[[int], Path]
):
    state = load_file(damaged / WEIGHTS_FILE)
    state["classifier.bias"][0] = float("nan")
    save_file(state, damaged / WEIGHTS_FILE)
    models = ("--baseline", source, "--candidate", damaged)
    found = gate("--max-drop", "0.02", "--data", labelled(20), *models)
    assert found.exit_code == 5, found.output
    assert "'classifier.bias' holds values that are not finite" in found.stderr


def test_changed_artifact_is_refused(
    source: Path,
    tmp_path: Path,
    labelled: Callable[[int], Path],
    write_encoder: Callable[..., Artifact],
):
    artifact = write_encoder(source, tmp_path / "prune", "prune")
    with (artifact.directory / WEIGHTS_FILE).open("ab") as stream:
        stream.write(b"\0")
    models = ("--baseline", source, "--candidate", artifact.directory)
    found = gate("--max-drop", "0.02", "--data", labelled(20), *models)
    assert found.exit_code == 5, found.output
    assert "differs from the manifest" in found.stderr


def test_data_without_labels_is_refused(source: Path, tmp_path: Path):
    np.savez(tmp_path / "bare.npz", inputs=np.zeros((5, 6, 4), dtype=np.float32))
    models = ("--baseline", source, "--candidate", source)
    found = gate("--max-drop", "0.02", "--data", tmp_path / "bare.npz", *models)
    assert found.exit_code == 5, found.output
    assert "no labels in it" in found.stderr


def test_workspace_without_artifacts_has_nothing_to_judge(workspace: Workspace):
    found = gate("--workspace", workspace.directory, "--max-drop", "0.02")
    assert found.exit_code == 2, found.output
    assert "tcompress export" in found.stderr


@pytest.mark.parametrize("max_drop", ["0", "1", "-0.1"])
def test_limit_out_of_range_is_wrong_usage(max_drop: str):
    found = gate("--max-drop", max_drop)
    assert found.exit_code == 2
    assert "0<x<1" in found.stderr


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_not_finite_never_pass(value: float):
    truth = answers(2000)
    candidate = logits(truth)
    candidate[7, 1] = value
    report = gate_accuracy(logits(truth), candidate, truth, max_drop=0.05)
    assert {check.name: check.verdict.value for check in report.checks} == {
        "accuracy_drop": "regression",
        "finite": "regression",
        "degenerate": "pass",
        "majority": "pass",
        "permuted": "pass",
    }
    assert (report.verdict, report.exit_code) == (Verdict.REGRESSION, 3)
    assert "not finite" in report.headline()


def test_one_answer_to_everything_never_passes():
    # 985 of 1000 examples are of one class: always naming it costs 1.5 points only.
    truth = (np.arange(1000) < 15).astype(np.int64)
    report = gate_accuracy(logits(truth), logits(np.zeros_like(truth)), truth, max_drop=0.05)
    failed = [check.name for check in report.checks if check.verdict is not Verdict.PASS]
    assert failed == ["degenerate"]
    assert report.exit_code == 3
    assert "one and the same answer" in report.headline()


def test_one_answer_to_everything_may_be_right():
    truth = np.zeros(1000, dtype=np.int64)
    baseline = truth.copy()
    baseline[:30] = 1
    assert gate_accuracy(logits(baseline), logits(truth), truth, max_drop=0.01).exit_code == 0


def test_headline_tells_drop_bound_limit_and_size():
    truth = answers(2000)
    candidate = truth.copy()
    candidate[:10] = (candidate[:10] + 1) % CLASSES
    line = gate_accuracy(logits(truth), logits(candidate), truth, max_drop=0.01).headline()
    assert line == (
        "PASS: accuracy dropped 0.50 points, a drop of at most 0.85 (95 %), limit 1.00, n = 2,000"
    )


def test_broken_baseline_is_refused():
    truth = answers(10)
    with pytest.raises(ModelError, match="the baseline's logits are not finite"):
        gate_accuracy(np.full((10, CLASSES), np.nan), logits(truth), truth, max_drop=0.1)


def test_changed_order_of_labels_is_refused():
    check_labels(("no", "yes"), ("no", "yes"))
    with pytest.raises(ModelError, match=r"\(yes, no\), the baseline's are \(no, yes\)"):
        check_labels(("no", "yes"), ("yes", "no"))


def test_examples_that_were_fitted_on_cannot_judge(
    workspace: Workspace, source: Path, tmp_path: Path, write_encoder: Callable[..., Artifact]
):
    write_encoder(source, workspace.artifacts_directory / "prune", "prune")
    train = workspace.splits().train
    np.savez(tmp_path / "used.npz", inputs=train.inputs, labels=np.asarray(train.labels))
    found = gate(
        *("--workspace", workspace.directory, "--max-drop", "0.02"),
        *("--data", tmp_path / "used.npz"),
    )
    assert found.exit_code == 5
    assert "examples also stand in the training or validation split" in found.stderr
