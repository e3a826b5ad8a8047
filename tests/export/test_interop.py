"""Exported directories in the hands of others."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, pipeline

from tcompress.compress.pruning import prune_
from tcompress.data import Examples
from tcompress.export.exporting import write_export
from tcompress.loading import load
from tcompress.plan import CompressionPlan, Precision
from tcompress.runtime import open_model_file

README = Path(__file__).parents[2] / "README.md"
TEXTS = ("a fine film", "the plot was very dull and not good", "great")


def lines_for_plain_onnx_runtime() -> str:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return next(block for block in blocks if "tokenizers.Tokenizer" in block)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_the_lines_in_the_readme_answer_a_text_without_tcompress(
    kind: str,
    model_directories: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    encoder = load(model_directories(kind))
    directory = tmp_path / "artifacts/export/onnx"
    directory.mkdir(parents=True)
    write_export(encoder, "onnx", directory)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(lines_for_plain_onnx_runtime(), names)
    examples = Examples("test", ids=("0",), texts=("a fine film",))
    expected = encoder.predict(encoder.preprocessor.encode(examples).collate([0]))
    np.testing.assert_allclose(names["logits"], expected, atol=1e-5)
    assert capsys.readouterr().out.strip() == encoder.labels[expected.argmax()]


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
def test_optimum_answers_as_tcompress_does(
    kind: str,
    precision: Precision,
    model_directories: Callable,
    uneven_plan: CompressionPlan,
    tmp_path: Path,
) -> None:
    optimum = pytest.importorskip("optimum.onnxruntime", reason="needs pip install optimum-onnx")
    encoder = load(model_directories(kind))
    prune_(encoder, uneven_plan.with_precision(precision))
    names = write_export(encoder, "onnx", tmp_path)["input_names"]
    model = optimum.ORTModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    batch = dict(tokenizer(list(TEXTS), padding=True, return_tensors="np"))
    expected = open_model_file("onnx", tmp_path, names)(batch)
    np.testing.assert_allclose(model(**batch).logits, expected, atol=1e-6)
    answers = pipeline("text-classification", model=model, tokenizer=tokenizer)(list(TEXTS))
    assert [answer["label"] for answer in answers] == [
        encoder.labels[index] for index in expected.argmax(-1)
    ]
