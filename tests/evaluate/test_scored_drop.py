from dataclasses import replace

import numpy as np
import pytest

from tcompress.evaluate.scored import Scored, scored_label_sets, scored_numbers
from tcompress.evaluate.scored_drop import scored_drop


def label_sets(n: int, flips: float, seed: int, base_errors: float = 0.1) -> tuple[Scored, Scored]:
    """A baseline with some wrong labels, and a candidate with some more."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, 5)) < 0.3
    before = truth ^ (rng.random((n, 5)) < base_errors)
    after = before ^ (rng.random((n, 5)) < flips)
    return scored_label_sets(truth, before), scored_label_sets(truth, after)


def test_the_bounds_hold_the_true_drop_as_often_as_they_say() -> None:
    big = label_sets(200_000, 0.02, 1)
    true = big[0].values()["micro_f1"] - big[1].values()["micro_f1"]
    found = [scored_drop(*label_sets(200, 0.02, 10 + i), "micro_f1") for i in range(40)]
    above = sum(true > drop.bounds.high for drop in found)
    below = sum(true < drop.bounds.low for drop in found)
    # each side errs in 5 of 100; 7 of 40 or more happen in less than 1 % then
    assert max(above, below) < 7
    assert min(drop.bounds.high for drop in found) > true / 3


def test_without_a_change_the_upper_bound_is_what_unseen_changes_could_do() -> None:
    before, _ = label_sets(400, 0.0, 0)
    drop = scored_drop(before, before, "exact_match")
    exact = before.values()["exact_match"]
    assert drop.estimate == 0
    # 1 - 0.05 ** (1 / 400) of all answers could be wrong at 95 %
    assert drop.bounds.high == pytest.approx(exact * (1 - 0.05 ** (1 / 400)))


def test_examples_of_a_group_count_as_one() -> None:
    few = label_sets(50, 0.05, 3)
    before, after = (
        replace(s, sums=np.repeat(s.sums, 4, 0), worst=np.repeat(s.worst, 4, 0)) for s in few
    )
    together = scored_drop(before, after, "micro_f1", groups=[f"{i // 4:02}" for i in range(200)])
    assert together.bounds == scored_drop(*few, "micro_f1").bounds
    assert together.bounds.high > scored_drop(before, after, "micro_f1").bounds.high


def test_a_correlation_that_is_lost_shows_as_a_drop() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=300)
    before = scored_numbers(truth, truth + 0.3 * rng.normal(size=300))
    after = scored_numbers(truth, truth + 2.0 * rng.normal(size=300))
    drop = scored_drop(before, after, "pearson", relative=True)
    assert 0.3 < drop.bounds.low < drop.estimate < drop.bounds.high < 0.8
