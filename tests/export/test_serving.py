"""Exported files, opened and counted in a process of their own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from tcompress.encoder import Encoder
from tcompress.errors import ArtifactError, ExportError
from tcompress.export.exporting import write_export
from tcompress.export.onnx_writer import GraphWriter
from tcompress.export.parity import check_executed
from tcompress.export.serving import ServedProcess
from tcompress.plan import Precision

pytestmark = pytest.mark.fresh_engines

NAMES = ("input_ids", "token_type_ids", "attention_mask")
write_node = GraphWriter.node


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_a_process_of_its_own_answers_as_the_source(
    kind: str, bert: Encoder, tmp_path: Path
) -> None:
    write_export(bert, kind, tmp_path)
    batch = bert.preprocessor.random_batch(8, 33)
    with ServedProcess(kind, tmp_path, NAMES) as served:
        np.testing.assert_allclose(served.predict(batch), bert.predict(batch), atol=1e-5)
        assert served.operators().get("Attention", 0) == (3 if kind == "onnx" else 0)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_the_process_answers_without_torch(kind: str, bert: Encoder, tmp_path: Path) -> None:
    if kind == "openvino":
        pytest.importorskip("openvino", reason='needs pip install "tcompress[openvino]"')
    write_export(bert, kind, tmp_path)
    np.savez(tmp_path / "batch.npz", **bert.preprocessor.random_batch(1, 4))
    script = (
        "import sys, numpy; from pathlib import Path\n"
        "from tcompress.export.parity_worker import ServedFile\n"
        "here, batch = Path(sys.argv[1]), dict(numpy.load(sys.argv[2])); served = ServedFile()\n"
        "served.open(sys.argv[3], here, [*batch], 1); served.predict(batch); served.operators()\n"
        "assert {'torch', 'transformers', 'pandas'}.isdisjoint(sys.modules), [*sys.modules]"
    )
    words = (tmp_path, tmp_path / "batch.npz", kind)
    subprocess.run([sys.executable, "-c", script, *map(str, words)], check=True)


def test_an_engine_that_died_is_named_with_its_file_and_signal(
    bert: Encoder, tmp_path: Path
) -> None:
    write_export(bert, "onnx", tmp_path)
    with ServedProcess("onnx", tmp_path, NAMES) as served:
        served.opened()
        os.kill(served.pid, signal.SIGSEGV)
        message = r"model\.onnx in onnxruntime: the engine process ended by SIGSEGV"
        with pytest.raises(ExportError, match=message):
            served.predict(bert.preprocessor.random_batch(1, 4))


def test_a_refused_file_is_the_same_error_from_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with (
        ServedProcess("onnx", tmp_path, NAMES) as served,
        pytest.raises(ArtifactError, match=r"model\.onnx: not an ONNX file that is safe"),
    ):
        served.opened()


def test_the_command_survives_an_engine_that_crashes_and_leaves_nothing(
    text_workspace: Path, tcompress: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashing = tmp_path / "crashing"
    crashing.mkdir()
    (crashing / "onnxruntime.py").write_text("import ctypes; ctypes.string_at(0)\n")
    monkeypatch.setenv("PYTHONPATH", str(crashing))
    result = tcompress("export", "--workspace", text_workspace)
    assert result.exit_code == 1
    assert "model.onnx in onnxruntime: the engine process ended by SIGSEGV" in result.stderr
    assert not list((text_workspace / "artifacts").glob("**/*"))[1:], "the folder export only"


def test_attention_that_the_engine_takes_apart_is_not_accepted(
    bert: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file holds it and its answers are right, but the runtime has no kernel for doubles."""

    def in_doubles(writer, op, *inputs, **attributes):
        if op != "Attention":
            return write_node(writer, op, *inputs, **attributes)
        wide = [writer.cast(x, TensorProto.DOUBLE) for x in inputs]
        return writer.cast(write_node(writer, op, *wide, **attributes), TensorProto.FLOAT)

    monkeypatch.setattr(GraphWriter, "node", in_doubles)
    message = "ONNX Runtime executes 0 Attention for this file, the plan asks for 3"
    with pytest.raises(ExportError, match=message):
        write_export(bert, "onnx", tmp_path)


def test_int8_products_are_counted_as_they_are_executed(bert: Encoder, tmp_path: Path) -> None:
    bert.plan = bert.plan.with_precision(Precision.INT8)
    operators = write_export(bert, "onnx", tmp_path)["operators"]
    executed = operators["executed"]
    # queries, keys and values share what they read; the other products quantize for themselves
    assert executed["DynamicQuantizeMatMul"] > 0
    assert executed["MatMulIntegerToFloat"] + executed["DynamicQuantizeMatMul"] == 3 * 6
    assert (operators["MatMulIntegerToFloat"], operators["Attention"]) == (3 * 6, 3)
    one_less = executed | {"DynamicQuantizeMatMul": executed["DynamicQuantizeMatMul"] - 1}
    with pytest.raises(ExportError, match=r"executes 17 MatMulIntegerToFloat or .* asks for 18"):
        check_executed(one_less, {"MatMulIntegerToFloat": 3 * 6})
