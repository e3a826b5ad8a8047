import numpy as np
import pytest
import torch

from tcompress.compress.moments import Moments

FEATURES, TARGETS = 5, 3


def rows(count: int, seed: int, offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, FEATURES)) @ rng.standard_normal((FEATURES, FEATURES))
    y = x[:, :TARGETS] + rng.standard_normal((count, TARGETS))
    return torch.tensor(x + offset, dtype=torch.float32), torch.tensor(y - offset).float()


def gathered(*parts: tuple[torch.Tensor, ...]) -> Moments:
    moments = Moments(FEATURES, TARGETS)
    for part in parts:
        moments.add(*part)
    return moments


def joint_covariance(x: torch.Tensor, y: torch.Tensor, weights: np.ndarray | None) -> np.ndarray:
    together = np.concatenate([x.double().numpy(), y.double().numpy()], axis=1)
    return np.cov(together.T, aweights=weights, ddof=0)


def assert_are(moments: Moments, expected: np.ndarray, rtol: float) -> None:
    tolerance = {"rtol": rtol, "atol": rtol * np.abs(expected).max()}
    square, cross = expected[:FEATURES, :FEATURES], expected[:FEATURES, FEATURES:]
    np.testing.assert_allclose(moments.covariance, square, **tolerance)
    np.testing.assert_allclose(moments.cross_covariance, cross, **tolerance)
    variance = expected.diagonal()[FEATURES:]
    np.testing.assert_allclose(moments.target_variance, variance, **tolerance)


@pytest.mark.parametrize("weighted", [False, True])
def test_moments_are_numpys_covariances(weighted: bool) -> None:
    x, y = rows(400, 0)
    weights = torch.rand(400, generator=torch.Generator().manual_seed(0)) if weighted else None
    halves = [
        (x[half], y[half], None if weights is None else weights[half])
        for half in (slice(150), slice(150, None))
    ]
    moments = gathered(*halves)
    numpy_weights = None if weights is None else weights.double().numpy()
    assert_are(moments, joint_covariance(x, y, numpy_weights), rtol=1e-6)
    for mean, z in zip(moments.means, (x, y), strict=True):
        expected = np.average(z.double().numpy(), axis=0, weights=numpy_weights)
        np.testing.assert_allclose(mean, expected, atol=1e-6)


def test_a_large_offset_costs_no_digits() -> None:
    x, y = rows(400, 0, offset=3000.0)
    assert_are(gathered((x, y)), joint_covariance(x, y, None), rtol=1e-6)
    assert_are(gathered((x[:7], y[:7]), (x[7:], y[7:])), joint_covariance(x, y, None), rtol=1e-6)


def test_merged_moments_are_those_of_all_rows_at_once() -> None:
    (x, y), (u, v) = rows(100, 0, offset=50.0), rows(300, 1)
    whole = joint_covariance(torch.cat([x, u]), torch.cat([y, v]), None)
    one, other = gathered((x, y)), gathered((u, v))
    for merged in (one.merged(other), other.merged(one)):
        assert merged.weight == 400
        assert_are(merged, whole, rtol=1e-6)
        mean = torch.cat([x, u]).double().mean(0)
        torch.testing.assert_close(merged.means[0], mean, rtol=1e-6, atol=1e-6)
    assert_are(one, joint_covariance(x, y, None), rtol=1e-6)
    empty = Moments(FEATURES, TARGETS)
    assert one.merged(empty) is one
    assert empty.merged(one) is one


def test_moments_without_centre_take_the_mean_for_zero() -> None:
    x, y = rows(200, 2, offset=2.0)
    plain = gathered((x, y)).without_centre()
    both = torch.cat([x, y], dim=1).double()
    assert_are(plain, (both.T @ both / 200).numpy(), rtol=1e-6)


def test_no_rows_and_no_targets_are_fine() -> None:
    x, _ = rows(20, 0)
    moments = Moments(FEATURES)
    moments.add(x[:0])
    moments.add(x)
    np.testing.assert_allclose(moments.covariance, np.cov(x.double().numpy().T, ddof=0), rtol=1e-5)
    assert moments.cross_covariance.shape == (FEATURES, 0)
