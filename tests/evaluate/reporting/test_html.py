import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tcompress.evaluate.reporting.html import render_html
from tcompress.evaluate.reporting.report import write_report
from tcompress.evaluate.reporting.summary import cleaned

Document = dict[str, Any]

_NUMBER = re.compile(r"(?<![\w.,/-])[+−-]?(\d[\d,]*)(\.\d+)?(?:e([+-]\d+))?(?![\w/])")
# A fraction in per cent; bytes, multiply-accumulates and counts in larger units.
_SCALES = (1, 100, 1e-3, 1e-6, 1e-9, 1e-12)


def known_numbers(value: Any, key: str = "") -> Iterator[float]:
    if key == "samples":
        return
    if isinstance(value, dict):
        for name, item in value.items():
            yield from known_numbers(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from known_numbers(item)
    elif isinstance(value, int | float):
        yield float(value)


def known_texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from known_texts(item)
    elif isinstance(value, str) and re.search(r"\d", value):
        yield value


def unknown_numbers(html: str, document: Document, page: type) -> list[str]:
    """Return the numbers that a reader sees and that no number of the document rounds to."""
    text = " ".join(" ".join(page(html).data).split())
    for name in sorted(set(known_texts(cleaned(document))), key=len, reverse=True):
        text = text.replace(name, " ")
    text = re.sub(r"\b(layer|head) \d+", "", text)
    known = [abs(n) * scale for n in known_numbers(document) for scale in _SCALES]
    return [found[0] for found in _NUMBER.finditer(text) if not _is_rounding(found, known)]


def _is_rounding(found: re.Match[str], known: list[float]) -> bool:
    digits, decimals, exponent = found[1].replace(",", ""), found[2] or "", int(found[3] or 0)
    shown = float(digits + decimals) * 10.0**exponent
    step = 10.0 ** (exponent - max(0, len(decimals) - 1))
    return any(abs(number - shown) <= 0.5001 * step for number in known)


def test_page_needs_nothing_from_outside(full: Document, parse_page: type):
    html = render_html(full)
    page = parse_page(html)
    assert not re.search(r"https?:|//\w|url\((?!#)|@import|javascript:", html)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "img", "object"}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") or name == "src" for name in attributes)
        assert attributes.get("href", "#").startswith("#")


def test_four_questions_come_in_order(full: Document):
    questions = re.findall(r"<h2[^>]*>([^<]+)</h2>", render_html(full))
    assert questions == [
        "What should I ship?",
        "What did it cost?",
        "Can I believe it?",
        "Where did the time go?",
    ]


def test_every_id_is_unique_and_every_reference_meets_one(full: Document, parse_page: type):
    html = render_html(full)
    ids = [attributes["id"] for _, attributes in parse_page(html).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)|aria-labelledby="([^"]+)"', html)
    assert {name for found in named for part in found for name in part.split()} <= set(ids)


@pytest.mark.parametrize("fixture", ["document", "full"])
def test_every_number_on_the_page_is_in_the_json(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path, parse_page: type
):
    document = request.getfixturevalue(fixture)
    html, _, numbers, *_ = write_report(document, tmp_path)
    written = json.loads(numbers.read_text())
    assert written == document
    assert unknown_numbers(html.read_text("utf-8"), written, parse_page) == []


def test_wrong_numbers_on_the_page_are_found(full: Document, parse_page: type):
    html = render_html(full)
    seeded = {"82.25 %": "82.57 %", "4.80 times": "4.17 times", "1599": "1699"}
    seeded |= {"6.25 ms": "6.93 ms"}
    for shown, wrong in seeded.items():
        assert shown in html
        html = html.replace(shown, wrong)
    found = unknown_numbers(html, full, parse_page)
    assert set(found) == {wrong.split()[0] for wrong in seeded.values()}


def test_pictures_have_a_title_a_description_and_a_table(full: Document, parse_page: type):
    page = parse_page(render_html(full))
    pictures = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(pictures) == 3 + 1 + 1 + 1 + 1 + 2
    assert all("aria-labelledby" in svg for svg in pictures)
    assert len(page.all("desc")) == len(pictures)
    assert len(page.all("table")) >= len(pictures)
    assert len(page.all("caption")) == len(page.all("table"))
    assert page.text.count(", removed") == 18


def test_names_from_files_are_only_ever_text(
    full: Document, hostile: tuple[str, ...], parse_page: type
):
    source, other = full["measurements"][0], full["measurements"][3]
    full["measurements"] = [source] + [
        other | {"artifact": name, "latency_ms": other["latency_ms"] | {"median": 6.0 + i}}
        for i, name in enumerate(hostile)
    ]
    full["notes"] = list(hostile)
    full["data"]["origin"] = full["heads"]["criterion"] = "".join(hostile)
    full["flipped"] = [
        full["flipped"][0] | {"artifact": name, "text": name, "label": name} for name in hostile
    ]
    full["mixes"] = [full["mixes"][0] | {"artifact": name} for name in hostile]
    full["operators"][0]["operators"][0]["name"] = "".join(hostile)
    html = render_html(full)
    page = parse_page(html)
    assert not {tag for tag, _ in page.elements} & {"script", "img"}
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e]", html)
    for name in hostile[:-1]:
        shown = re.sub(r"[\x1b\u202e\ud800]", "\N{REPLACEMENT CHARACTER}", name.replace("\n", " "))
        assert shown in page.text
    assert len(html.encode()) < 500_000


