import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from click.testing import CliRunner, Result

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MISSING = "/nowhere/bin/python"


class Run(NamedTuple):
    peers: ModuleType
    words: tuple[str, ...]
    output: Path
    result: Result


@pytest.fixture(scope="module")
def run(
    model_directories: Callable, reviews_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """The baseline, one candidate of ours, and a peer that is not installed."""
    output = tmp_path_factory.mktemp("peers") / "peers.json"
    words = ("--model", model_directories("bert"), "--data", reviews_file, "--output", output)
    words += ("--only", "tcompress", "--only", "onnxruntime", "--peer-python", MISSING)
    words += ("--settings", "1x8", "--settings", "mix", "--budget-s", 0.5, "--loads", 1)
    words = tuple(map(str, (*words, "--threads", 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import peers

        return Run(peers, words, output, CliRunner().invoke(peers.main, words))


def test_a_race_times_and_judges_all_who_can_run(run: Run) -> None:
    assert run.result.exit_code == 0, run.result.output
    rows = json.loads(run.output.read_text())["rows"]
    baseline, ours = rows["pytorch"], rows["tcompress"]
    assert ours["divergence"] < 1e-6
    assert ours["accuracy_drop"] == 0
    assert ours["metrics"] == baseline["metrics"]
    assert baseline["divergence"] == 0
    for row in (baseline, ours):
        assert list(row["latency"]) == ["1x8", "mix"]
        assert row["threads"] == 1
        assert row["latency"]["mix"]["median_ms"] > row["latency"]["1x8"]["median_ms"] > 0
        assert min(row["size_bytes"], row["memory_peak_bytes"], row["load_s"]["median"]) > 0
    speedup = ours["latency"]["1x8"]["speedup"]
    assert speedup["low"] <= speedup["value"] <= speedup["high"]


def test_a_missing_environment_of_the_peers_is_named_as_the_reason(run: Run) -> None:
    document = json.loads(run.output.read_text())
    reason = document["rows"]["onnxruntime"]["not_run"]
    assert reason.startswith(f"{MISSING}: no such file; install benchmarks/requirements-peers.txt")
    assert f"- ONNX Runtime fp32: {reason}" in run.peers.peers_report.page(document)


def test_resume_keeps_finished_rows_and_races(run: Run) -> None:
    before = json.loads(run.output.read_text())["rows"]
    result = CliRunner().invoke(run.peers.main, (*run.words, "--resume"))
    assert result.exit_code == 0, result.output
    assert json.loads(run.output.read_text())["rows"] == before


def test_results_in_the_way_are_refused_without_resume(run: Run) -> None:
    result = CliRunner().invoke(run.peers.main, run.words)
    assert result.exit_code == 2
    assert "go on with --resume, or name another --output" in result.output


def test_tables_show_the_numbers_of_the_results(run: Run) -> None:
    rows = json.loads(run.output.read_text())["rows"]
    ours = rows["tcompress"]
    latency = run.peers.peers_report.latency_table(rows).splitlines()
    assert latency[0] == "| contender | 1x8, ms | mix, ms |"
    cell = ours["latency"]["1x8"]
    known = cell["speedup"]["blocks"] >= 6
    width = f"{cell['half_width']:.2f}" if known else "?"
    shown = f"{cell['median_ms']:.2f} ({cell['speedup']['value']:.2f} ± {width})"
    assert latency[3].startswith(f"| tcompress fp32, ONNX | {shown} |")
    quality = run.peers.peers_report.quality_table(rows).splitlines()
    assert f"| {100 * ours['metrics']['accuracy']:.2f} | +0.00 [" in quality[3]
    assert len(run.peers.peers_report.draw(rows).axes[0].get_yticklabels()) == 2
