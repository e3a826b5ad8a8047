"""Intervals of what is measured: of accuracies and other metrics, of ratios of latencies."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

# Numbers of drawn tables that are in memory at a time.
_NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Interval:
    """A confidence interval, with the confidence that it really has."""

    low: float
    high: float
    confidence: float


def accuracy_interval(correct: int, n: int, confidence: float = 0.95) -> Interval:
    """Compute Wilson's score interval of an accuracy.

    Args:
        correct: Examples that were answered right.
        n: All examples.
        confidence: Two-sided, between 0 and 1.

    Returns:
        The interval, within [0, 1].

    Raises:
        ValueError: If not 0 <= correct <= n with a positive n, or `confidence` is outside (0, 1).
    """
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"expected 0 <= correct <= n with n >= 1, got correct={correct}, n={n}")
    check_open_unit("confidence", confidence)
    found = stats.binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return Interval(float(found.low), float(found.high), confidence)


def ratio_interval(
    ratios: Sequence[float] | NDArray[np.float64],
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> tuple[float, Interval]:
    """Estimate the median of per-block latency ratios, with an interval over blocks.

    The interval is the wider of two on each side: the percentile bootstrap, which alone holds the
    true median in 92 to 94 of 100 cases with 6 to 20 blocks (simulated with log-normal ratios), and
    the exact one between two of the sorted blocks, by the binomial distribution.

    The range of k blocks holds the true median with the probability 1 - 2**(1 - k), and no
    interval between two of them can do better. With fewer blocks than `confidence` needs (6 for
    0.95) the range itself is returned with that lower confidence; of a single block this is the
    block's value with confidence 0. A claim must therefore look at `Interval.confidence`.

    Args:
        ratios: One ratio of latencies per block, `(blocks,)`, positive, without unit.
        confidence: Two-sided, between 0 and 1.
        seed: Seed of the resampling; equal input gives equal output.
        resamples: Number of bootstrap samples.

    Returns:
        The median and its interval.

    Raises:
        ValueError: If `ratios` is empty or holds anything but finite positive numbers,
            `confidence` is outside (0, 1), or `resamples` is below 1.
    """
    values = np.asarray(ratios, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.all(np.isfinite(values) & (values > 0)):
        raise ValueError(f"ratios must be finite and positive, shape (blocks,), got {values}")
    check_open_unit("confidence", confidence)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    median = float(np.median(values))
    reached = 1 - 2.0 ** (1 - values.size)
    if reached < confidence:
        return median, Interval(float(values.min()), float(values.max()), reached)
    drawn = np.random.default_rng(seed).choice(values, size=(resamples, values.size))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.median(drawn, axis=1), [tail, 1 - tail])
    exact: Any = stats.quantile_test(values, q=median, p=0.5).confidence_interval(confidence)
    return median, Interval(float(min(low, exact.low)), float(max(high, exact.high)), confidence)


def bootstrap_intervals(
    counts: NDArray[np.float64],
    metrics: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]],
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, Interval]:
    """Bound metrics of a confusion table, by a percentile bootstrap over its examples.

    Examples in one cell of the table are alike, so instead of examples the table itself is drawn;
    it is multinomial. Where a metric has one value in all drawn tables, as when every answer is
    right, the interval is that point with confidence 0: the bootstrap knows nothing then.

    Args:
        counts: Examples per cell, of any shape, none negative and not all 0.
        metrics: Functions of tables, `(resamples, *counts.shape)`, to values, `(resamples,)`.
        confidence: Two-sided, between 0 and 1.
        seed: Seed of the resampling; equal input gives equal output.
        resamples: Number of bootstrap samples.

    Returns:
        The interval of each metric, by name.

    Raises:
        ValueError: If `confidence` is outside (0, 1).
    """
    check_open_unit("confidence", confidence)
    tail, values = (1 - confidence) / 2, {name: np.empty(resamples) for name in metrics}
    done = 0
    for tables in _resampled(counts, resamples, seed):
        for name, metric in metrics.items():
            values[name][done : done + len(tables)] = metric(tables)
        done += len(tables)
    bounds = {name: np.quantile(drawn, [tail, 1 - tail]) for name, drawn in values.items()}
    return {
        name: Interval(float(low), float(high), confidence if low < high else 0.0)
        for name, (low, high) in bounds.items()
    }


def _resampled(
    counts: NDArray[np.float64], resamples: int, seed: int
) -> Iterator[NDArray[np.float64]]:
    """Yield tables as `counts` by the stack, `(some, *counts.shape)`, `resamples` in all."""
    rng, cells = np.random.default_rng(seed), np.flatnonzero(counts)
    total, at_once = counts.sum(), max(1, _NUMBERS_AT_ONCE // counts.size)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        tables = np.zeros((size, counts.size))
        tables[:, cells] = rng.multinomial(int(total), counts.flat[cells] / total, size)
        yield tables.reshape(size, *counts.shape)


def check_open_unit(name: str, value: float) -> None:
    """Raise unless a value is a fraction strictly between 0 and 1.

    Args:
        name: How the error calls it.
        value: The value.

    Raises:
        ValueError: If it is not.
    """
    if not 0 < value < 1:
        raise ValueError(f"{name} must be between 0 and 1 (a fraction), got {value}")
