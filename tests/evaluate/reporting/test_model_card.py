from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tcompress.evaluate.reporting.model_card import render_cards

Document = dict[str, Any]


@pytest.fixture
def source(document: Document, tmp_path: Path) -> Path:
    document["measurements"][0]["path"] = str(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def test_hub_reads_the_metadata_and_the_measured_metrics(document: Document, source: Path):
    cards = render_cards(document)
    assert list(cards) == ["prune", "finetune", "export-onnx-int8", "export-tiny"]
    data = ModelCard(cards["export-onnx-int8"]).data
    assert (data.library_name, data.pipeline_tag) == ("onnx", "text-classification")
    assert {"onnxruntime", "int8"} <= set(data.tags or [])
    measured = {result.metric_type: result.metric_value for result in data.eval_results or []}
    assert measured == {"accuracy": 0.8225, "f1": 0.8125, "matthews_correlation": 0.645}


def test_what_is_not_known_is_left_out(document: Document, source: Path):
    data = ModelCard(render_cards(document)["prune"]).data
    assert (data.license, data.language, data.base_model) == (None, None, None)
    assert str(source) not in render_cards(document)["prune"]


def test_license_and_language_are_those_of_the_source(document: Document, source: Path):
    (source / "README.md").write_text("---\nlicense: mit\nlanguage: de\n---\n# Source\n")
    data = ModelCard(render_cards(document)["prune"]).data
    assert (data.license, data.language) == ("mit", "de")


def test_card_says_whether_its_loss_is_proved(document: Document, source: Path):
    cards = render_cards(document)
    assert "- proved to lose less than 1 point of accuracy" in cards["export-onnx-int8"]
    assert "- loses more than 1 point, as measured" in cards["export-tiny"]


def test_names_neither_break_the_metadata_nor_leave_the_directory(
    document: Document, source: Path, hostile: tuple[str, ...]
):
    other = document["measurements"][3]
    names = [*hostile, "../../x", "a/b", "a-b"]
    document["measurements"][1:] = [other | {"artifact": name} for name in names]
    cards = render_cards(document)
    assert len(cards) == len(names)
    for stem, text in cards.items():
        assert "/" not in stem
        assert not stem.startswith(".")
        assert ModelCard(text).data.library_name == "onnx"
