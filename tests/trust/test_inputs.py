"""Every bad input, against commands that open such a file: `python -m pytest -k F8`.

One command for each input by default, all of them among the slow tests.
"""

import json
import os
from importlib import import_module
from pathlib import Path

import pytest

from .case import Case
from .harness import Harness, Outcome

COUNTS = "TCOMPRESS_TEST_COUNTS"
"""Names a file that a JSON line is written to for each command that was run."""
CASES = [
    case
    for path in sorted(Path(__file__).parent.glob("cases_f*.py"))
    for case in import_module(f".{path.stem}", __package__).CASES
]


def _count(case: Case, outcome: Outcome) -> None:
    if (path := os.environ.get(COUNTS)) is None:
        return
    kinds = ("executions", "outside", "deaths", "tracebacks", "partial", "wrong")
    line = {"family": case.family, "name": case.name, "command": outcome.words[0]}
    line |= {"seconds": outcome.ended.seconds, "code": outcome.ended.code}
    line |= {kind: len(getattr(outcome, kind)) for kind in kinds}
    with Path(path).open("a") as file:
        file.write(json.dumps(line) + "\n")


@pytest.mark.parametrize(
    "most", [pytest.param(1, id="one"), pytest.param(None, id="all", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}-{case.name}")
def test_input_is_refused_in_one_line_and_leaves_nothing(
    case: Case, most: int | None, harness: Harness
) -> None:
    outcomes = harness.outcomes(case, most)
    for outcome in outcomes:
        _count(case, outcome)
    assert not {" ".join(o.words): o.faults for o in outcomes if o.faults}
