from collections.abc import Callable

import numpy as np
import pytest

from tcompress.errors import ModelError, RequestError
from tcompress.evaluate.gating.quality import (
    check_accuracy,
    check_agreement,
    check_classes,
    check_divergence,
    check_flips,
    check_metric,
    check_slices,
    holm,
)
from tcompress.evaluate.gating.sides import Sides
from tcompress.evaluate.gating.verdict import Check, Unit
from tcompress.evaluate.metrics import CLASSIFICATION
from tcompress.evaluate.noninferiority import Verdict

LABELS = ("cat", "dog", "owl")
ALPHA = 0.05


def logits(classes: np.ndarray, scale: float = 4.0) -> np.ndarray:
    return scale * np.eye(len(LABELS), dtype=np.float32)[classes]


def sides(n: int, lost: int = 0, gained: int = 0) -> Sides:
    """A baseline that errs in the last tenth; the candidate loses the first and gains the last."""
    truth = np.arange(n) % len(LABELS)
    wrong = (truth + 1) % len(LABELS)
    expected = np.where(np.arange(n) < 0.9 * n, truth, wrong)
    found = expected.copy()
    found[:lost] = wrong[:lost]
    found[n - gained :] = truth[n - gained :]
    return Sides(logits(expected), logits(found), truth, LABELS)


METRIC_CHECKS = [
    pytest.param(lambda s, m=metric, k=key: check_metric(s, m, **k), id=f"{metric}-{min(key)}")
    for metric in CLASSIFICATION
    for key in ({"max_drop": 0.01}, {"retained": 0.99})
]
OTHER_CHECKS = [
    pytest.param(lambda s: check_flips(s, 0.01, ALPHA), id="flips"),
    pytest.param(lambda s: check_agreement(s, 0.99, ALPHA), id="agreement"),
]


@pytest.mark.parametrize("check", METRIC_CHECKS + OTHER_CHECKS)
def test_no_limit_of_one_point_is_proved_by_fewer_than_299_examples(
    check: Callable[[Sides], Check],
):
    assert check(sides(298)).verdict is Verdict.INCONCLUSIVE
    assert check(sides(2000)).verdict is Verdict.PASS


@pytest.mark.parametrize("check", METRIC_CHECKS + OTHER_CHECKS)
def test_a_candidate_that_lost_much_is_a_regression(check: Callable[[Sides], Check]):
    found = check(sides(2000, lost=200))
    assert found.verdict is Verdict.REGRESSION
    assert found.n == 2000


@pytest.mark.parametrize(
    "check",
    [
        *METRIC_CHECKS,
        *OTHER_CHECKS,
        pytest.param(lambda s: check_divergence(s, 1.0, ALPHA), id="divergence"),
        pytest.param(lambda s: check_classes(s, 0.1, ALPHA)[1], id="class"),
        pytest.param(lambda s: check_slices(s, {"a": ["b"] * 2000}, 0.1, ALPHA)[0], id="slice"),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_not_finite_pass_nothing(check: Callable[[Sides], Check], value: float):
    both = sides(2000)
    assert check(both).verdict is Verdict.PASS
    both.candidate[7, 1] = value
    found = check(Sides(both.baseline, both.candidate, both.truth, LABELS))
    assert found.verdict is Verdict.REGRESSION
    assert "1 of the candidate's answers are not finite" in found.words
    assert np.isfinite([found.estimate, found.bound]).all()


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (
            check_accuracy(sides(2000, 10), 0.01, ALPHA),
            "accuracy dropped 0.50 points, a drop of at most 0.85 (95 %), limit 1.00, n = 2,000",
        ),
        (
            check_metric(sides(2000, 10), "micro_f1", retained=0.99),
            "micro_f1 kept 99.44 % of the baseline's, at least 99.06 % (95 %), limit 99.00 %, "
            "n = 2,000",
        ),
        (
            check_flips(sides(2000, 10, 10), 0.02, ALPHA),
            "1.00 % of the answers flipped, at most 1.45 % (95 %), limit 2.00 %, n = 2,000",
        ),
        (
            check_agreement(sides(2000, 100), 0.99, 0.1),
            "95.00 % of the answers are the baseline's, at most 95.62 % (90 %), limit 99.00 %, "
            "n = 2,000",
        ),
    ],
)
def test_words_tell_estimate_bound_limit_and_size(check: Check, words: str):
    assert check.words == words


