import copy
import json
import random
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tcompress.evaluate.reporting.report import Summary, recommendation, render_html, write_report

HOSTILE = (
    "<script>alert(1)</script>",
    "[red]bold[/red]",
    "::error::broken",
    "$x_2$ and $y",
    "a|b`c` **d** @all",
    "esc\x1b[31m \u202eltr\nnext",
    "lone \ud800",
    '"><img src=x onerror=alert(1)>',
)
LAYERS, HEADS = 6, 12


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
        "latency_ms": {"median": latency_ms, "n": 60, "samples": [latency_ms] * 60},
        "speedup": {
            "value": speedup,
            "low": speedup * (1 if is_source else 0.95),
            "high": speedup * (1 if is_source else 1.06),
            "confidence": 0.95,
        },
        "metrics": {"accuracy": accuracy, "macro_f1": accuracy - 0.01, "mcc": 2 * accuracy - 1},
        "accuracy_interval": {"low": accuracy - 0.0123, "high": accuracy + 0.0117},
        "accuracy_drop": 0.83 - accuracy,
        "flips": {"lost": lost, "gained": 11},
        "macs": 1_430_000_000,
        "size_bytes": 90_000_000,
        "heads": [HEADS] * LAYERS if is_source else [9] * LAYERS,
        "neurons": [1536] * LAYERS if is_source else [1200] * LAYERS,
        "stale": False,
    } | changes


def speedup(value: float, low: float, confidence: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": value, "confidence": confidence}


@pytest.fixture
def document() -> dict[str, Any]:
    draw = random.Random(0)
    return {
        "schema_version": 1,
        "baseline": "source",
        "environment": {
            "cpu": "A processor",
            "cpu_features": {"avx2": True, "amx_int8": False},
            "cpus_usable": 2,
            "memory_bytes": 16_000_000_000,
            "gpu": None,
            "system": "Linux 6",
            "threads": 2,
            "versions": {"tcompress": "0.1.0", "torch": "2.13.0"},
            "load_before": [0.1, 0.2, 0.3],
            "load_after": [1.9, 0.8, 0.4],
            "noise_floor": {"low": 0.98, "high": 1.03, "value": 1.001},
        },
        "data": {
            "origin": "reviews.csv",
            "split": "test",
            "examples": 4000,
            "digest": "d" * 64,
            "truncated": 3,
        },
        "gpu": "GPU: none here; measured on the CPU only",
        "measurements": [
            measurement("source", 30.0, 0.83),
            measurement("prune", 22.0, 0.815),
            measurement("finetune", 21.9, 0.8275),
            measurement("export/onnx-int8", 6.25, 0.8225, precision="int8"),
            measurement("export/tiny", 3.125, 0.7),
        ],
        "heads": {
            "criterion": "gradient",
            "scores": [[draw.random() for _ in range(HEADS)] for _ in range(LAYERS)],
            "kept": [list(range(9)) for _ in range(LAYERS)],
        },
        "notes": ["a note"],
    }


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers_in(item)
    elif isinstance(value, int | float):
        yield float(value)


def sentence(document: dict[str, Any]) -> str:
    summary = Summary.of(document)
    return recommendation(summary, summary.settings[0])


def test_page_needs_nothing_from_outside(document: dict[str, Any]):
    html = render_html(document)
    page = Page(html)
    assert not re.search(r"https?:|//\w|url\((?!#)|@import|javascript:", html)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "img", "object"}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") or name == "src" for name in attributes)
        assert attributes.get("href", "#").startswith("#")


def test_every_id_is_unique_and_every_reference_meets_one(document: dict[str, Any]):
    html = render_html(document)
    ids = [attributes["id"] for _, attributes in Page(html).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)|aria-labelledby="([^"]+)"', html)
    assert {name for found in named for part in found for name in part.split()} <= set(ids)


def test_every_number_in_a_table_is_in_the_json(document: dict[str, Any], tmp_path: Path):
    html, markdown, numbers = write_report(document, tmp_path)
    assert markdown.name == "report.md"
    written = json.loads(numbers.read_text())
    assert written == document
    known = set(numbers_in(written))
    shown = [float(data["value"]) for data in Page(html.read_text("utf-8")).all("data")]
    assert len(shown) > 100
    assert set(shown) <= known


