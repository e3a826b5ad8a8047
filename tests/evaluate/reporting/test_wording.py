from typing import Any

import pytest

from tcompress.evaluate.reporting.summary import Summary
from tcompress.evaluate.reporting.wording import recommendation

Document = dict[str, Any]


def sentence(document: Document) -> str:
    summary = Summary.of(document)
    return recommendation(summary, summary.settings[0])


def test_fastest_measurement_proved_good_enough_is_recommended(document: Document):
    assert sentence(document) == (
        "Ship export/onnx-int8 (onnxruntime, int8): 4.80 times as fast as source (6.25 ms instead "
        "of 30 ms) at 82.25 % accuracy, 0.75 points below it. "
        "On 4,000 examples its loss is proved to stay below 1 point."
    )


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"stale": True}, id="out-of-date"),
        pytest.param({"not_inferior": False, "accuracy_drop": 0.0101}, id="loses-too-much"),
        pytest.param({"not_inferior": False}, id="not-proved"),
        pytest.param({"not_inferior": None}, id="not-tested"),
        pytest.param({"speedup": {"value": 4.8, "low": 0.99, "high": 5}}, id="not-shown-faster"),
        pytest.param(
            {"speedup": {"value": 4.8, "low": 1.1, "high": 5, "verdict": "inconclusive"}},
            id="verdict-inconclusive",
        ),
        pytest.param(
            {"speedup": {"value": 4.8, "low": 4.8, "high": 4.8, "confidence": 0.0}}, id="one-round"
        ),
        pytest.param({"batch": 8}, id="another-setting"),
    ],
)
def test_what_may_not_be_recommended_is_not(document: Document, change: dict[str, Any]):
    document["measurements"][3] |= change
    assert sentence(document).startswith("Ship finetune ")


def test_a_faster_one_that_is_not_proved_is_named(document: Document):
    document["measurements"][3] |= {
        "not_inferior": False,
        "accuracy_drop_interval": {"low": 0.001, "high": 0.0138, "confidence": 0.95},
    }
    assert sentence(document).endswith(
        "below 1 point. export/onnx-int8 is faster still (6.25 ms), but 4,000 examples do not "
        "prove that it loses less than 1 point (it may be 1.38)."
    )


def test_nothing_is_shipped_on_an_estimate_alone(document: Document):
    for entry in document["measurements"]:
        entry["not_inferior"] = False
    assert sentence(document).startswith("Keep source until more is proved: export/onnx-int8 ")


def test_the_margin_of_the_workspace_decides(document: Document):
    document["margin"] = 0.2
    document["measurements"][4]["not_inferior"] = True
    assert sentence(document).startswith("Ship export/tiny ")
    assert sentence(document).endswith("stay below 20 points.")


def test_baseline_is_kept_where_nothing_is_better(document: Document):
    del document["measurements"][2:4]
    assert sentence(document) == (
        "Keep source: nothing else was shown to be faster and to lose less than 1 point. "
        "The fastest, export/tiny, is 9.60 times as fast and gives up 13.00 points."
    )


def test_without_labels_nothing_is_proved(document: Document):
    for entry, agreement in zip(document["measurements"], (1, 0.97, 0.995, 0.98, 0.5), strict=True):
        entry |= {"metrics": {"agreement": agreement}, "accuracy_interval": None}
        entry |= {"accuracy_drop": None, "flips": None, "not_inferior": None}
    assert sentence(document).startswith("Keep source until more is proved: finetune ")
    assert "the same answer in 99.50 % of the cases" in sentence(document)
    assert "without labels nothing is proved" in sentence(document)


def test_front_holds_only_what_is_proved_and_unbeaten(document: Document):
    summary = Summary.of(document)
    names = [row.name for row in summary.front_at(summary.settings[0])]
    assert names == ["source", "finetune", "export/onnx-int8"]
