import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from tcompress.artifact import Artifact
from tcompress.cli import cli
from tcompress.encoder import open_encoder
from tcompress.errors import RequestError
from tcompress.evaluate.engine_info import EngineInfo
from tcompress.evaluate.engine_process import EngineProcess
from tcompress.evaluate.entrants import enter
from tcompress.evaluate.quality import quality_from_answers
from tcompress.evaluate.tradeoff import input_tokens, plan_macs
from tcompress.workspace import Workspace, reference_to

WEIGHT = np.random.default_rng(1).standard_normal((4, 3))


def evaluate(workspace: Workspace, *arguments: str) -> Result:
    shared = ("--workspace", str(workspace.directory), "--device", "cpu", "--budget-s", "1")
    return CliRunner().invoke(cli, ["evaluate", "--no-mix", *shared, *arguments])


def answers_of(path: Path) -> str:
    with path.open() as stream:
        return json.loads(next(stream))["artifact"]


def numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers_in(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers_in(item)]
    return [value] if isinstance(value, int | float) else []


def test_document_compares_every_artifact_with_the_source(
    workspace: Workspace,
    source: Path,
    tmp_path: Path,
    write_encoder: Callable[..., Artifact],
    write_onnx: Callable[..., Artifact],
):
    artifacts = workspace.artifacts_directory
    write_encoder(source, artifacts / "prune", "prune")
    write_encoder(artifacts / "prune", artifacts / "finetune", "finetune")
    shutil.rmtree(artifacts / "prune")
    write_encoder(source, artifacts / "prune", "prune", precision="int8")  # finetune is stale now
    write_onnx(artifacts / "prune", artifacts / "export" / "onnx", WEIGHT)
    other = tmp_path / "other"
    shutil.copytree(source, other)
    state = load_file(other / "model.safetensors")
    save_file({name: value * 1.5 for name, value in state.items()}, other / "model.safetensors")
    write_encoder(other, artifacts / "foreign", "prune")
    scores = {"criterion": "magnitude", "heads": [[0.1, 0.2, 0.3, 0.4]] * 2}
    workspace.scores_file.write_text(json.dumps(scores))

    result = evaluate(workspace, "--json", "--quiet", "--slice-column", "half")

    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    entries = {entry["artifact"]: entry for entry in document["measurements"]}
    assert list(entries) == ["source", "finetune", "prune", "export/onnx"]
    found = {name: (e["backend"], e["precision"], e["stale"]) for name, e in entries.items()}
    assert found == {
        "source": ("pytorch", "fp32", False),
        "finetune": ("pytorch", "fp32", True),
        "prune": ("pytorch", "int8", False),
        "export/onnx": ("onnxruntime", "fp32", False),
    }
    assert "foreign was made from another source model" in result.stderr
    assert document["notes"][0].startswith("foreign was made from another source model")

    base, same, linear = entries["source"], entries["finetune"], entries["export/onnx"]
    assert base["metrics"]["accuracy"] == pytest.approx(0.8, abs=0.1)
    assert (base["speedup"]["value"], base["accuracy_drop"]) == (1, 0)
    assert (same["accuracy_drop"], same["flips"]) == (0, {"lost": 0, "gained": 0, "changed": 0})
    assert linear["accuracy_drop"] == pytest.approx(
        base["metrics"]["accuracy"] - linear["metrics"]["accuracy"]
    )
    flips = linear["flips"]
    assert (flips["lost"] - flips["gained"]) / document["data"]["examples"] == pytest.approx(
        linear["accuracy_drop"]
    )
    for entry in entries.values():
        assert (entry["batch"], entry["tokens"], entry["device"]) == (1, 6, "cpu")
        assert entry["latency_ms"]["n"] == len(entry["latency_ms"]["samples"]) > 0
        assert entry["speedup"]["low"] <= entry["speedup"]["value"] <= entry["speedup"]["high"]
        assert entry["heads"] == [4, 4]
        assert entry["macs"] == open_encoder(source).anatomy.macs(6)
    assert linear["size_bytes"] == (artifacts / "export/onnx/model.onnx").stat().st_size
    assert document["environment"]["noise_floor"]["value"] > 0
    assert document["heads"] == {
        "criterion": "magnitude",
        "scores": scores["heads"],
        "kept": [[0, 1, 2, 3]] * 2,
    }
    assert {part["value"] for part in linear["slices"]} == {"even", "odd"}
    assert linear["lengths"] == []  # all are of one length
    lost_and_gained = sum(flips[way] for way in ("lost", "gained"))
    of_linear = [flip for flip in document["flipped"] if flip["artifact"] == "export/onnx"]
    assert len(of_linear) == min(20, lost_and_gained)
    files = {answers_of(path): path for path in (workspace.report_directory / "answers").iterdir()}
    exported = Artifact.open(artifacts / "export" / "onnx").manifest.digest
    before, after = files[reference_to(source).digest], files[exported]
    again = quality_from_answers(after, before).to_json()
    assert again == {key: linear[key] for key in again}
    assert document["data"]["split"] == "test"
    assert document["gpu"] == "GPU: not measured, as --device cpu says"
    assert all(math.isfinite(number) for number in numbers_in(document))
    assert json.loads((workspace.report_directory / "report.json").read_text()) == document
    assert (workspace.report_directory / "report.html").is_file()


