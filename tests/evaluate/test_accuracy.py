from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tcompress.artifact import Artifact
from tcompress.data import Columns, Examples, read_examples
from tcompress.encoder import open_encoder
from tcompress.errors import ArtifactError, ModelError
from tcompress.evaluate.accuracy import predict, run_predictions
from tcompress.evaluate.engine_process import EngineProcess

WEIGHT = np.random.default_rng(1).standard_normal((4, 3))


@pytest.fixture
def examples(data: Path) -> Examples:
    return read_examples(data, Columns())


def test_exported_file_answers_on_its_own_engine_in_the_order_of_the_examples(
    source: Path, tmp_path: Path, examples: Examples, write_onnx: Callable[..., Artifact]
):
    write_onnx(source, tmp_path / "linear", WEIGHT)
    # Of different lengths, so that they are batched in another order than they stand.
    mask = np.arange(6) < 1 + np.arange(len(examples))[:, None] % 6
    uneven = Examples("test", examples.ids, inputs=examples.inputs * mask[..., None], mask=mask)
    with EngineProcess(tmp_path / "linear") as engine:
        assert engine.info.backend == "onnxruntime"
        found = predict(engine, uneven)
    np.testing.assert_allclose(found.logits, uneven.inputs.sum(1) @ WEIGHT, atol=1e-5)
    np.testing.assert_array_equal(found.tokens, mask.sum(1))


def test_int8_plan_is_real_in_pytorch(
    source: Path, tmp_path: Path, examples: Examples, write_encoder: Callable[..., Artifact]
):
    write_encoder(source, tmp_path / "quantize", "quantize", precision="int8")
    found = run_predictions(tmp_path / "quantize", examples).logits
    mask = np.ones(examples.inputs.shape[:2], dtype=np.int64)
    exact = open_encoder(source).predict({"inputs": examples.inputs, "attention_mask": mask})
    error = np.abs(found - exact).max()
    assert 1e-4 < error < 0.1 * np.abs(exact).max()


def test_answers_that_are_not_finite_name_the_artifact(
    source: Path, tmp_path: Path, examples: Examples, write_onnx: Callable[..., Artifact]
):
    write_onnx(source, tmp_path / "broken", np.full((4, 3), np.nan))
    with pytest.raises(ModelError, match="export/broken: 150 of 150 answers are not finite"):
        run_predictions(tmp_path / "broken", examples, name="export/broken")


def test_error_of_the_engine_process_keeps_its_type_and_message(
    source: Path, tmp_path: Path, examples: Examples, write_onnx: Callable[..., Artifact]
):
    artifact = write_onnx(source, tmp_path / "damaged", WEIGHT)
    with (artifact.directory / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(ArtifactError, match=r"damaged: .*model\.onnx.*write the artifact again"):
        run_predictions(artifact.directory, examples)
