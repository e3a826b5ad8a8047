from typing import Any

import pytest

from tcompress.evaluate.reporting.summary import Summary
from tcompress.evaluate.reporting.wording import lead_of, recommendation

Document = dict[str, Any]


def sentence(document: Document) -> str:
    summary = Summary.of(document)
    return recommendation(summary, summary.settings[0])


def test_fastest_measurement_proved_good_enough_is_recommended(document: Document):
    assert sentence(document) == (
        "Ship export/onnx-int8 (onnxruntime, int8): 4.80 times as fast as source (4.6 to 5.1; 6.25 "
        "ms instead of 30 ms) at 82.25 % accuracy, 0.75 points below it. "
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


def test_a_speedup_known_to_a_factor_is_told_by_its_bounds(document: Document, skewed: Document):
    document["measurements"][3]["speedup"] = skewed
    assert sentence(document) == (
        "Ship export/onnx-int8 (onnxruntime, int8): 8.2 to 137 times as fast as source at "
        "82.25 % accuracy, 0.75 points below it. On 4,000 examples its loss is proved to stay "
        "below 1 point. Timing unsure: its interval is wide."
    )


def test_latencies_that_tell_another_ratio_are_not_quoted(document: Document):
    document["measurements"][0]["latency_ms"]["median"] = 60.0
    assert "4.80 times as fast as source (4.6 to 5.1) at" in sentence(document)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(
            {"conditions": {"foreign_load": 1.0}},
            "other programs used up to 100 % of the CPUs",
            id="load",
        ),
        pytest.param({"noise_floor": None}, "the noise floor is not known", id="no-floor"),
        pytest.param(
            {"noise_floor": {"value": 0.07, "low": 0.06, "high": 0.08, "confidence": 0.0}},
            "the noise floor is not known",
            id="floor-of-one-round",
        ),
        pytest.param(
            {"noise_floor": {"value": 0.9, "low": 0.192, "high": 2.463, "confidence": 0.95}},
            "the baseline seemed 0.19 to 2.46 times as fast as itself",
            id="wide-floor",
        ),
    ],
)
def test_a_disturbed_run_says_so_in_the_lead(document: Document, change: Document, reason: str):
    assert "Timing unsure" not in sentence(document)
    document["environment"] |= change
    assert sentence(document).endswith(f"below 1 point. Timing unsure: {reason}.")


def test_a_baseline_that_nothing_was_timed_enough_to_beat_is_kept_with_a_doubt(
    document: Document, one_round: Document
):
    for entry in document["measurements"][1:]:
        entry["speedup"] = one_round
    assert sentence(document).endswith("to lose less than 1 point. Timing unsure: too few rounds.")


def test_the_lead_names_its_setting_where_there_are_several(document: Document, full: Document):
    assert lead_of(Summary.of(document))[0] == ""
    assert lead_of(Summary.of(full))[0] == "cpu, batch 1, 128 tokens"
