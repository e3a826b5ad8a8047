import json
import subprocess
import sys
from pathlib import Path

from . import counts


def _line(family: str, name: str, seconds: float, **faults: int) -> dict[str, object]:
    found = dict.fromkeys(counts.KINDS, 0) | faults
    command = "inspect" if name == "b" else "score"
    line = {"family": family, "name": name, "command": command, "code": 5, "seconds": seconds}
    return line | found


def test_tables_sum_by_family_and_by_command(tmp_path: Path) -> None:
    path = tmp_path / "counts.jsonl"
    lines = (
        _line("F10", "a", 0.25),
        _line("F2", "a", 1.5, deaths=1),
        _line("F2", "a", 0.5, deaths=2, partial=1),
        _line("F2", "b", 0.5),
        _line("fuzzed", "config", 0.5, inputs=560) | {"command": "open"},
        _line("fuzzed", "csv", 0.75, inputs=40) | {"command": "open"},
    )
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    done = subprocess.run(
        [sys.executable, counts.__file__, path], capture_output=True, text=True, check=True
    )

    rows = [row.strip("| ").split(" | ") for row in done.stdout.splitlines()]
    assert rows[0] == list(counts.HEAD)
    assert rows[2:6] == [
        ["F2", "2", "3", "0", "0", "3", "0", "1", "0", "1.5"],
        ["F10", "1", "1", "0", "0", "0", "0", "0", "0", "0.2"],
        ["fuzzed", "600", "600", "0", "0", "0", "0", "0", "0", "0.8"],
        ["all", "603", "604", "0", "0", "3", "0", "1", "0", "1.5"],
    ]
    assert done.stdout.splitlines()[7:] == [
        "| command | F2 | F10 | fuzzed |",
        "| --- | ---: | ---: | ---: |",
        "| inspect | 1 |  |  |",
        "| open |  |  | 600 |",
        "| score | 2 | 1 |  |",
    ]


def test_table_of_nothing_says_so() -> None:
    assert counts.table([]).splitlines()[-1].startswith("| all | 0 | 0 |")
