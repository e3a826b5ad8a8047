import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tcompress.encoder import open_encoder

QUICK = ("--heads", "0.1", "--budget-s", "0.5", "--max-drop", "0.5")


@pytest.fixture
def tensor_workspace(tmp_path: Path, model_directories: Callable, tcompress: Callable) -> Path:
    """A workspace on a tiny nn.TransformerEncoder, whose engines start in half a BERT's time."""
    model = model_directories("torch-post-norm")
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((150, 6, 5), dtype=np.float32)
    encoder = open_encoder(model)
    logits = encoder.predict({"inputs": inputs, "attention_mask": np.ones((150, 6), np.int64)})
    labels = np.asarray(encoder.labels)[(logits.argmax(1) + (np.arange(150) % 5 == 0)) % 2]
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=labels)
    directory = tmp_path / "workspace"
    made = tcompress("init", model, "--data", tmp_path / "data.npz", "--workspace", directory)
    assert made.exit_code == 0, made.output
    return directory


@pytest.fixture(params=["tensor_workspace", pytest.param("text_workspace", marks=pytest.mark.slow)])
def workspace(request: pytest.FixtureRequest) -> Path:
    """A workspace of each kind of data."""
    directory: Path = request.getfixturevalue(request.param)
    return directory


def test_run_does_everything_and_the_second_time_only_measures(workspace: Path, tcompress) -> None:
    first = tcompress("run", *QUICK, "--json", "--workspace", workspace)
    assert first.exit_code in (0, 4), first.output
    document = json.loads(first.stdout)
    assert document["candidate"] == str(workspace / "artifacts/export/onnx")
    stages = [f"$ tcompress {name}" for name in ("score", "prune", "quantize", "export")]
    assert all(stage in first.stderr for stage in stages)
    report = json.loads((workspace / "report/report.json").read_text())
    assert [entry["artifact"] for entry in report["measurements"]] == [
        *("source", "prune", "quantize", "export/onnx")
    ]
    assert (workspace / "report/report.html").stat().st_size > 10_000

    again = tcompress("run", *QUICK, "--workspace", workspace)
    assert again.exit_code == first.exit_code
    assert again.stderr.count("is up to date") == 3
    assert again.stderr.count("answers were kept") == 2


def test_run_stops_at_the_first_stage_that_fails(text_workspace: Path, tcompress) -> None:
    result = tcompress("run", "--heads", "1", "--workspace", text_workspace)
    assert result.exit_code == 2
    assert "--drop-sublayers" in result.stderr
    assert "tcompress quantize" not in result.stderr
    assert not (text_workspace / "artifacts").exists()
