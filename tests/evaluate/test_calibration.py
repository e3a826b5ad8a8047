import numpy as np
import pytest

from tcompress.evaluate.calibration import (
    calibration_error,
    divergences,
    negative_log_likelihood,
)


def logs(confidence: list[float] | np.ndarray) -> np.ndarray:
    p = np.asarray(confidence)
    return np.log(np.stack([p, 1 - p], axis=1))


def test_bins_hold_equally_many_examples_of_similar_confidence():
    confidence = [0.9, 0.6, 0.9, 0.6]  # right in 1 of 2 at 0.9, in 2 of 2 at 0.6
    found = calibration_error(logs(confidence), np.array([0, 0, 1, 0]), bins=2)
    assert found == pytest.approx((abs(0.5 - 0.9) + abs(1 - 0.6)) / 2)


def test_calibrated_answers_have_no_error_beyond_that_of_few_examples():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 20_000)
    truth = (rng.random(len(confidence)) > confidence).astype(np.int64)
    limit = 0.8 * np.sqrt(0.25 * 15 / len(confidence))
    assert calibration_error(logs(confidence), truth) < 1.2 * limit
    assert calibration_error(logs(0.5 + confidence / 2), truth) == pytest.approx(0.125, abs=0.02)


def test_fewer_examples_than_bins_are_a_bin_each():
    assert calibration_error(logs([0.8]), np.array([0])) == pytest.approx(0.2)


def test_likelihood_and_divergence_stay_finite_where_a_probability_vanishes():
    sure, other = np.array([[0.0, -2000.0]]), np.array([[-2000.0, 0.0]])
    assert negative_log_likelihood(sure, np.array([1])) == 2000
    assert divergences(sure, other) == pytest.approx([2000])
    assert divergences(sure, sure) == 0
