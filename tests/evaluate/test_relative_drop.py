import math

import numpy as np
import pytest
from scipy import optimize, stats

from tcompress.evaluate.noninferiority import PairedCounts, Verdict
from tcompress.evaluate.relative_drop import relative_bounds, retained_accuracy, score_interval

Z95 = stats.norm.isf(0.05)


def likeliest(drop: float, both: int, lost: int, gained: int) -> tuple[float, float]:
    """P(lost) and P(gained) of highest likelihood given the drop, among answers right somewhere."""

    def cells(q: float) -> tuple[float, float, float]:
        kept = 1 - drop
        return kept - (1 + kept) * q, (1 - kept) + kept * q, q

    def loss(q: float) -> float:
        pairs = zip((both, lost, gained), cells(q), strict=True)
        return -sum(count * math.log(p) for count, p in pairs if count)

    low = max(0.0, drop / (drop - 1)) + 1e-12
    found = optimize.minimize_scalar(
        loss,
        bounds=(low, (1 - drop) / (2 - drop) - 1e-12),
        method="bounded",
        options={"xatol": 1e-12},
    )
    return cells(found.x)[1:]


@pytest.mark.parametrize(("both", "lost", "gained"), [(80, 14, 12), (300, 30, 11), (40, 10, 25)])
def test_bounds_have_score_z_under_the_maximised_likelihood(both, lost, gained):
    bounds = relative_bounds(PairedCounts(both, lost, gained, 50))
    n = both + lost + gained
    for drop, z in ((bounds.low, Z95), (bounds.high, -Z95)):
        p, q = likeliest(drop, both, lost, gained)
        score = (lost - gained - drop * (both + lost)) / math.sqrt(n * (1 - drop) * (p + q))
        assert score == pytest.approx(z, abs=1e-4)


def test_score_interval_equals_the_published_one():
    # Fagerland, Lydersen and Laake (2014), Statistics in Medicine 33:2850-2875: airway
    # reactivity, the ratio 2/8 by its score interval is 0.065 to 0.907.
    found = score_interval(PairedCounts(both_right=1, lost=7, gained=1, both_wrong=12), 0.95)
    assert (round(1 - found.high, 3), round(1 - found.low, 3)) == (0.065, 0.907)


@pytest.mark.parametrize(("retained", "n"), [(0.99, 299), (0.999, 2995)])
def test_without_flips_only_right_answers_are_evidence(retained, n):
    for wrong in (0, 400):
        assert retained_accuracy(PairedCounts(n, 0, 0, wrong), retained).verdict is Verdict.PASS
        fewer = retained_accuracy(PairedCounts(n - 1, 0, 0, wrong), retained)
        assert fewer.verdict is Verdict.INCONCLUSIVE
    upper = relative_bounds(PairedCounts(n, 0, 0, 3)).high
    assert upper == pytest.approx(1 - 0.05 ** (1 / n))


def test_a_bound_on_losses_alone_is_clopper_pearson_of_the_baselines_right_answers():
    expected = stats.binomtest(4, 500, alternative="less").proportion_ci(0.95, method="exact").high
    assert relative_bounds(PairedCounts(496, 4, 0, 99)).high == pytest.approx(expected)


@pytest.mark.parametrize(
    ("n", "accuracy", "flip_rate", "retained", "times"),
    [
        pytest.param(872, 0.6, 0.1, 0.99, 10_000, id="many-flips"),
        pytest.param(300, 0.9, 0.02, 0.99, 700, id="few-flips"),
        pytest.param(3000, 0.9, 0.01, 0.999, 1500, id="99.9"),
    ],
)
def test_verdicts_at_the_limit_are_wrong_in_at_most_5_percent(
    n, accuracy, flip_rate, retained, times
):
    damage = (1 - retained) * accuracy
    lost, gained = (flip_rate + damage) / 2, (flip_rate - damage) / 2
    cells = [accuracy - lost, lost, gained, 1 - accuracy - gained]
    tables = np.random.default_rng(0).multinomial(n, cells, size=times)
    verdicts = [retained_accuracy(PairedCounts(*map(int, row)), retained).verdict for row in tables]
    for wrong in (Verdict.PASS, Verdict.REGRESSION):
        assert verdicts.count(wrong) / times <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / times)


def test_a_baseline_that_is_never_right_cannot_be_kept():
    with pytest.raises(ValueError, match="the baseline is never right"):
        retained_accuracy(PairedCounts(0, 0, 5, 5), 0.99)
