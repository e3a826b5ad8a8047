import copy
import json
import random
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

SCHEMA = Path(__file__).parents[3] / "docs" / "schema" / "report.schema.json"

HOSTILE = (
    "<script>alert(1)</script>",
    "[red]bold[/red]",
    "::error::broken",
    "$x_2$ and $y",
    "a|b`c` **d** @all",
    "esc\x1b[31m \u202eltr\nnext",
    "lone \ud800",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}",
    "long " + "x" * 5000,
)
LAYERS, HEADS = 6, 12
_CONFIDENCE = 0.95


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.data: list[str] = []
        self._open: list[tuple[str, dict[str, str]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = (tag, {name: value or "" for name, value in attrs})
        self.elements.append(element)
        if tag not in ("meta", "br"):
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if not any(tag == "style" or is_scale(attributes) for tag, attributes in self._open):
            self.data.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def is_scale(attributes: dict[str, str]) -> bool:
    """Whether an element holds marks of an axis or running numbers, which were not measured."""
    return "tick_" in attributes.get("id", "") or "ordinal" in attributes.get("class", "").split()


def measurement(name: str, latency_ms: float, accuracy: float, **changes: Any) -> dict[str, Any]:
    speedup, is_source = 30 / latency_ms, name == "source"
    lost = round(4000 * max(0.0, 0.83 - accuracy)) + 11
    return {
        "artifact": name,
        "path": f"/somewhere/{name}",
        "stage": "source" if is_source else "export",
        "backend": "pytorch" if is_source else "onnxruntime",
        "device": "cpu",
        "precision": "fp32",
        "batch": 1,
        "tokens": 128,
        "latency_ms": {
            "median": latency_ms,
            "n": 60,
            "warmup": 1,
            "threads": 2,
            "versions": {"torch": "2.13.0"},
            "samples": [latency_ms] * 60,
        },
        "speedup": {
            "value": speedup,
            "low": speedup * (1 if is_source else 0.95),
            "high": speedup * (1 if is_source else 1.06),
            "confidence": _CONFIDENCE,
            "blocks": 0 if is_source else 13,
        },
        "metrics": {"accuracy": accuracy, "macro_f1": accuracy - 0.01, "mcc": 2 * accuracy - 1}
        | {"balanced_accuracy": accuracy - 0.002},
        "accuracy_interval": interval(accuracy, 0.0123),
        "accuracy_drop": 0.83 - accuracy,
        "flips": {"lost": lost, "gained": 11},
        "macs": 1_430_000_000,
        "size_bytes": 90_000_000,
        "memory_peak_bytes": 640_000_000,
        "heads": [HEADS] * LAYERS if is_source else [9] * LAYERS,
        "neurons": [1536] * LAYERS if is_source else [1200] * LAYERS,
        "stale": False,
    } | changes


def interval(middle: float, width: float) -> dict[str, float]:
    return {"low": middle - width, "high": middle + width, "confidence": _CONFIDENCE}


@pytest.fixture
def faults() -> Callable[[dict[str, Any]], list[str]]:
    """Return where a document breaks the published schema."""
    validator = Draft202012Validator(json.loads(SCHEMA.read_text("utf-8")))
    return lambda document: [
        e.json_path + ": " + e.message for e in validator.iter_errors(document)
    ]


@pytest.fixture
def parse_page() -> type[Page]:
    return Page


@pytest.fixture
def hostile() -> tuple[str, ...]:
    """Names that try to be more than text."""
    return HOSTILE


@pytest.fixture
def measured() -> Callable[..., dict[str, Any]]:
    """Make one more measurement."""
    return measurement


@pytest.fixture
def document() -> dict[str, Any]:
    """The least that an `evaluate` may write."""
    draw = random.Random(0)
    return {
        "schema_version": 1,
        "baseline": "source",
        "environment": {
            "cpu": "A processor",
            "cpu_features": {"avx2": True, "amx_int8": False},
            "cpus_usable": 2,
            "cpus_physical": 2,
            "memory_bytes": 16_000_000_000,
            "gpu": None,
            "system": "Linux 6",
            "threads": 2,
            "versions": {"tcompress": "0.1.0", "torch": "2.13.0"},
            "load_average": [0.1, 0.2, 0.3],
            "load_before": [0.1, 0.2, 0.3],
            "load_after": [1.9, 0.8, 0.4],
            "started": "2026-11-22T19:09:27+00:00",
            "noise_floor": {"value": 1.001, **interval(1.005, 0.025), "blocks": 13},
            "noise_floors": [],
        },
        "data": {
            "origin": "reviews.csv",
            "split": "test",
            "examples": 4000,
            "labelled": True,
            "digest": "d" * 64,
            "truncated": 3,
        },
        "gpu": "GPU: none here; measured on the CPU only",
        "measurements": [
            measurement("source", 30.0, 0.83),
            measurement("prune", 22.0, 0.815),
            measurement("finetune", 21.9, 0.8275, not_inferior=True),
            measurement("export/onnx-int8", 6.25, 0.8225, precision="int8", not_inferior=True),
            measurement("export/tiny", 3.125, 0.7, not_inferior=False),
        ],
        "heads": {
            "criterion": "gradient",
            "scores": [[draw.random() for _ in range(HEADS)] for _ in range(LAYERS)],
            "kept": [list(range(9)) for _ in range(LAYERS)],
        },
        "notes": ["a note"],
    }


def completed(document: dict[str, Any]) -> dict[str, Any]:
    """Fill every key that an `evaluate` may write, for a document that has some of them."""
    full = copy.deepcopy(document)
    full["margin"] = 0.01
    full["environment"] |= {
        "conditions": {
            "affinity": [0, 1],
            "cgroup_cpus": 2.0,
            "governor": "performance",
            "turbo": True,
            "temperature_c": 51.0,
            "steal": 0.0013,
            "foreign_load": 0.04,
            "spinning": "allowed, but every other process is suspended",
            "gpu_clock_mhz": None,
            "gpu_temperature_c": None,
            "gpu_memory_bytes": None,
        },
        "noise_floors": [
            {"device": "cpu", "batch": 1, "tokens": 128, "value": 1.003}
            | interval(1.004, 0.0214)
            | {"blocks": 13, "verdict": "equivalent"}
        ],
    }
    first = full["measurements"]
    for entry in first:
        _complete_measurement(entry)
    full["measurements"] = [
        *first,
        *(_at(entry, batch, tokens) for batch, tokens in ((1, 32), (8, 128)) for entry in first),
    ]
    names = [entry["artifact"] for entry in first]
    full["mixes"] = [
        _mix(entry, scenario, batch)
        for scenario, batch in (("single_stream", 1), ("offline", 32))
        for entry in first
    ]
    full["operators"] = [_profile(entry) for entry in (first[0], first[-2])]
    full["flipped"] = [flip for name in names[1:] for flip in _flips(name)]
    full["earlier"] = [
        first[1]
        | {"artifact": "prune (before)", "latency_ms": first[1]["latency_ms"] | {"median": 12.5}}
    ]
    return full


@pytest.fixture
def full(document: dict[str, Any]) -> dict[str, Any]:
    """A document in which nothing is missing."""
    return completed(document)


def _complete_measurement(entry: dict[str, Any]) -> None:
    is_source = entry["stage"] == "source"
    drop, accuracy = entry["accuracy_drop"], entry["metrics"]["accuracy"]
    before = accuracy + drop
    entry["latency_ms"] |= {
        "p90": 1.07 * entry["latency_ms"]["median"],
        "mad": 0.021 * entry["latency_ms"]["median"],
        "cv": 0.043,
        "outliers": 2,
        "drift": {"slope_per_minute": -0.0021, "flagged": False},
    }
    entry["speedup"] |= {"verdict": None if is_source else "faster", "processes": 5}
    entry |= {
        "load_ms": {"median": 812.4, "n": 5},
        "throughput_per_s": 1000 * entry["batch"] / entry["latency_ms"]["median"],
        "metric_intervals": {name: interval(v, 0.014) for name, v in entry["metrics"].items()},
        "accuracy_drop_interval": None
        if is_source
        else interval(drop, 0.0061) | {"confidence": 0.9},
        "agreement": 1.0 if is_source else 0.957,
        "divergence": 0.0 if is_source else 0.0174,
        "divergence_p99": 0.0 if is_source else 0.2183,
        "calibration_error": 0.031,
        "calibration_error_baseline": 0.029,
        "negative_log_likelihood": 0.4391,
        "flips": entry["flips"] | {"changed": sum(entry["flips"].values())},
        "classes": [
            {"label": label, "n": 1599, "recall": recall, "recall_baseline": before}
            | {"low": recall - 0.02, "high": recall + 0.02}
            for label, recall in (("fresh", accuracy + 0.004), ("rotten", accuracy - 0.005))
        ],
        "slices": [
            {"column": "source", "value": value, "n": n, "accuracy": accuracy - shift}
            | {"accuracy_baseline": before, "drop": drop + shift}
            | {"low": drop + shift - 0.02, "high": drop + shift + 0.02}
            for value, n, shift in (("critic", 812, 0.004), ("audience", 377, -0.003))
        ],
        "lengths": [
            {"tokens_from": low, "tokens_to": high, "n": 1066, "accuracy": accuracy - shift}
            | {"accuracy_baseline": before, "drop": drop + shift}
            | {"low": drop + shift - 0.02, "high": drop + shift + 0.02}
            for low, high, shift in ((3, 19, 0.003), (20, 31, -0.001), (32, 67, 0.002))
        ],
        "digest": "c" * 64,
        "not_inferior": None if is_source else entry.get("not_inferior", drop < 0.006),
        "pareto": None,
    }


def _at(entry: dict[str, Any], batch: int, tokens: int) -> dict[str, Any]:
    factor = batch**0.9 * (tokens / 128) ** 0.8
    latency = entry["latency_ms"]
    shown = {key: latency[key] * factor for key in ("median", "p90", "mad")}
    return entry | {
        "batch": batch,
        "tokens": tokens,
        "latency_ms": latency | shown,
        "throughput_per_s": 1000 * batch / shown["median"],
    }


def _mix(entry: dict[str, Any], scenario: str, batch: int) -> dict[str, Any]:
    median = 0.31 * entry["latency_ms"]["median"] * batch**0.85
    return {
        "artifact": entry["artifact"],
        "device": "cpu",
        "precision": entry["precision"],
        "backend": entry["backend"],
        "scenario": scenario,
        "batch": batch,
        "examples": 512,
        "tokens_mean": 27.4,
        "tokens_max": 67,
        "latency_ms": {"median": median, "n": 512 // batch},
        "examples_per_s": 1000 * batch / median,
        "speedup": entry["speedup"],
    }


def _profile(entry: dict[str, Any]) -> dict[str, Any]:
    total = entry["latency_ms"]["median"]
    shares = {"MatMul": 0.52, "Softmax": 0.16, "LayerNormalization": 0.12, "Gelu": 0.11}
    shares |= {"Add": 0.05, "Transpose": 0.02, "Reshape": 0.01, "Gather": 0.01}
    return {
        "artifact": entry["artifact"],
        "device": "cpu",
        "batch": 1,
        "tokens": 128,
        "total_ms": total,
        "operators": [
            {"name": name, "ms": share * total, "share": share, "calls": 6}
            for name, share in shares.items()
        ],
    }


def _flips(artifact: str) -> list[dict[str, Any]]:
    texts = ("A fine, witty film.", "It drags, and then it drags some more.", None)
    return [
        {
            "artifact": artifact,
            "id": number,
            "label": "fresh",
            "before": "fresh" if number % 2 else "rotten",
            "after": "rotten" if number % 2 else "fresh",
            "direction": "lost" if number % 2 else "gained",
            "confidence": 0.97,
            "text": texts[number % 3],
        }
        for number in range(6)
    ]


@pytest.fixture
def one_round() -> dict[str, Any]:
    """What one round tells of a speed-up: a value, and bounds of no confidence."""
    return {"value": 40.33, "low": 39.09, "high": 41.62, "confidence": 0.0, "blocks": 1} | {
        "processes": 1,
        "verdict": "inconclusive",
    }


@pytest.fixture
def skewed() -> dict[str, Any]:
    """A speed-up that is proved, and known to a factor only."""
    return {"value": 24.05, "low": 8.18, "high": 137.46, "confidence": 0.95, "blocks": 6} | {
        "processes": 2,
        "verdict": "faster",
    }
