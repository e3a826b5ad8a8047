import json
from pathlib import Path

QUICK = ("--heads", "0.1", "--budget-s", "0.5", "--max-drop", "0.5")


def test_run_does_everything_and_the_second_time_only_measures(
    text_workspace: Path, tcompress
) -> None:
    first = tcompress("run", *QUICK, "--json", "--workspace", text_workspace)
    assert first.exit_code in (0, 4), first.output
    document = json.loads(first.stdout)
    assert document["candidate"] == str(text_workspace / "artifacts/export/onnx")
    stages = [f"$ tcompress {name}" for name in ("score", "prune", "quantize", "export")]
    assert all(stage in first.stderr for stage in stages)
    report = json.loads((text_workspace / "report/report.json").read_text())
    assert [entry["artifact"] for entry in report["measurements"]] == [
        *("source", "prune", "quantize", "export/onnx")
    ]
    assert (text_workspace / "report/report.html").stat().st_size > 10_000

    again = tcompress("run", *QUICK, "--workspace", text_workspace)
    assert again.exit_code == first.exit_code
    assert again.stderr.count("is up to date") == 4
    assert again.stderr.count("answers were kept") == 2


def test_run_stops_at_the_first_stage_that_fails(text_workspace: Path, tcompress) -> None:
    result = tcompress("run", "--heads", "1", "--workspace", text_workspace)
    assert result.exit_code == 2
    assert "--drop-sublayers" in result.stderr
    assert "tcompress quantize" not in result.stderr
    assert not (text_workspace / "artifacts").exists()
