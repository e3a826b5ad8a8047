import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tcompress.artifact import MANIFEST_FILE, Artifact, Manifest
from tcompress.cli import cli
from tcompress.encoder import open_encoder
from tcompress.errors import DataError
from tcompress.evaluate.accuracy import Predictions
from tcompress.evaluate.answers import AnswerBook, Question
from tcompress.evaluate.gating.command import GateGroup
from tcompress.evaluate.gating.independence import check_independent
from tcompress.evaluate.gating.policy import POLICY_FILE
from tcompress.workspace import Workspace


@pytest.fixture
def gated(workspace: Workspace, source: Path, write_encoder: Callable[..., Artifact]) -> Workspace:
    """A workspace with a candidate that answers as the source does, the answers of both kept."""
    made = write_encoder(source, workspace.artifacts_directory / "prune", "prune")
    examples, encoder = workspace.splits().test, open_encoder(source)
    mask = np.ones(examples.inputs.shape[:2], dtype=np.int64)
    logits = encoder.predict({"inputs": examples.inputs, "attention_mask": mask})
    book, answers = AnswerBook(workspace.answers_directory), Predictions(logits, encoder.labels, 0)
    for side in (source, made.directory):
        book.keep(Question.about(side, examples), examples, answers)
    return workspace


@pytest.fixture
def gate(gated: Workspace, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(gated.directory)
    return lambda *words: CliRunner().invoke(cli, ["gate", *map(str, words)])


def rewrite(artifact: Path, **changes: object) -> None:
    manifest = replace(Manifest.read(artifact), **changes)
    (artifact / MANIFEST_FILE).write_text(json.dumps(manifest.to_json()))


def test_limits_come_from_the_file_and_options_override_them(
    gate: Callable[..., Result], gated: Workspace
):
    policy = gated.directory / POLICY_FILE
    policy.write_text("max_drop = 0.2\n[size]\nmax_size_ratio = 2\n[evidence]\nmin_examples = 10\n")
    found = gate("--json")
    assert found.exit_code == 0, found.output
    assert f"the limits are those in {POLICY_FILE}" in found.stderr
    report = json.loads(found.stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert [checks[name]["limit"] for name in ("accuracy_drop", "size_ratio")] == [0.2, 2.0]
    assert checks["examples"]["verdict"] == "pass"
    assert (report["policy"]["max_drop"], report["policy"]["max_size_ratio"]) == (0.2, 2.0)
    broken = gate("--max-size-ratio", 0.5)
    assert broken.exit_code == 3
    assert broken.stdout.startswith("REGRESSION: the model file has ")
    policy.write_text("max_dorp = 0.2\n")
    assert "did you mean 'max_drop'?" in (refused := gate()).stderr
    assert refused.exit_code == 5


def test_an_inconclusive_verdict_can_be_let_through_and_is_told_all_the_same(
    gate: Callable[..., Result],
):
    assert gate("--max-drop", 0.01).exit_code == 4
    let_through = gate("--max-drop", 0.01, "--on-inconclusive", "warn")
    assert let_through.exit_code == 0
    assert let_through.stdout.startswith("INCONCLUSIVE: ")
    assert "it takes about 299 examples" in let_through.stdout
    assert gate("--max-drop", 0.2, "--min-examples", 1000).exit_code == 4
    broken = ("--max-size-bytes", 1, "--on-inconclusive", "warn")
    assert gate("--max-drop", 0.01, *broken).exit_code == 3


def test_an_encoder_beside_its_export_and_a_foreign_cpu_are_noted(
    gate: Callable[..., Result], gated: Workspace, write_onnx: Callable[..., Artifact]
):
    candidate = gated.artifacts_directory / "prune"
    assert json.loads(gate("--max-drop", 0.2, "--json").stdout)["notes"] == []
    write_onnx(candidate, gated.artifacts_directory / "export" / "onnx", np.zeros((4, 3)))
    rewrite(candidate, cpu_features={"of_old": True})
    found = gate("--max-drop", 0.2, "--candidate", candidate, "--json")
    export_note, cpu_note = sorted(json.loads(found.stdout)["notes"], reverse=True)
    assert export_note.startswith("this is the encoder in PyTorch; what was exported from it is ")
    assert export_note.endswith("artifacts/export/onnx")
    assert "written on a CPU of another kind (here: " in cpu_note
    assert "no of_old" in cpu_note


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(lambda whole, _: {"data": whole}, id="whole"),
        pytest.param(lambda _, drawn: {"max_examples": 5, "seed": 3, "data": drawn}, id="drawn"),
    ],
)
def test_examples_that_a_manifest_names_cannot_judge(
    gated: Workspace, recipe: Callable[[str, str], dict]
):
    candidate, examples = gated.artifacts_directory / "prune", gated.splits().test
    check_independent(examples, candidate)
    digests = examples.digest, examples.sample(5, 3).digest
    rewrite(candidate, recipe=recipe(*digests))
    with pytest.raises(DataError, match="prune was made on these very examples"):
        check_independent(examples, candidate)


