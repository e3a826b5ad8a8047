from typing import Any

import pytest

from tcompress.console import Console
from tcompress.evaluate.showing import show_document, speedup_text

Document = dict[str, Any]


def entry(name: str, precision: str = "fp32", **changes: Any) -> Document:
    speedup = {"value": 12.34, "low": 11.2, "high": 13.5, "confidence": 0.95, "verdict": "faster"}
    numbers = {
        "latency_ms": {"median": 123.4, "threads": 2},
        "speedup": speedup,
        "metrics": {"accuracy": 0.8876},
        "accuracy_drop": 0.0123,
        "accuracy_drop_interval": {"low": 0.001, "high": 0.0234},
        "flips": {"lost": 1234, "gained": 1100},
        "size_bytes": 438_000_000,
        "not_inferior": False,
        "pareto": False,
        "stale": False,
    }
    setting = {"device": "cpu", "batch": 1, "tokens": 128}
    return {"artifact": name, "precision": precision} | setting | numbers | changes


@pytest.fixture
def document() -> Document:
    proved = {"accuracy_drop_interval": {"low": -0.01, "high": 0.004}, "not_inferior": True}
    lost = {"accuracy_drop_interval": {"low": 0.02, "high": 0.04}}
    speedup = {"value": 2.5, "low": 2.4, "high": 2.6, "confidence": 0.95, "verdict": "faster"}
    return {
        "baseline": "source",
        "margin": 0.01,
        "environment": {
            "noise_floor": {"value": 1.0, "low": 0.98, "high": 1.01, "confidence": 0.95}
        },
        "data": {"examples": 1000, "labelled": True},
        "measurements": [
            entry("source", pareto=True, not_inferior=True),
            entry("export/onnx-of-a-very-long-name-int8", "int8", pareto=True, **proved),
            entry("prune", stale=True, **lost),
            entry("finetune"),
        ],
        "mixes": [
            {
                "artifact": "export/onnx-of-a-very-long-name-int8",
                "precision": "int8",
                "scenario": "single_stream",
                "tokens_mean": 23.4,
                "tokens_max": 61,
                "latency_ms": {"median": 7.654},
                "examples_per_s": 1234.5,
                "speedup": speedup,
            }
        ],
        "earlier": [entry("gone")],
        "notes": ["a note"],
    }


def test_wide_numbers_and_long_names_fit_into_80_columns_uncut(document, capsys):
    speedup = {"value": 9.991, "low": 9.1, "high": 11.2, "confidence": 0.95}
    worst = {"speedup": speedup | {"verdict": "inconclusive"}, "latency_ms": {"median": 0.00727}}
    document["measurements"].append(entry("another-of-a-very-long-name", **worst))
    show_document(Console(), document)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert not any("…" in line for line in lines)


def test_words_tell_what_is_proved_and_what_stands_on_the_front(document, capsys):
    show_document(Console(), document)
    found = [words for line in capsys.readouterr().out.splitlines() if (words := line.split())]
    signs = {words[0]: words[1] for words in found if words[2:3] in (["fp32"], ["int8"])}
    assert signs == {"source": "*", "..y-long-name-int8": "*", "prune": "~"}
    quality = {words[0]: words[-1] for words in found if words[1:2] == ["0.8876"]}
    assert quality == {
        "source": "baseline",
        "..y-long-name-int8": "holds",
        "prune": "worse",
        "finetune": "unproved",
    }


def test_formats_of_one_artifact_are_told_apart_on_a_gpu(document, capsys):
    document["measurements"] = [
        entry("source", name, device="cuda", pareto=name == "bf16") for name in ("fp32", "bf16")
    ]
    show_document(Console(), document)
    out = capsys.readouterr().out
    assert "source fp32" in out
    assert "source bf16" in out


def test_own_lengths_noise_and_former_runs_are_told(document, capsys):
    show_document(Console(), document)
    out = capsys.readouterr().out
    assert "The data's own lengths: 23 tokens on average, 61 at most" in out
    assert "seems -2.0% to +1.0% faster" in out
    assert "the report greys 1 points of artifacts now gone" in out
    assert "Note: a note." in out


def test_without_labels_no_quality_is_claimed(document, capsys):
    document["data"]["labelled"] = False
    for item in document["measurements"]:
        item |= {"metrics": {"agreement": 0.99}, "accuracy_drop": None, "flips": None}
        item |= {"accuracy_drop_interval": None, "not_inferior": None}
    show_document(Console(), document)
    out = capsys.readouterr().out
    assert "nothing is proved without labels" in out
    assert "holds" not in out


@pytest.mark.parametrize(
    ("low", "value", "high", "told"),
    [
        pytest.param(6.51, 6.99, 7.47, "6.99 ±0.48", id="narrow"),
        pytest.param(8.18, 24.05, 137.46, "8.2-137", id="skewed"),
        pytest.param(0.26, 0.53, 2.48, "0.26-2.48", id="wide-and-slower"),
    ],
)
def test_half_an_interval_is_told_only_where_it_means_something(low, value, high, told):
    assert speedup_text({"low": low, "value": value, "high": high, "confidence": 0.95}) == told


def test_noise_that_is_no_small_difference_is_told_as_a_factor(document, capsys):
    document["environment"]["noise_floor"] |= {"low": 0.192, "high": 2.463}
    show_document(Console(), document)
    assert "itself, seems 0.19 to 2.46 times as fast.\n" in capsys.readouterr().out


def test_what_the_rounds_do_not_tell_seems_only_to_be_on_the_front(document, capsys):
    show_document(Console(), document)
    assert "*?" not in capsys.readouterr().out
    document["measurements"][1]["speedup"] |= {"verdict": "inconclusive", "confidence": 0.0}
    show_document(Console(), document)
    out = capsys.readouterr().out
    assert "..y-long-name-int8  *?" in out
    assert "\n*? seems to be: the rounds do not tell how fast it is.\n" in out


@pytest.mark.parametrize("columns", ["80", "60"])
def test_no_number_is_cut_on_a_narrow_terminal(document, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    document["mixes"][0] |= {"examples_per_s": 17550.4}
    document["mixes"][0]["speedup"] |= {"verdict": "inconclusive", "low": 1.1, "high": 12.3}
    document["notes"] = ["a note of many words " * 6 + "/a/path/" + "that-is-long/" * 8]
    show_document(Console(), document)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(len(line) for line in lines if "/a/path" not in line) <= int(columns)
    text = "\n".join(lines)
    assert "…" not in text
    for number in ("+0.0123", "+0.0234", "0.8876", "17,550", "1.10-12.3", "12.3 ±1.2"):
        assert number in text
    assert "/a/path/" + "that-is-long/" * 8 in text
