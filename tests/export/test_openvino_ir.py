import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tcompress.compress.pruning import prune_
from tcompress.encoder import Encoder
from tcompress.errors import CalibrationError, ExportError
from tcompress.export import openvino_ir
from tcompress.export.exporting import write_export
from tcompress.loading import load
from tcompress.plan import CompressionPlan, Precision
from tcompress.preprocessing import Batch
from tcompress.runtime import import_openvino

pytest.importorskip("nncf", reason='needs pip install "tcompress[openvino]"')


def calibration(encoder: Encoder) -> tuple[Batch, ...]:
    lengths = (3, 8, 17, 20) * 4
    return tuple(encoder.preprocessor.random_batch(2, n, i) for i, n in enumerate(lengths))


def int8_of(directory: Path) -> set[str]:
    """Names of the operators whose weights are int8 constants in the file."""
    model = import_openvino().Core().read_model(directory / "model.xml")
    small = [
        op
        for op in model.get_ops()
        if op.get_type_name() == "Constant" and op.get_element_type().size == 1
    ]
    return {op.get_friendly_name() for op in small if len(op.get_output_shape(0)) == 2}


@pytest.mark.parametrize("model", ["bert", "roberta", "torch-pre-norm", "torch-sequence-first"])
def test_fp32_equals_its_source_at_every_shape(
    model: str, model_directories: Callable, uneven_plan: CompressionPlan, tmp_path: Path
) -> None:
    encoder = load(model_directories(model))
    prune_(encoder, uneven_plan)
    details = write_export(encoder, "openvino", tmp_path)
    assert len({tuple(shape) for shape in details["parity"]["shapes"]}) >= 6
    assert details["parity"]["max_abs_difference"] < 1e-5
    assert details["int8_weights"] == {}
    assert not int8_of(tmp_path)


@pytest.mark.parametrize("model", ["bert", "torch-pre-norm"])
def test_int8_is_real_and_near_its_source(
    model: str, model_directories: Callable, uneven_plan: CompressionPlan, tmp_path: Path
) -> None:
    encoder = load(model_directories(model))
    prune_(encoder, uneven_plan.with_precision(Precision.INT8))
    details = write_export(encoder, "openvino", tmp_path, calibration=calibration(encoder))
    assert 1e-5 < details["parity"]["max_abs_difference"] < 0.3
    # layer 1 lost its attention, layer 2 its FFN; heads are 8 wide
    assert details["int8_weights"] == {
        "layer.0.attention": 4 * 32 * 3 * 8,
        "layer.0.feed_forward": 2 * 32 * 24,
        "layer.1.feed_forward": 2 * 32 * 35,
        "layer.2.attention": 4 * 32 * 8,
    }


def test_every_sublayer_runs_in_the_precision_of_its_plan(bert: Encoder, tmp_path: Path) -> None:
    first, *others = bert.plan.layers
    first = replace(first, attention=Precision.INT8)
    last = replace(others.pop(), feed_forward=Precision.INT8)
    bert.plan = replace(bert.plan, layers=(first, *others, last))
    details = write_export(bert, "openvino", tmp_path, calibration=calibration(bert))
    assert set(details["int8_weights"]) == {"layer.0.attention", "layer.2.feed_forward"}
    # the token table; q, k, v and output of layer 0; both FFN matrices of layer 2
    assert len(int8_of(tmp_path)) == 1 + 4 + 2
    model = import_openvino().Core().read_model(tmp_path / "model.xml")
    assert model.get_rt_info(["tcompress", "precision"]).value == "mixed"
    assert json.loads(model.get_rt_info(["tcompress", "plan"]).value) == bert.plan.summary()


def test_a_product_that_missed_int8_is_not_accepted(
    bert: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower = openvino_ir._lower
    bert.plan = bert.plan.with_precision(Precision.INT8)

    def forgetful(model, names, *rest):
        return lower(model, names[1:], *rest)

    monkeypatch.setattr(openvino_ir, "_lower", forgetful)
    message = r"multiplies 3072 weights of layer\.0\.attention in int8, the plan asks for 4096"
    with pytest.raises(ExportError, match=message):
        write_export(bert, "openvino", tmp_path, calibration=calibration(bert))


def test_int8_without_examples_is_refused(bert: Encoder, tmp_path: Path) -> None:
    bert.plan = bert.plan.with_precision(Precision.INT8)
    with pytest.raises(CalibrationError, match="ranges of activations from examples, and got none"):
        write_export(bert, "openvino", tmp_path)


def test_the_command_calibrates_evaluates_and_knows_when_it_is_done(
    text_workspace: Path, reviews_file: Path, tcompress: Callable
) -> None:
    where = ("--workspace", text_workspace)
    assert tcompress("quantize", *where).exit_code == 0
    export = ("export", "--format", "openvino", *where)
    first = tcompress(*export, "--json")
    assert first.exit_code == 0, first.output
    summary = json.loads(first.stdout)
    assert summary["recipe"]["calibration"]
    assert "up to date" in tcompress(*export).stderr
    part = text_workspace / "part.csv"
    part.write_text("".join(reviews_file.read_text().splitlines(keepends=True)[:60]))
    other = tcompress(*export, "--data", part)
    assert (other.exit_code, "exists already" in other.stderr) == (2, True)
    idle = tcompress(*export, "--precision", "fp32", "--data", part)
    assert (idle.exit_code, "--data is what int8 is calibrated on" in idle.stderr) == (2, True)

    shape = ("--batch", "1", "--tokens", "8", "--budget-s", "1", "--no-mix")
    result = tcompress("evaluate", *where, *shape, "--json")
    assert result.exit_code == 0, result.output
    rows = {row["artifact"]: row for row in json.loads(result.stdout)["measurements"]}
    measured = rows["export/openvino"]
    files = [
        text_workspace / "artifacts/export/openvino" / f"model.{end}" for end in ("xml", "bin")
    ]
    assert (measured["backend"], measured["precision"]) == ("openvino", "int8")
    assert measured["size_bytes"] == sum(file.stat().st_size for file in files)


def test_openvino_is_imported_without_its_telemetry() -> None:
    script = (
        "import sys; from tcompress.runtime import import_nncf, import_openvino;"
        "import_openvino(); import_nncf();"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