def test_options_go_behind_the_subcommand(gate: Callable[..., Result]):
    found = gate("--max-drop", 0.01, "plan")
    assert found.exit_code == 2
    assert "--max-drop goes behind `gate plan`" in found.stderr
    assert gate("plna").exit_code == 2


def test_every_limit_on_the_answers_is_checked(gate: Callable[..., Result], gated: Workspace):
    limits = {
        "min_retained": 0.5,
        "max_class_drop": 0.9,
        "max_slice_drop": 0.9,
        "max_flip_rate": 0.2,
        "min_agreement": 0.8,
        "max_divergence": 80.0,
    }
    text = "\n".join(f"{name} = {limit}" for name, limit in limits.items())
    (gated.directory / POLICY_FILE).write_text(f"metric = 'macro_f1'\n{text}\n")
    data = gated.directory / "data.npz"
    examples = gated.splits().test
    topic = np.asarray(["a", "b"] * len(examples))[: len(examples)]
    np.savez(
        data,
        inputs=examples.inputs,
        labels=np.asarray(examples.labels),
        ids=np.asarray(examples.ids),
        topic=topic,
    )
    report = json.loads(gate("--data", data, "--slice-column", "topic", "--json").stdout)
    names = [check["name"] for check in report["checks"]]
    assert names[0] == "macro_f1_retained"
    parts = [f"recall_drop[{label}]" for label in ("cat", "dog", "owl")]
    parts += [f"accuracy_drop[topic={value}]" for value in "ab"]
    assert {*parts, "flip_rate", "agreement", "divergence"} < set(names)
    assert not [check for check in report["checks"] if check["verdict"] == "regression"]


def test_limits_on_slices_need_slices(gate: Callable[..., Result]):
    found = gate("--max-slice-drop", 0.1)
    assert found.exit_code == 2
    assert "name some by --slice-column" in found.stderr


@pytest.mark.parametrize("name", list(GateGroup.members))
def test_subcommands_have_help_and_an_example_without_torch(name: str):
    words = ["gate", name, "--help"]
    script = (
        "import sys\nfrom tcompress.cli import cli\n"
        f"cli({words!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'onnx'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"tcompress gate {name}" in result.stdout.split("Example:")[1]


@pytest.mark.parametrize("second", ["--markdown", "--data"])
def test_a_report_never_overwrites_another_file_of_the_command(
    gate: Callable[..., Result], tmp_path: Path, second: str
) -> None:
    kept = tmp_path / "data.npz"
    kept.write_bytes(b"mine")
    found = gate("--max-drop", "0.02", "--junit", kept, second, kept)
    assert (found.exit_code, "is named twice" in found.stderr) == (2, True)
    assert kept.read_bytes() == b"mine"