def test_time_in_kernels_has_a_column_where_a_gpu_told_it(
    full: Document, faults: Callable[[Document], list[str]], parse_page: type
):
    assert "in kernels, ms" not in parse_page(render_html(full)).text
    full["measurements"][1]["device"] = "cuda"
    full["measurements"][1]["latency_ms"]["kernels"] = {"median": 2.71, "n": 60}
    page = parse_page(render_html(full)).text
    assert "in kernels, ms" in page
    assert "2.71" in page
    assert faults(full) == []


def test_what_scrolls_can_be_reached_and_has_a_name(full: Document, parse_page: type):
    page = parse_page(render_html(full))
    scrolled = [d for d in page.all("div") if d.get("class") == "scroll"]
    assert len(scrolled) == len(page.all("figure")) + len(page.all("table"))
    assert all((d["tabindex"], d["role"]) == ("0", "region") for d in scrolled)
    names = [d["aria-label"] for d in scrolled]
    assert all(names)
    assert len(set(names)) == len(names)


def test_front_agrees_with_what_is_recommended(
    document: Document, one_round: Document, parse_page: type
):
    for entry in document["measurements"][1:]:
        entry |= {"speedup": one_round, "not_inferior": True}
        entry["metrics"]["accuracy"] = 0.84
    page = parse_page(render_html(document)).text
    assert "Keep source: nothing else was shown to be faster" in page
    rows = re.findall(r"(baseline|loss proved small) (yes|not sure|no)", page)
    assert rows[0] == ("baseline", "yes")
    assert [word for _, word in rows[1:]] == ["no", "no", "no", "not sure"]


def test_confidence_of_every_kind_of_interval_is_told(full: Document, parse_page: type):
    assert (
        "Intervals: of each accuracy 95 %, two-sided; of a speed-up 95 %, two-sided; of a drop "
        "90 %, two-sided, so that each of its ends alone holds with 95 %."
    ) in parse_page(render_html(full)).text


def test_parts_are_in_order_of_harm_only_where_there_is_some(full: Document, parse_page: type):
    assert parse_page(render_html(full)).text.count(", most harmed first") == 2
    for entry in full["measurements"]:
        for part in entry["classes"]:
            part["recall"] = part["recall_baseline"]
        for part in entry["slices"]:
            part["drop"] = -0.01
    assert "most harmed" not in parse_page(render_html(full)).text


def test_report_is_the_same_every_time(full: Document):
    assert render_html(full) == render_html(copy.deepcopy(full))


def test_page_of_a_large_encoder_is_small(
    document: Document, measured: Callable[..., dict[str, Any]]
):
    draw, layers, heads = random.Random(1), 24, 16
    shape = {"heads": [heads] * layers, "neurons": [4096] * layers}
    less = {"heads": [11] * layers, "neurons": [3000] * layers}
    document["measurements"] = [
        measured(name, latency, 0.83, device=device, batch=batch) | kept
        for device in ("cpu", "cuda")
        for batch in (1, 8)
        for name, latency, kept in [("source", 30.0, shape)]
        + [(f"artifact {i}", 20.0 - i, less) for i in range(12)]
    ]
    document["flipped"] = [
        {"artifact": f"artifact {i}", "id": n, "label": "a", "before": "a", "after": "b"}
        | {"direction": "lost", "text": "ä" * 300}
        for i in range(12)
        for n in range(20)
    ]
    document["heads"] = {
        "criterion": "gradient",
        "scores": [[draw.random() for _ in range(heads)] for _ in range(layers)],
        "kept": [list(range(11))] * layers,
    }
    assert len(render_html(document).encode()) < 500_000


def test_page_of_hundreds_of_measurements_is_small(full: Document):
    first = full["measurements"][:5]
    full["measurements"] = [e | {"tokens": n} for n in range(8, 108) for e in first]
    html = render_html(full)
    assert len(html.encode()) < 500_000
    assert "the others are in report.json" in html


def test_data_without_labels_have_a_page(document: Document, parse_page: type):
    for entry, agreement in zip(document["measurements"], (1, 0.97, 0.995, 0.98, 0.5), strict=True):
        entry |= {"metrics": {"agreement": agreement}, "accuracy_interval": None}
        entry |= {"accuracy_drop": None, "flips": None, "not_inferior": None}
    document |= {"heads": None, "gpu": None, "notes": []}
    document["data"]["split"] = document["environment"]["noise_floor"] = None
    assert "agreement, %" in parse_page(render_html(document)).text
