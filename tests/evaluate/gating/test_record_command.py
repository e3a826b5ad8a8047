import json
from pathlib import Path

from click.testing import CliRunner

from tcompress.cli import cli
from tcompress.evaluate.gating.baseline import Baseline


def test_record_command_writes_what_gate_reads(source: Path, data: Path, tmp_path: Path):
    words = ["gate", "record", "--model", source, "--data", data, "--output", tmp_path / "b.json"]
    timing = ["--latency", "--budget-s", "0.5", "--tokens", "6", "--json", "--quiet"]
    found = CliRunner().invoke(cli, [str(word) for word in (*words, *timing)])
    assert found.exit_code == 0, found.output
    shown, read = json.loads(found.stdout), Baseline.read(tmp_path / "b.json")
    assert (shown["examples"], shown["metrics"]["accuracy"]) == (150, 0.8)
    assert shown["latency"]["median_ms"] == read.latency_here().median_ms > 0

    again = CliRunner().invoke(cli, [str(word) for word in words])
    assert again.exit_code == 2
    assert "exists already; pass --force" in again.stderr
    useless = CliRunner().invoke(cli, [str(word) for word in (*words, "--batch", "2")])
    assert useless.exit_code == 2
    assert "--batch goes with --latency" in useless.stderr
