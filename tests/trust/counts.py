"""Sums what the tests wrote of bad inputs, as a Markdown table: `python counts.py COUNTS.jsonl`.

Every line is an outcome: an input's family and name, the command's words, its exit code and its
seconds, and how many faults of each kind were found.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

KINDS = {
    "executions": "code executions",
    "outside": "reads or writes outside",
    "deaths": "process deaths",
    "tracebacks": "tracebacks",
    "partial": "partial artifacts",
    "wrong": "wrong answers",
}
HEAD = ("family", "inputs", "runs", *KINDS.values(), "longest seconds")
Outcome = Mapping[str, Any]


def table(outcomes: Iterable[Outcome]) -> str:
    """Return a table of a row per family, and one of all.

    Args:
        outcomes: The lines of the file.
    """
    families: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        families.setdefault(str(outcome["family"]), []).append(outcome)
    rows = [_row(family, families[family]) for family in sorted(families, key=_number)]
    rows.append(_row("all", [outcome for found in families.values() for outcome in found]))
    lines = (HEAD, ("---", *("---:",) * (len(HEAD) - 1)), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _number(family: str) -> tuple[int, str]:
    digits = family.removeprefix("F")
    return (int(digits) if digits.isdigit() else sys.maxsize, family)


def _row(name: str, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    inputs = {(outcome["family"], outcome["name"]) for outcome in outcomes}
    sums = (sum(int(outcome[kind]) for outcome in outcomes) for kind in KINDS)
    longest = max((float(outcome["seconds"]) for outcome in outcomes), default=0.0)
    return name, str(len(inputs)), str(len(outcomes)), *map(str, sums), f"{longest:.1f}"


def main() -> None:
    """Print the table of the file that is named."""
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    sys.stdout.write(f"{table(map(json.loads, lines))}\n")


if __name__ == "__main__":
    main()
