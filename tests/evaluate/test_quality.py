import json
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from tcompress.data import Examples
from tcompress.errors import DataError
from tcompress.evaluate.accuracy import Predictions
from tcompress.evaluate.noninferiority import damage_bounds
from tcompress.evaluate.quality import judge
from tcompress.evaluate.statistics import Interval

ABC = ("a", "b", "c")


def answers(classes: list[int], labels: tuple[str, ...] = ABC) -> Predictions:
    return Predictions(np.eye(len(labels), dtype=np.float32)[classes], labels, truncated=0)


def labelled(*labels: str) -> Examples:
    return Examples("test", ids=tuple(map(str, range(len(labels)))), labels=labels)


def plain(found: Any) -> Any:
    """What a reader of the JSON gets; NaN is an error."""
    return json.loads(json.dumps(found.to_json(), allow_nan=False))


def test_metrics_are_paired_with_the_baseline():
    truth = labelled("a", "a", "b", "b", "c", "c")
    quality = judge(answers([0, 1, 1, 1, 1, 2]), answers([0, 0, 1, 2, 2, 2]), truth)
    assert quality.metrics["accuracy"] == pytest.approx(4 / 6)
    assert quality.metrics["macro_f1"] == pytest.approx(2 / 3)
    assert quality.metrics["mcc"] == pytest.approx(12 / np.sqrt(24 * 18))
    assert quality.metrics["balanced_accuracy"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert (quality.pairs.lost, quality.pairs.gained) == (2, 1)
    assert quality.drop == pytest.approx(1 / 6)
    assert quality.drop_interval == damage_bounds(quality.pairs)
    assert quality.intervals.keys() == quality.metrics.keys()
    for name, interval in quality.intervals.items():
        assert interval.low < quality.metrics[name] < interval.high


def test_changed_counts_other_wrong_answers_too():
    truth = labelled("a", "a", "a", "a")
    quality = judge(answers([0, 1, 2, 1]), answers([0, 2, 0, 1]), truth)
    assert plain(quality)["flips"] == {"lost": 1, "gained": 0, "changed": 2}
    assert quality.displacement.agreement == 0.5


def test_the_baseline_lost_nothing_by_definition_its_twin_only_as_far_as_shown():
    baseline, truth = answers([0, 1, 2] * 4), labelled(*ABC * 4)
    assert judge(baseline, baseline, truth).drop_interval == Interval(0, 0, 1)
    twin = judge(replace(baseline), baseline, truth)
    assert twin.drop_interval.high == pytest.approx(1 - 0.05 ** (1 / 12))
    assert twin.displacement.divergence == 0


def test_labels_are_compared_by_name():
    truth, other = labelled("a", "b", "c"), ("c", "b", "a")
    quality = judge(answers([2, 1, 0], labels=other), answers([0, 1, 2]), truth)
    assert quality.metrics["accuracy"] == 1.0
    assert quality.drop == 0.0
    assert quality.displacement.divergence == 0
    assert [part.label for part in quality.parts.classes] == ["c", "b", "a"]


def test_placeholder_labels_have_their_recall_too():
    truth = labelled("0", "1", "1")
    quality = judge(*[answers([0, 1, 0], labels=("LABEL_0", "LABEL_1"))] * 2, truth)
    assert [(part.n, part.recall) for part in quality.parts.classes] == [(1, 1.0), (2, 0.5)]


def test_divergence_is_the_mean_and_the_99th_percentile_over_the_examples():
    truth, rng = labelled(*"ab" * 100), np.random.default_rng(0)
    before, after = rng.standard_normal((2, 200, 2)).astype(np.float32)
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (before, after))
    expected = (p * np.log(p / q)).sum(1)
    found = judge(Predictions(after, ("a", "b"), 0), Predictions(before, ("a", "b"), 0), truth)
    assert found.displacement.divergence == pytest.approx(expected.mean(), rel=1e-5)
    assert found.displacement.divergence_p99 == pytest.approx(np.quantile(expected, 0.99), rel=1e-5)


