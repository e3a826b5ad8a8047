import numpy as np
import pytest

from tcompress.evaluate.stability import describe

CALL_NS = 10_000_000


def measured(seed: int, drift: float = 0.0, turns: int = 24) -> list[tuple[float, list[int]]]:
    """Make turns of ten calls, half a second apart, of which each and each call is noisy by 2 %."""
    rng = np.random.default_rng(seed)
    trend = 1 + drift * np.linspace(0, 1, turns)
    noise = np.exp(rng.normal(0, 0.02, (turns, 1)) + rng.normal(0, 0.02, (turns, 10)))
    calls = np.rint(CALL_NS * trend[:, np.newaxis] * noise).astype(int).tolist()
    return [(0.5 * number, taken) for number, taken in enumerate(calls)]


def test_noise_is_no_drift_and_a_drift_of_ten_percent_is():
    assert sum(describe(measured(seed)).drift.flagged for seed in range(100)) <= 2
    assert sum(describe(measured(seed, drift=0.1)).drift.flagged for seed in range(100)) >= 98
    assert sum(describe(measured(seed, drift=-0.1)).drift.flagged for seed in range(100)) >= 98


def test_slope_is_a_fraction_of_the_median_per_minute():
    steady = [(10.0 * turn, [CALL_NS + 100_000 * turn] * 3) for turn in range(7)]
    found = describe(steady).drift
    assert found.slope_per_minute == pytest.approx(0.06 / 1.03)
    assert found.flagged


def test_known_drift_too_small_to_matter_is_not_flagged():
    steady = [(10.0 * turn, [CALL_NS + 40_000 * turn] * 3) for turn in range(7)]
    assert not describe(steady).drift.flagged


def test_five_turns_in_order_may_be_chance():
    rising = [(float(turn), [CALL_NS * (10 + turn)]) for turn in range(5)]
    found = describe(rising).drift
    assert found.slope_per_minute is None
    assert not found.flagged


def test_spread_and_outliers_are_of_single_calls():
    calls = [98, 99, 100, 101, 102]
    found = describe([(0.0, [1_000_000 * call for call in (*calls, 150)])])
    assert found.to_json() == {
        "mad": 1.5,
        "cv": pytest.approx(np.std([*calls, 150], ddof=1) / np.mean([*calls, 150])),
        "outliers": 1,
        "drift": {"slope_per_minute": None, "flagged": False},
    }


def test_a_single_call_has_no_variation():
    assert describe([(0.0, [CALL_NS])]).cv is None


def test_no_call_is_refused():
    with pytest.raises(ValueError, match="at least one measured call"):
        describe([(0.0, [])])
