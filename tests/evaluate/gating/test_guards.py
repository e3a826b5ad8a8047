from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tcompress.data import Columns, read_examples
from tcompress.errors import DataError
from tcompress.evaluate.gating.guards import (
    check_guards,
    check_ids,
    repeated_inputs_notes,
    too_few_words,
)
from tcompress.evaluate.gating.sides import Sides
from tcompress.evaluate.gating.verdict import Check
from tcompress.evaluate.noninferiority import Verdict

LABELS = ("cat", "dog", "owl")
Classes = npt.NDArray[np.int64]


def guards(baseline: Classes, candidate: Classes, truth: Classes) -> dict[str, Check]:
    logits = np.eye(3, dtype=np.float32)
    checks = check_guards(Sides(logits[baseline], logits[candidate], truth, LABELS))
    return {check.name: check for check in checks}


def noisy(classes: Classes, share: float, seed: int) -> Classes:
    rng = np.random.default_rng(seed)
    other = (classes + rng.integers(1, 3, len(classes))) % 3
    return np.where(rng.random(len(classes)) < share, other, classes)


TRUTH = np.random.default_rng(0).choice(3, 600, p=[0.6, 0.3, 0.1])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_candidates_that_err_at_random_are_left_to_the_metric(share: float):
    found = guards(noisy(TRUTH, 0.05, 1), noisy(TRUTH, share, 2), TRUTH)
    assert {check.verdict for check in found.values()} == {Verdict.PASS}


@pytest.mark.parametrize(
    ("renamed", "names"),
    [
        ([1, 0, 2], "cat->dog, dog->cat"),
        ([0, 2, 1], "dog->owl, owl->dog"),
        ([1, 2, 0], "cat->dog, dog->owl, owl->cat"),
    ],
)
def test_permuted_labels_are_named(renamed: list[int], names: str):
    baseline = noisy(TRUTH, 0.05, 1)
    candidate = np.asarray(renamed)[noisy(TRUTH, 0.1, 2)]
    found = guards(baseline, candidate, TRUTH)["permuted"]
    assert found.verdict is Verdict.REGRESSION
    assert f"({names})" in found.words


def test_guessing_is_no_permutation():
    for seed in range(20):
        guessed = np.random.default_rng(seed).integers(0, 3, len(TRUTH))
        assert guards(TRUTH, guessed, TRUTH)["permuted"].verdict is Verdict.PASS


def test_accuracy_below_the_most_frequent_label_is_a_regression():
    found = guards(TRUTH, noisy(TRUTH, 0.6, 1), TRUTH)["majority"]
    assert found.verdict is Verdict.REGRESSION
    assert found.bound < found.limit == np.mean(TRUTH == 0)
    assert "always saying 'cat'" in found.words


def test_falling_below_the_most_frequent_label_by_chance_is_inconclusive():
    truth = np.asarray([0] * 12 + [1] * 8)
    before, now = truth.copy(), truth.copy()
    before[:7] = 1  # 13 of 20 right, and 12 of 20 are cats
    now[:9] = 1
    assert guards(before, now, truth)["majority"].verdict is Verdict.INCONCLUSIVE


def test_baseline_below_the_most_frequent_label_asks_nothing_of_the_candidate():
    baseline = noisy(TRUTH, 0.6, 1)
    assert guards(baseline, baseline, TRUTH)["majority"].verdict is Verdict.PASS


def test_ids_must_be_unique_and_repeated_inputs_are_counted(data: Path):
    examples = read_examples(data, Columns()).take(range(40))
    check_ids(examples)
    assert repeated_inputs_notes(examples) == ()
    doubled = examples.take([*range(40), 3, 3])
    with pytest.raises(DataError, match="id '3' stands in it 3 times; answers are paired by id"):
        check_ids(doubled)
    own = replace(doubled, ids=tuple(map(str, range(42))))
    check_ids(own)
    assert repeated_inputs_notes(own)[0].startswith("2 of 42 examples repeat the input")


@pytest.mark.parametrize(("max_drop", "fewest"), [(0.01, 299), (0.02, 149), (0.05, 59)])
def test_sets_that_can_prove_nothing_are_told_before_asking(max_drop: float, fewest: int):
    assert too_few_words(fewest, max_drop, alpha=0.05) is None
    words = too_few_words(fewest - 1, max_drop, alpha=0.05)
    assert words is not None
    assert f"a limit of {100 * max_drop:.2f} points" in words
    assert words.endswith(f"at least {fewest}")
