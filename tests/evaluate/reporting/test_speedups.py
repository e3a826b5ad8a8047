from collections.abc import Callable
from typing import Any

import pytest

from tcompress.evaluate import speedups
from tcompress.evaluate.reporting.html import render_html
from tcompress.evaluate.reporting.markdown import render_markdown
from tcompress.evaluate.reporting.model_card import render_cards

Document = dict[str, Any]


@pytest.mark.parametrize(
    ("low", "value", "high", "told"),
    [
        pytest.param(6.51, 6.99, 7.47, "6.99 (6.5–7.5)", id="narrow"),
        pytest.param(8.18, 24.05, 137.46, "24.1 (8.2–137)", id="skewed"),
        pytest.param(1.004, 1.21, 1.44, "1.21 (1.00–1.44)", id="near-one"),
        pytest.param(0.0068, 0.05, 0.071, "0.05 (0.007–0.071)", id="tiny"),
    ],
)
def test_a_cell_holds_as_many_digits_as_are_known(low: float, value: float, high: float, told: str):
    assert speedups.cell({"low": low, "value": value, "high": high, "confidence": 0.95}) == told


def test_wide_is_what_may_be_off_by_a_fifth_on_either_side():
    assert not speedups.is_wide({"low": 0.85, "value": 1.0, "high": 1.15})
    assert speedups.is_wide({"low": 0.95, "value": 1.0, "high": 1.25})
    assert speedups.is_wide({"low": 0.75, "value": 1.0, "high": 1.05})


def test_an_interval_of_one_round_stands_nowhere(
    full: Document, one_round: dict[str, Any], parse_page: type
):
    for entry in (*full["measurements"], *full["mixes"], *full["earlier"]):
        if entry["speedup"].get("blocks"):
            entry["speedup"] = one_round
    full["environment"]["noise_floor"] = one_round
    full["environment"]["noise_floors"][0] |= one_round
    page = parse_page(render_html(full))
    assert "40.3× ?" in page.text
    for text in (page.text, render_markdown(full), *render_cards(full).values()):
        assert "39.09" not in text
        assert "41.6" not in text
    assert "40.3 (?)" in render_markdown(full)
    assert all("40.3 (?)" in card for card in render_cards(full).values())


def test_the_baseline_has_no_interval(full: Document, parse_page: Callable[..., Any]):
    texts = (parse_page(render_html(full)).text, render_markdown(full))
    assert not any("1.00 to 1.00" in text or "1.00–1.00" in text for text in texts)
