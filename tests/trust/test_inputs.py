"""Every bad input, against every command that opens such a file: `python -m pytest -k F8`."""

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


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}-{case.name}")
def test_input_is_refused_in_one_line_and_leaves_nothing(case: Case, harness: Harness) -> None:
    faults = {
        " ".join(outcome.words): outcome.faults
        for outcome in harness.outcomes(case)
        if outcome.faults
    }
    assert not faults