def test_a_part_that_is_kept_is_told_from_above():
    found = check_metric(sides(4000, 10), "macro_f1", retained=0.99)
    assert (found.name, found.unit, found.limit) == ("macro_f1_retained", Unit.RATIO, 0.99)
    assert 0.99 < found.bound < found.estimate < 1


def test_a_regression_in_one_class_is_found_and_named():
    truth = np.repeat([0, 1, 2], [1000, 1000, 60])
    found = truth.copy()
    found[-20:] = 0
    both = Sides(logits(truth), logits(found), truth, LABELS)
    assert check_accuracy(both, 0.02, ALPHA).verdict is Verdict.PASS
    checks = {check.name: check.verdict for check in check_classes(both, 0.1, ALPHA)}
    assert checks == {
        "recall_drop[cat]": Verdict.PASS,
        "recall_drop[dog]": Verdict.PASS,
        "recall_drop[owl]": Verdict.REGRESSION,
    }


def test_a_drop_shown_in_one_slice_is_not_shown_among_twenty():
    # 11 of 60 lost: alone that shows a drop of 5 points or more at 5 %, but not at 5 % / 20.
    both = sides(1200, lost=11)
    one = {"part": ["first"] * 60 + ["rest"] * 1140}
    twenty = {"part": [f"{i // 60:02}" for i in range(1200)]}
    first, rest = check_slices(both, one, 0.05, ALPHA)
    assert (first.name, first.verdict) == ("accuracy_drop[part=first]", Verdict.REGRESSION)
    assert rest.verdict is Verdict.PASS
    many = check_slices(both, twenty, 0.05, ALPHA)
    assert [check.verdict for check in many] == [Verdict.INCONCLUSIVE] + [Verdict.PASS] * 19


def test_holm_by_hand():
    # Of four tests at 5 %: 0.005 <= 0.05 / 4 and 0.01 <= 0.05 / 3 hold, 0.03 > 0.05 / 2 ends it.
    chances = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert holm(lambda name, level: chances[name] <= level, chances, 0.05) == {"a", "d"}
    assert holm(lambda name, level: True, [], 0.05) == set()


def test_divergence_is_judged_by_its_bound():
    both = sides(500)
    shifted = both.candidate + np.linspace(0, 1, 500, dtype=np.float32)[:, None] * [1, 0, 0]
    found = Sides(both.baseline, shifted, both.truth, LABELS)
    mean = check_divergence(found, 1.0, ALPHA).estimate
    close = check_divergence(found, mean * 1.01, ALPHA)
    assert (close.verdict, close.unit) == (Verdict.INCONCLUSIVE, Unit.NATS)
    assert mean < close.bound < 1.5 * mean
    assert check_divergence(found, mean * 2, ALPHA).verdict is Verdict.PASS
    assert check_divergence(found, mean / 2, ALPHA).verdict is Verdict.REGRESSION
    assert check_divergence(sides(58), 0.1, ALPHA).verdict is Verdict.INCONCLUSIVE


def test_grouped_examples_count_by_group():
    groups = [str(i // 10) for i in range(2000)]
    found = check_metric(sides(2000), "accuracy", max_drop=0.01, groups=groups)
    assert found.verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("metric", "limits", "message"),
    [
        ("f2", {"max_drop": 0.1}, "unknown metric 'f2'; known are: accuracy, balanced_accuracy"),
        ("mcc", {}, "expected max_drop or retained, got max_drop=None and retained=None"),
        ("mcc", {"max_drop": 0.1, "retained": 0.9}, "got max_drop=0.1 and retained=0.9"),
    ],
)
def test_a_request_without_one_limit_is_refused(
    metric: str, limits: dict[str, float], message: str
):
    with pytest.raises(RequestError, match=message):
        check_metric(sides(30), metric, **limits)


@pytest.mark.parametrize("metric", ["accuracy", "mcc"])
def test_no_part_of_nothing_can_be_kept(metric: str):
    truth = np.arange(30) % 3
    wrong = logits((truth + 1) % 3)
    with pytest.raises(ModelError, match="no part of that can be kept; limit the drop"):
        check_metric(Sides(wrong, wrong, truth, LABELS), metric, retained=0.99)
