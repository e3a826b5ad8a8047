"""Files that were valid, spoiled: each works or is refused with an error of tcompress's own."""

import json

import pytest

from .fuzz import TARGETS
from .harness import Harness

FEW, MANY = 18, 560
"""Inputs per target; 300 and 10,000 in all."""


@pytest.mark.parametrize(
    ("inputs", "seconds"),
    [
        pytest.param(FEW, 30, id="few"),
        pytest.param(MANY, 300, id="many", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("target", TARGETS)
def test_spoiled_input_works_or_is_refused(
    target: str, inputs: int, seconds: float, harness: Harness
) -> None:
    outcome = harness.fuzz(target, inputs, seconds)

    assert not outcome.faults, "\n".join(outcome.faults)
    seen = json.loads(outcome.ended.stdout.splitlines()[-1])
    assert seen["refused"] > 0
    outcome.count("fuzzed", target, inputs=inputs, seconds=seen["seconds"])
