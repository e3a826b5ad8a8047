"""Guards: candidates that are broken in a way that a metric can hide fail whatever it says."""

import numpy as np

from ..noninferiority import Verdict
from .sides import NO_ANSWER, Sides
from .verdict import Check


def check_guards(sides: Sides) -> list[Check]:
    """Look for answers that no working model gives.

    Args:
        sides: The answers.
    """
    return [_check_finite(sides), _check_degenerate(sides)]


def _check_finite(sides: Sides) -> Check:
    share = float(np.mean(sides.found == NO_ANSWER))
    words = f"{share:.1%} of the candidate's answers are not finite"
    return _guard("finite", share, 0.0, failed=share > 0, n=len(sides), words=words)


def _check_degenerate(sides: Sides) -> Check:
    """Fail a candidate that stopped telling examples apart which the baseline tells apart."""
    share = float(np.unique(sides.found, return_counts=True)[1].max() / len(sides))
    several = len(np.unique(sides.truth)) > 1 and len(np.unique(sides.expected)) > 1
    words = "the candidate gives one and the same answer to every example"
    return _guard(
        "degenerate", share, 1.0, failed=share == 1 and several, n=len(sides), words=words
    )


def _guard(name: str, share: float, limit: float, *, failed: bool, n: int, words: str) -> Check:
    verdict = Verdict.REGRESSION if failed else Verdict.PASS
    return Check(name, verdict, share, share, limit, n, words=words if failed else "")
