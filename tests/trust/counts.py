"""Sums what the tests wrote of bad inputs, as Markdown tables: `python counts.py COUNTS.jsonl`.

Every line is an outcome: an input's family and name, the command, its exit code and its seconds,
and how many faults of each kind were found; or a target of the fuzzer, with how many inputs.
"""

import json
import sys
from collections import Counter
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
    return _markdown(HEAD, rows)


def commands(outcomes: Iterable[Outcome]) -> str:
    """Return a table of how often each command met an input of each family.

    Args:
        outcomes: The lines of the file.
    """
    runs: Counter[tuple[str, str]] = Counter()
    for found in outcomes:
        runs[str(found["command"]), str(found["family"])] += int(found.get("inputs", 1))
    families = sorted({family for _, family in runs}, key=_number)
    rows = [
        (command, *(str(runs[command, family] or "") for family in families))
        for command in sorted({command for command, _ in runs})
    ]
    return _markdown(("command", *families), rows)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (head, ("---", *("---:",) * (len(head) - 1)), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _number(family: str) -> tuple[int, str]:
    digits = family.removeprefix("F")
    return (int(digits) if digits.isdigit() else sys.maxsize, family)


def _row(name: str, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    inputs = {(found["family"], found["name"]): found.get("inputs", 1) for found in outcomes}
    runs = sum(outcome.get("inputs", 1) for outcome in outcomes)
    sums = (sum(int(outcome[kind]) for outcome in outcomes) for kind in KINDS)
    longest = max((float(outcome["seconds"]) for outcome in outcomes), default=0.0)
    return name, str(sum(inputs.values())), str(runs), *map(str, sums), f"{longest:.1f}"


def main() -> None:
    """Print the tables of the file that is named."""
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    outcomes = [json.loads(line) for line in lines]
    sys.stdout.write(f"{table(outcomes)}\n\n{commands(outcomes)}\n")


if __name__ == "__main__":
    main()
