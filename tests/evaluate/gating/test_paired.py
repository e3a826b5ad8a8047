import numpy as np
import pytest
from scipy import stats

from tcompress.evaluate import metrics
from tcompress.evaluate.bootstrap import bca_bounds, mean_bounds
from tcompress.evaluate.gating.paired import metric_drop
from tcompress.evaluate.gating.sides import Sides
from tcompress.evaluate.noninferiority import damage_bounds


def make_sides(truth: np.ndarray, expected: np.ndarray, found: np.ndarray) -> Sides:
    classes = int(max(truth.max(), expected.max(), found.max())) + 1
    eye = np.eye(classes, dtype=np.float32)
    return Sides(eye[expected], eye[found], truth, tuple(map(str, range(classes))))


def draw(
    n: int, seed: int, lost: float = 0.06, gained: float = 0.04, shares=(0.5, 0.3, 0.2)
) -> Sides:
    """Answers of a baseline that is right in 80 %, and of a candidate that flips some."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(len(shares), p=shares, size=n)
    wrong = (truth + rng.integers(1, len(shares), size=n)) % len(shares)
    was_right, turns = rng.random(n) < 0.8, rng.random(n)
    is_right = np.where(was_right, turns >= lost / 0.8, turns < gained / 0.2)
    return make_sides(truth, np.where(was_right, truth, wrong), np.where(is_right, truth, wrong))


def test_bounds_equal_scipys_paired_bca_bootstrap():
    sides = draw(1500, seed=1)

    def drop(rows: np.ndarray) -> float:
        values = [
            metrics.macro_f1(metrics.confusion(sides.truth[rows], side[rows], 3))
            for side in (sides.expected, sides.found)
        ]
        return float(values[0] - values[1])

    expected = stats.bootstrap(
        (np.arange(len(sides)),),
        drop,
        vectorized=False,
        n_resamples=1500,
        method="BCa",
        confidence_level=0.9,
        rng=np.random.default_rng(0),
    ).confidence_interval
    found = metric_drop(sides, metrics.macro_f1)
    assert found.estimate == pytest.approx(drop(np.arange(len(sides))))
    spread = found.bounds.high - found.bounds.low
    assert found.bounds.low == pytest.approx(expected.low, abs=0.05 * spread)
    assert found.bounds.high == pytest.approx(expected.high, abs=0.05 * spread)


def test_bounds_of_a_skewed_mean_equal_scipys():
    values = np.random.default_rng(0).exponential(size=80)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, confidence_level=0.9, rng=np.random.default_rng(1)
    ).confidence_interval
    found = mean_bounds(values, alpha=0.05)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_with_many_flips_the_bounds_of_the_accuracy_are_those_of_its_test():
    sides = draw(4000, seed=2)
    found = metric_drop(sides, metrics.accuracy).bounds
    exact = damage_bounds(sides.counts)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=5e-4)


def test_without_flips_the_rarest_class_bounds_what_went_unseen():
    # Of 900 and 100 examples, all right: 3 more examples of the rare class could be wrong.
    truth = np.repeat([0, 1], [900, 100])
    found = metric_drop(make_sides(truth, truth, truth), metrics.macro_f1)
    lost = 100 * (1 - 0.05 ** (1 / 100))
    counts = np.array([[900.0, 0, 0], [lost, 100 - lost, 0]])
    assert found.estimate == 0
    assert found.bounds.high == pytest.approx(1 - metrics.macro_f1(counts))
    assert found.bounds.low < 0


def test_dependent_examples_widen_the_bounds():
    sides = draw(500, seed=3)
    copies = make_sides(*(np.repeat(x, 4) for x in (sides.truth, sides.expected, sides.found)))
    groups = [str(i) for i in np.repeat(np.arange(500), 4)]
    once, naive = (metric_drop(s, metrics.macro_f1).bounds for s in (sides, copies))
    grouped = metric_drop(copies, metrics.macro_f1, groups=groups)
    assert grouped.independent == 500
    assert naive.high - naive.low < 0.6 * (once.high - once.low)
    assert grouped.bounds.high - grouped.bounds.low >= 0.95 * (once.high - once.low)


def test_relative_drop_is_a_part_of_the_baselines_value():
    sides = draw(4000, seed=4)
    plain, part = (metric_drop(sides, metrics.mcc, relative=r) for r in (False, True))
    assert part.estimate == pytest.approx(plain.estimate / plain.before)
    assert part.bounds.high == pytest.approx(plain.bounds.high / plain.before, rel=0.1)


def test_bounds_are_infinite_where_a_sample_has_no_value():
    def inverse(counts: np.ndarray) -> np.ndarray:
        return np.where(counts[:, 0] > 0, 1 / np.maximum(counts[:, 0], 1), np.nan)

    found = bca_bounds(inverse, np.ones(3), alpha=0.05, resamples=200)
    assert (found.low, found.high) == (-np.inf, np.inf)


@pytest.mark.parametrize(
    "shares", [pytest.param((0.5, 0.5), id="even"), pytest.param((0.95, 0.05), id="one-class-rare")]
)
def test_bounds_of_macro_f1_miss_the_truth_as_rarely_as_they_say(shares):
    # A sample so large that it stands for the truth.
    truth = metric_drop(draw(400_000, 99, 0.04, 0.02, shares), metrics.macro_f1).estimate
    bounds = [
        metric_drop(draw(872, seed, 0.04, 0.02, shares), metrics.macro_f1).bounds
        for seed in range(120)
    ]
    too_low = np.mean([bound.high < truth for bound in bounds])
    too_high = np.mean([bound.low > truth for bound in bounds])
    assert max(too_low, too_high) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 120)