def test_models_can_be_compared_without_a_workspace(
    source: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_onnx: Callable[..., Artifact],
):
    monkeypatch.chdir(tmp_path)
    write_onnx(source, tmp_path / "linear", WEIGHT)
    named = ("--model", str(source), "--data", str(data), "--output", str(tmp_path / "report"))
    options = ("--device", "cpu", "--budget-s", "1", "--batch", "2", "--tokens", "3")
    result = CliRunner().invoke(cli, ["evaluate", "linear", *named, *options])
    assert result.exit_code == 0, result.stderr
    assert "cpu, batch 2, 3 tokens" in result.stdout
    assert "…" not in result.stdout
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    assert document["data"] | {"split": None, "examples": 150} == document["data"]
    mixes = {(mix["artifact"], mix["scenario"]): mix["tokens_max"] for mix in document["mixes"]}
    assert mixes == {
        (name, scenario): 6
        for name in ("source", "linear")
        for scenario in ("single_stream", "offline")
    }
    assert [entry["artifact"] for entry in document["operators"]] == ["source", "linear"]


def test_damaged_artifact_stops_the_evaluation(
    workspace: Workspace, source: Path, write_encoder: Callable[..., Artifact]
):
    artifact = write_encoder(source, workspace.artifacts_directory / "prune", "prune")
    (artifact.directory / "model.safetensors").write_bytes(b"damaged")
    result = evaluate(workspace)
    assert result.exit_code == 5
    assert "prune: model.safetensors" in result.stderr


def test_without_workspace_and_model_both_ways_out_are_named(tmp_path: Path):
    result = CliRunner().invoke(cli, ["evaluate", "--workspace", str(tmp_path)])
    assert result.exit_code == 2
    assert "tcompress init" in result.stderr
    assert "--model" in result.stderr


def test_help_does_not_import_torch():
    program = (
        "import sys; from click.testing import CliRunner; from tcompress.cli import cli\n"
        "result = CliRunner().invoke(cli, ['evaluate', '--help'])\n"
        "sys.exit(result.exit_code or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_lengths_are_those_asked_for_within_the_model_or_the_longest_example(data: Path):
    from tcompress.data import Columns, Examples, read_examples

    tensors = read_examples(data, Columns())
    texts = Examples("test", ids=("0",), texts=("a film",))
    assert input_tokens(tensors, None, reading(8)) == [6]
    assert input_tokens(texts, None, reading(512)) == [128]
    assert input_tokens(texts, (16, 128, 384), reading(64)) == [16, 64]


def test_inputs_of_one_shape_are_measured_as_they_are() -> None:
    from tcompress.data import Examples

    images = Examples("test", ids=("0",), inputs=np.zeros((1, 3, 32, 32), np.float32))
    info = replace(reading(197), fixed_tokens=197)
    assert input_tokens(images, None, info) == [197]
    with pytest.raises(RequestError, match="--tokens 64: every input of this model has 197 tokens"):
        input_tokens(images, (64,), info)


def reading(max_tokens: int) -> EngineInfo:
    return EngineInfo("pytorch", "cpu", 1, ("a", "b"), max_tokens, {})


def test_macs_of_a_plan_are_those_of_the_model_it_describes(source: Path):
    encoder = open_encoder(source)
    geometry = EngineInfo(
        "pytorch", "cpu", 1, encoder.labels, 8, {}, 16, ((4, 2, 2, 1), (4, 2, 2, 1))
    )
    assert plan_macs(encoder.plan, geometry, 5) == encoder.anatomy.macs(5)


def test_gpu_runs_fp32_encoders_in_both_formats_and_names_the_rest(
    workspace: Workspace, source: Path, write_encoder: Callable[..., Artifact]
):
    from tcompress.evaluate.subjects import source_subject, workspace_subjects

    artifacts = workspace.artifacts_directory
    write_encoder(source, artifacts / "prune", "prune")
    write_encoder(source, artifacts / "quantize", "quantize", precision="int8")
    subjects, _ = workspace_subjects(workspace)
    entrants, left_out = enter("cuda", source_subject(source), subjects)
    assert [entrant.key for entrant in entrants] == [
        "source (fp32)",
        "source (bf16)",
        "prune (fp32)",
        "prune (bf16)",
    ]
    assert left_out == ["quantize"]


@pytest.mark.gpu
def test_bf16_on_the_gpu_answers_as_the_cpu_does(source: Path, data: Path):
    import torch

    from tcompress.data import Columns, read_examples
    from tcompress.evaluate.accuracy import predict

    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    examples = read_examples(data, Columns())
    with (
        EngineProcess(source) as cpu,
        EngineProcess(source, device="cuda", precision="bf16") as gpu,
    ):
        expected, found = predict(cpu, examples).logits, predict(gpu, examples).logits
        for engine in (cpu, gpu):
            engine.fix(batch=2, tokens=8)
        assert cpu.kernels(calls=3, warmup=1) == []
        kernels, whole = gpu.kernels(calls=9, warmup=2), gpu.turn(calls=9, warmup=2)
        assert 0 < gpu.gpu_memory_peak_bytes() < gpu.memory_peak_bytes()
    assert 0 < np.median(kernels) < np.median(whole)
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
