import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import optimize, stats

from tcompress.evaluate.noninferiority import (
    BoundMethod,
    PairedCounts,
    Verdict,
    damage_bounds,
    mcnemar_exact,
    non_inferiority,
    pass_probability,
    provable_margin,
    required_examples,
    tango_interval,
)

Z95 = 1.959963984540054


def table(lost: int, gained: int, n: int) -> PairedCounts:
    return PairedCounts(both_right=n - lost - gained, lost=lost, gained=gained, both_wrong=0)


def verdict(lost: int, gained: int, n: int, margin: float) -> Verdict:
    return non_inferiority(table(lost, gained, n), margin).verdict


def error_rates(n: int, flip_rate: float, damage: float, margin: float) -> tuple[float, float]:
    """P(pass) and P(regression), summed over all tables (the tail beyond 1e-9 left out).

    For a number of gains, `pass` holds up to a number of losses and `regression` from one on;
    both numbers only grow with the gains.
    """
    p_lost, p_gained = (flip_rate + damage) / 2, (flip_rate - damage) / 2
    passing, failing = -1, 0
    p_pass = p_regression = 0.0
    for gained in range(int(stats.binom.isf(1e-9, n, p_gained)) + 1):
        while verdict(passing + 1, gained, n, margin) is Verdict.PASS:
            passing += 1
        while failing + gained <= n and verdict(failing, gained, n, margin) is not (
            Verdict.REGRESSION
        ):
            failing += 1
        chance = stats.binom.pmf(gained, n, p_gained)
        lost = stats.binom(n - gained, p_lost / (1 - p_gained))
        p_pass += chance * lost.cdf(passing)
        p_regression += chance * lost.sf(failing - 1)
    return float(p_pass), float(p_regression)


# Tango's interval


@pytest.mark.parametrize(
    ("lost", "gained", "n", "confidence", "low", "high"),
    [
        # Fagerland, Lydersen and Laake (2014), Statistics in Medicine 33:2850-2875, tables I, II
        pytest.param(1, 7, 21, 0.95, -0.517, -0.026, id="airway-reactivity"),
        # R package contingencytables, Tango_asymptotic_score_CI_paired_2x2(cavo_2012)
        pytest.param(6, 16, 161, 0.95, -0.1240, -0.0054, id="consolidation-therapy"),
        # R package PropCIs, scoreci.mp(25, 28, 618, 0.90)
        pytest.param(28, 25, 618, 0.90, -0.0148, 0.0247, id="PropCIs"),
    ],
)
def test_tango_interval_equals_published_values(
    lost: int, gained: int, n: int, confidence: float, low: float, high: float
) -> None:
    decimals = 3 if n == 21 else 4
    interval = tango_interval(lost, gained, n, confidence)
    assert round(interval.low, decimals) == low
    assert round(interval.high, decimals) == high


@pytest.mark.parametrize(("lost", "gained", "n"), [(12, 5, 100), (0, 3, 40), (9, 0, 30), (2, 2, 5)])
def test_tango_bounds_have_score_z_under_the_maximised_likelihood(
    lost: int, gained: int, n: int
) -> None:
    interval = tango_interval(lost, gained, n, 0.95)
    for damage, z in ((interval.low, Z95), (interval.high, -Z95)):

        def loss(q: float, damage: float = damage) -> float:
            cells = (q + damage, q, 1 - 2 * q - damage)
            return -sum(
                k * math.log(p)
                for k, p in zip((lost, gained, n - lost - gained), cells, strict=True)
                if k
            )

        bounds = (max(0.0, -damage) + 1e-12, (1 - damage) / 2 - 1e-12)
        q = optimize.minimize_scalar(
            loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}
        ).x
        score = (lost - gained - n * damage) / math.sqrt(n * (2 * q + damage - damage**2))
        assert score == pytest.approx(z, abs=1e-4)


def test_tango_bound_is_zero_at_the_confidence_of_mcnemars_test() -> None:
    confidence = float(stats.chi2.cdf((12 - 5) ** 2 / (12 + 5), df=1))
    assert tango_interval(12, 5, 100, confidence).low == pytest.approx(0, abs=1e-9)
    assert tango_interval(5, 12, 100, confidence).high == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("n", [1, 20, 100_000])
def test_tango_interval_is_right_at_the_extremes(n: int) -> None:
    limit = Z95**2 / (n + Z95**2)
    unflipped = tango_interval(0, 0, n, 0.95)
    assert (unflipped.low, unflipped.high) == pytest.approx((-limit, limit))
    assert tango_interval(n, 0, n, 0.95).high == 1
    assert tango_interval(n, 0, n, 0.95).low == pytest.approx(
        -tango_interval(0, n, n, 0.95).high, abs=1e-12
    )
    assert tango_interval(0, n, n, 0.95).low == -1