def test_pictures_have_a_title_a_description_and_a_table(document: dict[str, Any]):
    page = Page(render_html(document))
    pictures = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(pictures) == 3
    assert all("aria-labelledby" in svg for svg in pictures)
    assert len(page.all("desc")) == 3
    assert len(page.all("table")) == 4
    assert "layer 0, head 11" in page.text
    assert page.text.count(", removed") == 3 * LAYERS


def test_names_from_files_are_only_ever_text(document: dict[str, Any], tmp_path: Path):
    source, other = document["measurements"][0], document["measurements"][3]
    document["measurements"] = [source] + [
        other | {"artifact": name, "latency_ms": other["latency_ms"] | {"median": 6.0 + i}}
        for i, name in enumerate(HOSTILE)
    ]
    document["notes"] = list(HOSTILE)
    document["data"]["origin"] = document["heads"]["criterion"] = "".join(HOSTILE)
    html, markdown, numbers = (p.read_text("utf-8") for p in write_report(document, tmp_path))
    page = Page(html)
    assert not {tag for tag, _ in page.elements} & {"script", "img"}
    in_pictures = html[html.index("<svg") : html.index("</svg>")]
    for name in HOSTILE:
        shown = re.sub(r"[\x1b\u202e\ud800]", "\N{REPLACEMENT CHARACTER}", name.replace("\n", " "))
        assert shown in page.text
        assert shown.replace("<", "&lt;").replace(">", "&gt;") in in_pictures
        as_code = shown.replace("`", "'").replace("|", "¦")
        assert markdown.count(f"`{as_code}`") >= 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e]", html + markdown)
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {11}
    assert json.loads(numbers)["notes"] == list(HOSTILE)


def test_report_is_the_same_every_time(document: dict[str, Any]):
    assert render_html(document) == render_html(copy.deepcopy(document))


def test_page_of_a_large_encoder_is_small(document: dict[str, Any]):
    draw, layers, heads = random.Random(1), 24, 16
    shape = {"heads": [heads] * layers, "neurons": [4096] * layers}
    less = {"heads": [11] * layers, "neurons": [3000] * layers}
    document["measurements"] = [
        measurement(name, latency, 0.83, device=device, batch=batch) | kept
        for device in ("cpu", "cuda")
        for batch in (1, 8)
        for name, latency, kept in [("source", 30.0, shape)]
        + [(f"artifact {i}", 20.0 - i, less) for i in range(12)]
    ]
    document["heads"] = {
        "criterion": "gradient",
        "scores": [[draw.random() for _ in range(heads)] for _ in range(layers)],
        "kept": [list(range(11))] * layers,
    }
    assert len(render_html(document).encode()) < 500_000


def test_fastest_measurement_within_a_point_is_recommended(document: dict[str, Any]):
    assert sentence(document) == (
        "Ship export/onnx-int8 (onnxruntime, int8): 4.80 times as fast as source (6.25 ms instead "
        "of 30 ms) at 82.25 % accuracy, 0.75 points below it, on 4,000 examples."
    )


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"stale": True}, id="out-of-date"),
        pytest.param({"accuracy_drop": 0.0101}, id="loses-too-much"),
        pytest.param({"speedup": speedup(4.8, 0.99, 0.95)}, id="not-shown-faster"),
        pytest.param({"speedup": speedup(4.8, 4.8, 0.0)}, id="one-round"),
        pytest.param({"batch": 8}, id="another-setting"),
    ],
)
def test_what_may_not_be_recommended_is_not(document: dict[str, Any], change: dict[str, Any]):
    document["measurements"][3] |= change
    assert sentence(document).startswith("Ship finetune ")


def test_baseline_is_kept_where_nothing_is_better(document: dict[str, Any]):
    del document["measurements"][2:4]
    assert sentence(document) == (
        "Keep source: none of the 2 others was shown to be faster at a cost of at most 1 point of "
        "accuracy. The fastest, export/tiny, is 9.60 times as fast and gives up 13.00 points."
    )
    render_html(document)


def test_without_labels_agreement_takes_the_place_of_accuracy(document: dict[str, Any]):
    for entry, agreement in zip(document["measurements"], (1, 0.97, 0.995, 0.98, 0.5), strict=True):
        entry |= {"metrics": {"agreement": agreement}, "accuracy_interval": None}
        entry |= {"accuracy_drop": None, "flips": None}
    document |= {"heads": None, "gpu": None, "notes": []}
    document["data"]["split"] = document["environment"]["noise_floor"] = None
    assert "Ship finetune" in sentence(document)
    assert "the same answer in 99.50 % of the cases" in sentence(document)
    assert "agreement, %" in Page(render_html(document)).text
