"""Every bad input, against commands that open such a file: `python -m pytest -k F8`.

One command for each input by default, all of them among the slow tests.
"""

from importlib import import_module
from pathlib import Path

import pytest

from .case import Case
from .harness import Harness

CASES = [
    case
    for path in sorted(Path(__file__).parent.glob("cases_f*.py"))
    for case in import_module(f".{path.stem}", __package__).CASES
]


@pytest.mark.parametrize(
    "most", [pytest.param(1, id="one"), pytest.param(None, id="all", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}-{case.name}")
def test_input_is_refused_in_one_line_and_leaves_nothing(
    case: Case, most: int | None, harness: Harness
) -> None:
    outcomes = harness.outcomes(case, most)
    for outcome in outcomes:
        outcome.count(case.family, case.name)
    assert not {" ".join(o.words): o.faults for o in outcomes if o.faults}