# Bounds and verdicts


@pytest.mark.parametrize(("margin", "n"), [(0.01, 299), (0.02, 149), (0.05, 59)])
def test_without_flips_a_pass_takes_the_exact_number_of_examples(margin: float, n: int) -> None:
    assert verdict(0, 0, n, margin) is Verdict.PASS
    assert verdict(0, 0, n - 1, margin) is Verdict.INCONCLUSIVE
    assert damage_bounds(table(0, 0, n)).high == pytest.approx(1 - 0.05 ** (1 / n))


def test_without_gains_the_upper_bound_is_clopper_pearson() -> None:
    expected = stats.binomtest(4, 500, alternative="less").proportion_ci(0.95, method="exact").high
    assert damage_bounds(table(4, 0, 500)).high == pytest.approx(expected)


@pytest.mark.parametrize(
    ("lost", "gained", "n"),
    [
        pytest.param(3, 2, 100, id="few"),
        pytest.param(1, 7, 21, id="improvement"),
        pytest.param(5, 15, 20, id="every-example-flips"),
        pytest.param(40, 3, 300, id="regression"),
    ],
)
def test_bounds_cover_the_simulated_fay_lumbard_bound(lost: int, gained: int, n: int) -> None:
    rng = np.random.default_rng(0)
    flips, size = lost + gained, 400_000
    share = 2 * rng.beta(lost + 1, gained, size) - 1
    most = rng.beta(flips + 1, n - flips, size) if flips < n else np.ones(size)
    least = rng.beta(flips, n - flips + 1, size)
    exact = max(np.quantile(most * share, 0.95), np.quantile(least * share, 0.95))
    score = tango_interval(lost, gained, n, 0.9).high
    assert damage_bounds(table(lost, gained, n)).high == pytest.approx(max(exact, score), abs=2e-3)
    assert damage_bounds(table(gained, lost, n)).low == pytest.approx(-max(exact, score), abs=2e-3)


@pytest.mark.parametrize("n", [60, 872])
def test_a_loss_never_lowers_and_a_gain_never_raises_the_upper_bound(n: int) -> None:
    upper = np.array([[damage_bounds(table(b, c, n)).high for c in range(15)] for b in range(15)])
    assert np.all(np.diff(upper, axis=0) > 0)
    assert np.all(np.diff(upper, axis=1) < 0)


