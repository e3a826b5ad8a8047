import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tcompress.artifact import Artifact
from tcompress.cli import cli
from tcompress.console import Console
from tcompress.evaluate.comparison import quality_answer, speed_answer
from tcompress.evaluate.history import remember
from tcompress.evaluate.noninferiority import PairedCounts, damage_bounds
from tcompress.evaluate.reporting.report import write_report
from tcompress.workspace import Workspace

WEIGHT = np.random.default_rng(1).standard_normal((4, 3))
QUICK = ("--device", "cpu", "--budget-s", "0.5", "--no-mix", "--quiet")


def compare(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["evaluate", "--compare", *(str(a) for a in arguments), *QUICK])


def test_exports_are_compared_without_a_workspace_and_a_replaced_one_is_remembered(
    source: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_onnx: Callable[..., Artifact],
):
    monkeypatch.chdir(tmp_path)
    first = write_onnx(source, Path("first"), WEIGHT)
    second = write_onnx(source, Path("second"), -WEIGHT)
    result = compare("first", "second", "--data", data, "--output", "report")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("A  first\nB  second\n")
    assert "Is B faster?" in result.stdout
    assert "Is B worse?" in result.stdout
    assert max(len(line) for line in result.stdout.split("Note:")[0].splitlines()) <= 80
    document = json.loads(Path("report/report.json").read_text())
    a, b = document["measurements"]
    assert (document["baseline"], a["artifact"], b["artifact"]) == ("first", "first", "second")
    assert (a["digest"], b["digest"]) == (first.manifest.digest, second.manifest.digest)
    assert (a["accuracy_drop"], a["speedup"]["value"], a["macs"]) == (0, 1, None)
    assert b["accuracy_drop"] == pytest.approx(a["metrics"]["accuracy"] - b["metrics"]["accuracy"])
    assert (a["not_inferior"], a["pareto"]) == (True, True)
    assert (document["margin"], document["earlier"]) == (0.01, [])

    shutil.rmtree("second")
    b["digest"] = "that of another model which stands there by now"
    document["earlier"] = remember(document, Path("report/history.jsonl"), Console())
    (earlier,) = document["earlier"]
    assert (earlier["digest"], earlier["metrics"]) == (second.manifest.digest, b["metrics"])
    assert write_report(document, Path("again"))


def test_comparison_in_a_workspace_uses_its_split_and_margin_and_writes_no_report(
    workspace: Workspace, source: Path, write_encoder: Callable[..., Artifact]
):
    made = write_encoder(source, workspace.artifacts_directory / "int8", "quantize", "int8")
    shared = ("--workspace", workspace.directory, "--json")
    result = compare(made.directory, source, *shared, "--margin", "0.2")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["margin"], document["data"]["split"]) == (0.2, "test")
    assert [e["precision"] for e in document["measurements"]] == ["int8", "fp32"]
    assert not (workspace.report_directory / "report.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["{source}", "{source}"], "both are one directory", id="one-directory"),
        pytest.param(
            ["{source}", "{folder}", "--model", "{source}"],
            "--model does not go with --compare",
            id="model-too",
        ),
        pytest.param(["{source}", "{folder}"], "no model.safetensors in it", id="no-model"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    source: Path, data: Path, arguments: list[str], message: str
):
    places = {"source": source, "folder": data.parent}
    result = compare(*(a.format(**places) for a in arguments), "--data", data)
    assert result.exit_code in (2, 5)
    assert message in result.stderr


def speed(low: float, high: float, **changes: Any) -> str:
    speedup = {"value": (low + high) / 2, "low": low, "high": high, "confidence": 0.95}
    return speed_answer({"speedup": speedup | {"blocks": 9} | changes})


def test_speed_is_answered_from_verdict_or_interval_and_never_from_few_rounds():
    assert speed(1.1, 1.3).startswith("Yes, B is faster: 1.20 times A's speed, 1.10 to 1.30")
    assert speed(0.8, 0.9).startswith("No, B is slower")
    assert speed(0.9, 1.3).startswith("Not known")
    assert speed(0.99, 1.01, verdict="equivalent").startswith("No, B is as fast as A")
    assert speed(1.1, 1.3, confidence=0.5).startswith("Not known: too few rounds")


@pytest.mark.parametrize(
    ("lost", "gained", "answer"),
    [
        pytest.param(
            2,
            3,
            "No, a drop below the margin of 0.01 is proved: its accuracy is 0.0010 higher",
            id="not-worse",
        ),
        pytest.param(60, 10, "Yes, by at least the margin of 0.01", id="worse"),
        pytest.param(12, 10, "Not known", id="not-known"),
    ],
)
def test_quality_is_answered_from_the_bounds_of_the_paired_drop(
    lost: int, gained: int, answer: str
):
    counts = PairedCounts(1000 - lost - gained, lost, gained, 0)
    bounds = damage_bounds(counts)
    entry = {
        "accuracy_drop": counts.damage,
        "accuracy_drop_interval": {"low": bounds.low, "high": bounds.high},
        "not_inferior": bounds.high < 0.01,
        "agreement": 0.9,
        "metrics": {"accuracy": 0.8},
    }
    assert quality_answer(entry, 0.01).startswith(answer)
    unlabelled = entry | {"accuracy_drop_interval": None}
    assert quality_answer(unlabelled, 0.01).startswith("Not known without labels: both answer 90")
