from itertools import combinations

import numpy as np
import pytest
import torch

from tcompress.compress.elimination import Regression, damped, eliminate, exchange, loss_of

UNITS, OUTPUTS, ROWS = 6, 3, 40


def problem_of(x: np.ndarray, weights: np.ndarray, width: int) -> Regression:
    covariance = torch.tensor(x.T @ x / len(x))
    return Regression(covariance, torch.tensor(weights), width)


def random_problem(width: int, seed: int = 0) -> tuple[Regression, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    channels = UNITS * width
    x = rng.standard_normal((ROWS, channels)) @ rng.standard_normal((channels, channels))
    weights = rng.standard_normal((channels, OUTPUTS))
    return problem_of(x, weights, width), x, weights


def residual(x: np.ndarray, weights: np.ndarray, kept: tuple[int, ...], width: int) -> float:
    """Mean squared error of the best fit of x W by the kept units."""
    channels = [unit * width + i for unit in kept for i in range(width)]
    target = x @ weights
    fit = np.linalg.lstsq(x[:, channels], target, rcond=None)[0]
    return float(((target - x[:, channels] @ fit) ** 2).sum() / len(x))


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_each_removal_is_the_best_single_one_by_brute_force(width: int, seed: int) -> None:
    problem, x, weights = random_problem(width, seed)
    found = eliminate(problem)
    left = tuple(range(UNITS))
    for unit, loss in zip(found.order, found.losses, strict=True):
        without = {u: residual(x, weights, tuple(v for v in left if v != u), width) for u in left}
        assert unit == min(without, key=lambda u: without[u])
        assert loss == pytest.approx(without[unit], rel=1e-8)
        left = tuple(v for v in left if v != unit)
    assert sorted(found.order) == list(range(UNITS))
    assert list(found.losses) == sorted(found.losses)


@pytest.mark.parametrize("width", [1, 3])
def test_the_loss_of_any_choice_is_the_least_squares_residual(width: int) -> None:
    problem, x, weights = random_problem(width)
    for count in range(UNITS + 1):
        for kept in combinations(range(UNITS), count):
            expected = residual(x, weights, kept, width)
            assert loss_of(problem, kept) == pytest.approx(expected, rel=1e-8, abs=1e-9)


def test_many_units_go_several_at_a_time_to_the_same_total() -> None:
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((900, 300)), rng.standard_normal((300, OUTPUTS))
    problem = problem_of(x, weights, 1)
    found = eliminate(problem)
    assert sorted(found.order) == list(range(300))
    assert list(found.losses) == sorted(found.losses)
    for gone in (5, 150, 300):  # 5 go at a time
        left = tuple(set(range(300)) - set(found.order[:gone]))
        assert found.losses[gone - 1] == pytest.approx(loss_of(problem, left), rel=1e-6)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_exchanges_never_raise_the_loss(width: int, seed: int) -> None:
    problem, _, _ = random_problem(width, seed)
    for count in range(UNITS + 1):
        for kept in combinations(range(UNITS), count):
            better = exchange(problem, kept)
            assert len(better) == count
            assert better == tuple(sorted(set(better)))
            assert loss_of(problem, better) <= loss_of(problem, kept) * (1 + 1e-9) + 1e-12


def greedy_trap() -> Regression:
    """y = a + b, and c is nearly (a + b) / 2: alone the best to keep, the first that greedy drops.

    With a and b there, c adds nothing; once only one may stay, c would be the right one.
    """
    rng = np.random.default_rng(0)
    a, b, noise = rng.standard_normal((3, 500))
    x = np.stack([a, b, (a + b) / 2 + 0.1 * noise], axis=1)
    return problem_of(x, np.array([[1.0], [1.0], [0.0]]), 1)


def test_exchange_finds_the_optimum_that_greedy_misses() -> None:
    problem = greedy_trap()
    greedy = (eliminate(problem).order[-1],)
    best = min(((unit,) for unit in range(3)), key=lambda kept: loss_of(problem, kept))
    assert loss_of(problem, greedy) > 10 * loss_of(problem, best)
    assert exchange(problem, greedy) == best == (2,)


def test_features_that_never_vary_can_be_eliminated() -> None:
    silent = Regression(damped(torch.zeros(4, 4).double(), 1e-3), torch.zeros(4, 2).double(), 2)
    assert eliminate(silent).losses == (0.0, 0.0)
    empty = Regression(damped(torch.zeros(0, 0).double(), 1e-3), torch.zeros(0, 2).double(), 2)
    assert eliminate(empty).order == ()
