"""Guards: candidates that are broken in a way that a metric can hide fail whatever it says."""

from collections import Counter

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest

from tcompress.data import Examples
from tcompress.errors import DataError

from ..noninferiority import PairedCounts, Verdict, damage_bounds, required_examples
from .sides import NO_ANSWER, Classes, Sides
from .verdict import Check

_EXPLAINED = 0.5
"""Share of the changed answers from which on a permutation of the labels explains them."""


def check_guards(sides: Sides, alpha: float = 0.05) -> list[Check]:
    """Look for answers that no working model gives.

    Args:
        sides: The answers.
        alpha: Error probability of a wrong regression where a guard can err by chance.
    """
    return [
        _check_finite(sides),
        _check_degenerate(sides),
        _check_majority(sides, alpha),
        _check_permuted(sides, alpha),
    ]


def check_ids(examples: Examples) -> None:
    """Raise unless every example has an id of its own.

    Args:
        examples: The examples of the gate.

    Raises:
        DataError: If two have the same.
    """
    [(name, count)] = Counter(examples.ids).most_common(1)
    if count > 1:
        msg = (
            f"{examples.origin}: id {name!r} stands in it {count} times; answers are paired by "
            "id, give every example its own"
        )
        raise DataError(msg)


def first_of_each(examples: Examples) -> npt.NDArray[np.int64]:
    """Return the position of the first example with each input: a repeated one proves no more.

    Args:
        examples: The examples of the gate.
    """
    _, first = np.unique(np.asarray(examples.content_digests), return_index=True)
    return np.sort(first)


def repeated_inputs_notes(examples: Examples) -> tuple[str, ...]:
    """Say how many examples repeat an input, and whether they come in groups.

    Args:
        examples: The examples of the gate.
    """
    notes: tuple[str, ...] = ()
    if repeated := len(examples) - len(set(examples.content_digests)):
        notes += (
            f"{repeated:,} of {len(examples):,} examples repeat the input of another one; each "
            "input is counted once",
        )
    groups = len(set(examples.groups or ()))
    if 0 < groups < len(examples):
        notes += (
            f"the examples come in {groups:,} groups; those of one group are counted as "
            "independent of each other",
        )
    return notes


def too_few_words(n: int, max_drop: float, alpha: float) -> str | None:
    """Say that no outcome can prove a limit on the drop in accuracy; None where one can.

    Args:
        n: Number of examples.
        max_drop: Smallest drop that is not acceptable, a fraction in (0, 1).
        alpha: Error probability of a wrong pass.
    """
    needed = required_examples(max_drop, flip_rate=0.0, alpha=alpha)
    if n >= needed:
        return None
    return (
        f"{n:,} examples can never prove a limit of {100 * max_drop:.2f} points, even if no answer "
        f"changes: it takes at least {needed:,}"
    )


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


def _check_majority(sides: Sides, alpha: float) -> Check:
    """Fail a candidate that fell below always naming the most frequent label.

    It fell only if the baseline stands above that, and it is below by more than chance.
    """
    counts, n = sides.counts, len(sides)
    sizes = np.bincount(sides.truth)
    right_before, right_now = counts.both_right + counts.lost, counts.both_right + counts.gained
    below = right_now < sizes.max() < right_before
    before, now, floor = right_before / n, right_now / n, float(sizes.max() / n)
    always = PairedCounts.from_correct(sides.truth == sizes.argmax(), sides.found == sides.truth)
    shown = bool(below) and damage_bounds(always, alpha).low > 0
    words = (
        f"accuracy is {now:.1%}, always saying {sides.labels[sizes.argmax()]!r} gives {floor:.1%}, "
        f"and the baseline has {before:.1%}"
    )
    verdict = Verdict.REGRESSION if shown else Verdict.INCONCLUSIVE if below else Verdict.PASS
    return Check("majority", verdict, now, now, floor, n, words=words if below else "")


def _check_permuted(sides: Sides, alpha: float) -> Check:
    """Fail a candidate whose answers are the baseline's under other names."""
    classes = len(sides.labels)
    answered = sides.found != NO_ANSWER
    pairs = sides.expected[answered] * classes + sides.found[answered]
    # table: (classes, classes), the baseline's answers by the candidate's
    table = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    renamed = _best_renaming(table)
    moved = np.flatnonzero(renamed != np.arange(classes))
    told, kept = table[moved, renamed[moved]], table[moved, moved]
    changed = int(table.sum() - np.trace(table))
    share = float((told.sum() - kept.sum()) / changed) if len(moved) and changed else 0.0
    failed = (
        share > _EXPLAINED
        and bool((told > kept)[table[moved].sum(axis=1) > 0].all())
        and _more_often(int(told.sum()), int(kept.sum()), alpha)
    )
    names = ", ".join(f"{sides.labels[i]}->{sides.labels[renamed[i]]}" for i in moved)
    words = f"the labels are permuted ({names}): that explains {share:.0%} of the changed answers"
    return _guard("permuted", share, _EXPLAINED, failed=failed, n=len(sides), words=words)


def _best_renaming(table: Classes) -> Classes:
    """Return the class that each class became, in the permutation that explains most answers."""
    # Of permutations that explain as much, the one that leaves most classes alone.
    weights = table * (len(table) + 1) + np.eye(len(table), dtype=np.int64)
    renamed: Classes = linear_sum_assignment(weights, maximize=True)[1]
    return renamed


def _more_often(one: int, other: int, alpha: float) -> bool:
    return bool(binomtest(one, one + other, alternative="greater").pvalue < alpha)


def _guard(name: str, share: float, limit: float, *, failed: bool, n: int, words: str) -> Check:
    verdict = Verdict.REGRESSION if failed else Verdict.PASS
    return Check(name, verdict, share, share, limit, n, words=words if failed else "")
