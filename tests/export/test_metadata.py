import json
from pathlib import Path

import onnxruntime
import pytest

import tcompress
from tcompress.encoder import Encoder
from tcompress.export.exporting import write_export
from tcompress.machine import int8_saturates
from tcompress.plan import Precision
from tcompress.runtime import import_openvino
from tcompress.workspace import reference_to


def said_by_onnx(path: Path) -> dict[str, str]:
    return dict(onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map)


def test_an_onnx_file_says_what_it_is_and_where_it_came_from(bert: Encoder, tmp_path: Path) -> None:
    write_export(bert, "onnx", tmp_path)
    assert said_by_onnx(tmp_path / "model.onnx") == {
        "tcompress.version": tcompress.__version__,
        "tcompress.parent": reference_to(bert.directory).digest,
        "tcompress.plan": json.dumps(bert.plan.summary()),
        "tcompress.precision": "fp32",
        "tcompress.labels": '["bad", "good"]',
    }


@pytest.mark.parametrize("reduce_range", [False, True])
def test_an_int8_file_says_its_scheme(bert: Encoder, reduce_range: bool, tmp_path: Path) -> None:
    if int8_saturates() and not reduce_range:
        pytest.skip("int8 products saturate on this CPU: a file of full range fails its check")
    bert.plan = bert.plan.with_precision(Precision.INT8)
    write_export(bert, "onnx", tmp_path, reduce_range=reduce_range)
    assert json.loads(said_by_onnx(tmp_path / "model.onnx")["tcompress.int8"]) == {
        "activations": "dynamic u8 per tensor",
        "weights": "s8 per output channel",
        "tables": "s8 per row",
        "reduce_range": reduce_range,
    }


def test_an_openvino_model_says_the_same(bert: Encoder, tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason='needs pip install "tcompress[openvino]"')
    bert.plan = bert.plan.with_precision(Precision.INT8)
    batches = tuple(bert.preprocessor.random_batch(2, 9, seed) for seed in range(8))
    write_export(bert, "openvino", tmp_path, calibration=batches)
    model = import_openvino().Core().read_model(tmp_path / "model.xml")
    said = {key: info.value for key, info in model.get_rt_info(["tcompress"]).astype(dict).items()}
    assert said["parent"] == reference_to(bert.directory).digest
    assert said["version"] == tcompress.__version__
    assert json.loads(said["int8"])["activations"] == "static u8 per tensor"