def test_without_labels_only_how_far_the_answers_moved_is_known():
    unlabelled = Examples("test", ids=("0", "1", "2", "3"))
    quality = plain(judge(answers([0, 1, 1, 2]), answers([0, 1, 2, 2]), unlabelled))
    assert quality["metrics"] == {"agreement": 0.75}
    assert quality["agreement"] == 0.75
    assert quality["divergence"] > 0
    unknown = ("accuracy_drop", "accuracy_drop_interval", "flips", "calibration_error")
    assert [quality[key] for key in unknown] == [None] * 4
    assert quality["classes"] == quality["slices"] == quality["lengths"] == []


def test_unknown_label_is_refused():
    with pytest.raises(DataError, match="label 'd' is not known to the model"):
        judge(answers([0]), answers([0]), labelled("d"))


@pytest.mark.parametrize(
    ("classes", "labels", "truth"),
    [
        pytest.param([0], ABC, ("a",), id="one example"),
        pytest.param([2], ABC, ("a",), id="one wrong example"),
        pytest.param([0, 0, 0], ("a",), ("a", "a", "a"), id="one class"),
        pytest.param([1, 1], ABC, ("a", "a"), id="all wrong"),
    ],
)
def test_tiny_and_one_sided_data_give_numbers_without_nan(
    classes: list[int], labels: tuple[str, ...], truth: tuple[str, ...]
):
    found = replace(answers(classes, labels), tokens=np.arange(1, len(classes) + 1))
    examples = replace(labelled(*truth), slices={"kind": truth})
    quality = plain(judge(found, answers([0] * len(truth), labels), examples))
    assert all(math.isfinite(value) for value in quality["metrics"].values())
    assert quality["metric_intervals"]["mcc"]["confidence"] == 0
    assert quality["slices"] == [
        {"column": "kind", "value": truth[0], "n": len(truth)}
        | dict.fromkeys(("accuracy", "accuracy_baseline", "drop", "low", "high"))
    ]


def test_a_slice_that_pays_shows_while_the_whole_looks_unharmed():
    n = 100
    slices = {"kind": ("rare",) * 20 + ("common",) * (n - 20)}
    right, wrong = [0] * n, [0] * n
    right[:20] = [1] * 20  # lost in the rare slice
    wrong[20:40] = [1] * 20  # gained elsewhere
    tokens = np.repeat([5, 9], [20, n - 20])
    examples = replace(labelled(*["a"] * n), slices=slices)
    quality = judge(replace(answers(right), tokens=tokens), answers(wrong), examples)
    assert quality.drop == 0
    document = plain(quality)
    common, rare = document["slices"]
    assert (rare["value"], rare["n"], rare["drop"]) == ("rare", 20, 1.0)
    assert rare["low"] > 0.5
    assert (common["accuracy_baseline"], common["accuracy"]) == (0.75, 1.0)
    short, long = document["lengths"]
    assert (short["tokens_from"], short["tokens_to"], short["n"]) == (5, 5, 20)
    assert {k: short[k] for k in ("drop", "low", "high")} == {
        k: rare[k] for k in ("drop", "low", "high")
    }
    assert (long["tokens_from"], long["drop"]) == (9, -0.25)


def test_json_says_all_that_is_known_of_a_class():
    truth = labelled(*["a"] * 8, *["b"] * 2)
    quality = judge(answers([0] * 6 + [1] * 4), answers([0] * 10), truth)
    a, b, c = plain(quality)["classes"]
    assert (a["recall"], a["recall_baseline"], b["recall"]) == (0.75, 1.0, 1.0)
    assert a["low"] < 0.75 < a["high"]
    assert c == {"label": "c", "n": 0} | dict.fromkeys(("recall", "recall_baseline", "low", "high"))
    assert asdict(quality.parts)["classes"][0]["n"] == 8
