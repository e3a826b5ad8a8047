"""Files that were valid, spoiled: each works or is refused with an error of tcompress's own."""

import pytest

from .fuzz import TARGETS
from .harness import Harness

FEW, MANY = 18, 560
"""Inputs per target; 300 and 10,000 in all."""


@pytest.mark.parametrize("target", TARGETS)
def test_spoiled_input_works_or_is_refused(target: str, harness: Harness) -> None:
    faults = harness.fuzz(target, FEW, seconds=30).faults

    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_no_spoiled_input_of_many_goes_unnoticed(target: str, harness: Harness) -> None:
    faults = harness.fuzz(target, MANY, seconds=300).faults

    assert not faults, "\n".join(faults)
