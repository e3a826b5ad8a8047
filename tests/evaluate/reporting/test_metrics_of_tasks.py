"""The report on tasks whose answers are not classes."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from tcompress.console import Console
from tcompress.evaluate.comparison import quality_answer
from tcompress.evaluate.entry import UNPROVED_METRICS, words_of
from tcompress.evaluate.quality import METRICS
from tcompress.evaluate.reporting.html import render_html
from tcompress.evaluate.reporting.markdown import render_markdown
from tcompress.evaluate.reporting.model_card import render_cards
from tcompress.evaluate.reporting.summary import Summary
from tcompress.evaluate.reporting.wording import recommendation
from tcompress.evaluate.scored import TASK_METRICS
from tcompress.evaluate.showing import show_document

Document = dict[str, Any]
_OF_CLASSES = ("classes", "slices", "lengths", "accuracy_interval", "accuracy_drop")
_LIKELIHOOD = ("divergence", "divergence_p99", "calibration_error", "negative_log_likelihood")


def told_by(document: Document, metric: str, others: dict[str, float]) -> Document:
    """Return a document whose accuracies are values of another metric."""
    for entry in (*document["measurements"], *document["earlier"]):
        value, drop = entry["metrics"]["accuracy"], entry["accuracy_drop"]
        bounds = {"low": drop - 0.002, "high": drop + 0.003, "confidence": 0.9}
        entry |= dict.fromkeys((*_OF_CLASSES, *_LIKELIHOOD, "accuracy_drop_interval"))
        entry |= {"metric": metric, "metrics": {metric: value, **others}, "metric_intervals": {}}
        entry |= {"metric_drop": drop, "metric_drop_interval": bounds}
        entry |= {"calibration_error_baseline": None, "agreement": None, "flips": None}
    document["flipped"] = []
    document["mixes"] = []
    return document


@pytest.mark.parametrize(
    ("metric", "shown", "lost"),
    [
        pytest.param("entity_f1", "82.25 % entity F1, 0.75 points below it", "1 point", id="%"),
        pytest.param("pearson", "a Pearson correlation of 0.8225, 0.0075 below it", "0.01", id="r"),
    ],
)
def test_metrics_are_told_by_name_and_only_fractions_in_per_cent(
    full: Document, metric: str, shown: str, lost: str, capsys: pytest.CaptureFixture[str]
):
    document = told_by(full, metric, {"mse": 12.25})
    summary, name = Summary.of(document), words_of(metric).name
    sentence = recommendation(summary, summary.settings[0])
    assert f" at {shown}. On 4,000 examples its loss is proved to stay below {lost}." in sentence
    show_document(Console(), document)
    pages = [render_html(document), render_markdown(document), *render_cards(document).values()]
    for text in (capsys.readouterr().out, *pages):
        assert re.search(name, text)
        assert "accuracy" not in text.lower()
    assert "12.250" in pages[0]
    assert f"its {name} is" in quality_answer(document["measurements"][3], 0.01)


def test_a_document_of_a_task_keeps_the_schema(full: Document, faults: Callable[..., list[str]]):
    document = told_by(full, "cosine", {"neighbour_agreement": 0.5, "mse": 7.0})
    assert faults(document) == []
    document["measurements"][1]["metric"] = "cosinus"
    assert len(faults(document)) == 1


def test_every_metric_has_a_name_that_fits_into_its_column():
    for metric in (*METRICS, *TASK_METRICS, *UNPROVED_METRICS, "mse"):
        words = words_of(metric)
        assert "_" not in words.name
        assert len(words.short) <= 9