@pytest.mark.parametrize("flip_rate", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("n", [300, 872])
def test_verdicts_at_the_margin_are_wrong_in_at_most_5_percent(n: int, flip_rate: float) -> None:
    wrong_pass, wrong_regression = error_rates(n, flip_rate, damage=0.01, margin=0.01)
    assert wrong_pass <= 0.05
    assert wrong_regression <= 0.05


@pytest.mark.parametrize("n", [268, 298, 300])
def test_verdicts_stay_honest_where_the_score_alone_is_not(n: int) -> None:
    # A candidate that only loses, at the margin: the score errs in 6.8 % (pass at n=268) and 8.9 %
    # (regression at n=300, flip rate 0.014).
    assert error_rates(n, 0.01, damage=0.01, margin=0.01)[0] <= 0.05
    assert error_rates(n, 0.014, damage=0.01, margin=0.01)[1] <= 0.05


@pytest.mark.parametrize(
    ("lost", "gained", "expected", "method"),
    [
        pytest.param(20, 22, Verdict.INCONCLUSIVE, BoundMethod.SCORE, id="no-drop-but-many-flips"),
        pytest.param(12, 20, Verdict.PASS, BoundMethod.SCORE, id="better"),
        pytest.param(45, 12, Verdict.REGRESSION, BoundMethod.SCORE, id="worse"),
        pytest.param(30, 2, Verdict.REGRESSION, BoundMethod.SCORE_AND_EXACT, id="only-losses"),
        pytest.param(2, 1, Verdict.PASS, BoundMethod.SCORE_AND_EXACT, id="few-flips"),
    ],
)
def test_verdict_follows_the_bounds(
    lost: int, gained: int, expected: Verdict, method: BoundMethod
) -> None:
    result = non_inferiority(table(lost, gained, 872), margin=0.01)
    assert (result.verdict, result.method) == (expected, method)
    assert result.lower < result.estimate == (lost - gained) / 872 < result.upper
    assert (result.upper < 0.01) == (expected is Verdict.PASS)
    assert (result.lower >= 0.01) == (expected is Verdict.REGRESSION)


# Planning


@pytest.mark.parametrize(("margin", "n"), [(0.01, 299), (0.02, 149), (0.05, 59)])
def test_plan_without_flips_is_the_exact_minimum(margin: float, n: int) -> None:
    assert required_examples(margin, flip_rate=0) == n


@pytest.mark.parametrize(("margin", "flip_rate"), [(0.01, 0.05), (0.01, 0.1), (0.005, 0.1)])
def test_plan_with_many_flips_is_near_the_normal_formula(margin: float, flip_rate: float) -> None:
    n = required_examples(margin, flip_rate)
    assert n == pytest.approx(6.1826 * flip_rate / margin**2, rel=0.02)
    assert provable_margin(n, flip_rate, power=0.8) == pytest.approx(margin, rel=0.01)


@pytest.mark.parametrize("margin", [0.01, 0.02, 0.05])
@pytest.mark.parametrize("flip_rate", [0.005, 0.02, 0.1])
def test_planned_examples_prove_the_margin_with_at_least_the_planned_power(
    flip_rate: float, margin: float
) -> None:
    n = required_examples(margin, flip_rate, power=0.8)
    assert pass_probability(n, margin, flip_rate) >= 0.8
    assert pass_probability(n - 1, margin, flip_rate) < 0.8
    after = [pass_probability(n + more, margin, flip_rate) for more in range(1, 40, 3)]
    assert min(after) > 0.79


@pytest.mark.parametrize(("margin", "flip_rate"), [(0.1, 0.2), (0.015, 0.002), (0.1, 0.002)])
def test_plan_holds_at_its_edges(margin: float, flip_rate: float) -> None:
    n = required_examples(margin, flip_rate)
    assert 0.8 <= pass_probability(n, margin, flip_rate) <= 1


@pytest.mark.parametrize(("n", "flip_rate", "damage"), [(300, 0.02, 0.01), (872, 0.1, 0.0)])
def test_chance_of_a_pass_is_that_of_the_verdicts(n: int, flip_rate: float, damage: float) -> None:
    expected = error_rates(n, flip_rate, damage, margin=0.01)[0]
    found = pass_probability(n, 0.01, flip_rate, damage=damage)
    assert found == pytest.approx(expected, abs=1e-7)


def test_provable_margin_is_the_bound_of_an_even_split() -> None:
    assert provable_margin(872, 40 / 872) == pytest.approx(damage_bounds(table(20, 20, 872)).high)
    assert provable_margin(299, 0, power=0.8) == pytest.approx(1 - 0.05 ** (1 / 299))
    assert provable_margin(1, 1, power=0.99) <= 1


# The rest


def test_mcnemar_is_the_sign_test() -> None:
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 2**5)
    assert mcnemar_exact(6, 16) == pytest.approx(0.052479, abs=1e-6)
    assert mcnemar_exact(0, 0) == 1


def test_from_correct_counts_each_cell() -> None:
    counts = PairedCounts.from_correct(
        [True, True, True, False, False], [True, False, False, True, False]
    )
    assert counts == PairedCounts(both_right=1, lost=2, gained=1, both_wrong=1)
    assert (counts.n, counts.damage, counts.flip_rate) == (5, 0.2, 0.6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tango_interval(3, 8, 10, 0.95), r"lost \+ gained <= n .* n=10"),
        (lambda: tango_interval(1, 1, 10, 95), "confidence must be between 0 and 1 .* got 95"),
        (lambda: non_inferiority(table(1, 1, 10), 1.0), "margin must be .* got 1.0"),
        (lambda: non_inferiority(table(1, 1, 10), 0.01, alpha=0.5), "alpha must be .* got 0.5"),
        (lambda: PairedCounts(0, 0, 0, 0), r"positive sum, got \(0, 0, 0, 0\)"),
        (lambda: PairedCounts.from_correct([True], [True, False]), r"got \(1,\) and \(2,\)"),
        (lambda: PairedCounts.from_correct(np.array([1]), np.array([1])), "bool, got int64"),
        (lambda: provable_margin(0, 0.1), "n must be at least 1, got 0"),
        (lambda: required_examples(0.01, 5), "flip_rate must be .* got 5"),
        (lambda: required_examples(0.01, 0.05, power=0.2), "power must be .* got 0.2"),
        (lambda: pass_probability(9, 0.01, 0.01, damage=0.02), "flip rate 0.01, got 0.02"),
        (lambda: mcnemar_exact(-1, 2), "lost=-1"),
    ],
)
def test_misuse_names_the_expected_and_the_given_value(
    call: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call()
