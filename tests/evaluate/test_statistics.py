import math
from collections.abc import Callable

import numpy as np
import pytest

from tcompress.evaluate.metrics import CLASSIFICATION, confusion
from tcompress.evaluate.statistics import (
    Interval,
    accuracy_interval,
    bootstrap_intervals,
    ratio_interval,
)

Z95 = 1.959963984540054


def test_accuracy_interval_solves_wilsons_equation() -> None:
    interval = accuracy_interval(800, 872)
    for p in (interval.low, interval.high):
        assert abs(800 / 872 - p) == pytest.approx(Z95 * math.sqrt(p * (1 - p) / 872))
    assert accuracy_interval(10, 10).high == 1


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_ratio_interval_of_few_blocks_is_their_range_with_the_confidence_it_has(
    blocks: int,
) -> None:
    ratios = [0.5, 0.9, 0.6, 0.8, 0.7][:blocks]
    median, interval = ratio_interval(ratios)
    assert median == np.median(ratios)
    assert interval == Interval(min(ratios), max(ratios), 1 - 2.0 ** (1 - blocks))


@pytest.mark.parametrize("blocks", [6, 8, 20])
def test_ratio_interval_covers_the_true_median_from_few_blocks_on(blocks: int) -> None:
    rng = np.random.default_rng(0)
    found = [ratio_interval(rng.lognormal(0, 0.1, blocks), resamples=500)[1] for _ in range(400)]
    covered = float(np.mean([interval.low <= 1 <= interval.high for interval in found]))
    assert covered >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / 400)


def test_ratio_interval_of_equal_ratios_is_a_point_and_seeded_ones_repeat() -> None:
    assert ratio_interval([0.8] * 10) == (0.8, Interval(0.8, 0.8, 0.95))
    ratios = np.linspace(0.7, 0.9, 9)
    assert ratio_interval(ratios, seed=3) == ratio_interval(ratios, seed=3)


def test_bootstrap_of_a_table_is_the_bootstrap_of_its_examples() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    found = np.where(rng.random(300) < 0.7, truth, rng.integers(0, 3, 300))
    counts = confusion(truth, found, 3)
    drawn = rng.integers(0, 300, (2000, 300))
    tables = np.stack([confusion(truth[rows], found[rows], 3) for rows in drawn])
    intervals = bootstrap_intervals(counts, CLASSIFICATION, resamples=20_000)
    assert intervals == bootstrap_intervals(counts, CLASSIFICATION, resamples=20_000)
    for name, metric in CLASSIFICATION.items():
        low, high = np.quantile(metric(tables), [0.025, 0.975])
        assert intervals[name].low == pytest.approx(low, abs=0.01)
        assert intervals[name].high == pytest.approx(high, abs=0.01)


def test_bootstrap_in_pieces_draws_as_many_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def metric(tables: np.ndarray) -> np.ndarray:
        sizes.append(len(tables))
        return tables[:, 0, 0]

    monkeypatch.setattr("tcompress.evaluate.statistics._NUMBERS_AT_ONCE", 40)
    bootstrap_intervals(np.array([[3.0, 1.0], [0.0, 2.0]]), {"first": metric}, resamples=25)
    assert sizes == [10, 10, 5]


def test_bootstrap_of_answers_without_spread_has_no_confidence() -> None:
    counts = confusion([0, 1, 1], [0, 1, 1], 2)
    found = bootstrap_intervals(counts, {"accuracy": CLASSIFICATION["accuracy"]})
    assert found == {"accuracy": Interval(1.0, 1.0, 0.0)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy_interval(3, 2), "correct=3, n=2"),
        (lambda: ratio_interval([]), "finite and positive"),
        (lambda: ratio_interval([1.0, math.nan]), "finite and positive"),
        (lambda: ratio_interval([1.0], resamples=0), "resamples must be at least 1"),
    ],
)
def test_misuse_names_the_expected_and_the_given_value(
    call: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call()
