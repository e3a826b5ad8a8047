"""ONNX files: what the walk over them lets through, and what it does not."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tcompress.encoder import Encoder
from tcompress.errors import ArtifactError
from tcompress.export.exporting import write_export
from tcompress.intake.onnx_files import check_onnx
from tcompress.plan import Precision

_MANY = 1_000_000


def _small(*nodes: onnx.NodeProto, tensors: tuple[onnx.TensorProto, ...] = ()) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph([*nodes, helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    graph.initializer.extend(tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _write(model: onnx.ModelProto | bytes, path: Path) -> Path:
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def _field(number: int, content: bytes) -> bytes:
    """Make a field of a message."""
    length, varint = len(content), bytearray()
    while length >= 0x80:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2]) + bytes(varint) + bytes([length]) + content


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8, Precision.FP16])
def test_exports_pass(precision: Precision, bert: Encoder, tmp_path: Path) -> None:
    bert.plan = bert.plan.with_precision(precision)
    write_export(bert, "onnx", tmp_path)
    check_onnx(tmp_path / "model.onnx")


@pytest.mark.parametrize("kind", [k for k in range(1, 25) if k != TensorProto.STRING])
def test_numbers_of_every_type_pass_however_they_are_stored(kind: int, tmp_path: Path) -> None:
    values = np.ones((3, 5)).astype(helper.tensor_dtype_to_np_dtype(kind))
    raw = numpy_helper.from_array(values, "raw")
    fields = helper.make_tensor("fields", kind, (3, 5), np.ones(15))
    assert raw.data_type == kind
    check_onnx(_write(_small(tensors=(raw, fields)), tmp_path / "model.onnx"))
    del (raw if raw.HasField("raw_data") else fields).dims[:]
    with pytest.raises(ArtifactError, match="does not hold the numbers for it"):
        check_onnx(_write(_small(tensors=(raw, fields)), tmp_path / "model.onnx"))


def test_a_graph_within_a_graph_reads_what_is_around_it(tmp_path: Path) -> None:
    inside = helper.make_node("Identity", ["x"], ["z"])
    output = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    branch = helper.make_graph([inside], "branch", [], [output])
    node = helper.make_node("If", ["c"], ["w"], then_branch=branch, else_branch=branch)
    flag = numpy_helper.from_array(np.array(True), "c")
    check_onnx(_write(_small(node, tensors=(flag,)), tmp_path / "model.onnx"))
    branch.node[0].input[0] = "w"
    node = helper.make_node("If", ["c"], ["w"], then_branch=branch, else_branch=branch)
    with pytest.raises(ArtifactError, match="reads 'w', which nothing before it computes"):
        check_onnx(_write(_small(node, tensors=(flag,)), tmp_path / "model.onnx"))


def test_an_operator_that_may_name_files_is_not_let_through(tmp_path: Path) -> None:
    node = helper.make_node("EPContext", ["x"], ["z"], domain="com.microsoft")
    model = _small(node)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(ArtifactError, match=r"the operator 'EPContext' of 'com\.microsoft'"):
        check_onnx(_write(model, tmp_path / "model.onnx"))


def test_halves_of_a_tensor_that_a_parser_would_join_are_refused(tmp_path: Path) -> None:
    half = helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0]).SerializeToString()
    attribute = _field(1, b"value") + _field(5, half) + _field(5, half)
    node = _field(2, b"z") + _field(4, b"Constant") + _field(5, attribute)
    joined = onnx.NodeProto.FromString(node).attribute[0].t
    assert list(joined.dims) == [1, 1], "which is what a parser makes of it"
    model = _small().SerializeToString() + _field(7, _field(1, node))
    with pytest.raises(ArtifactError, match="2 graphs"):
        check_onnx(_write(model, tmp_path / "model.onnx"))
    model = _small(onnx.NodeProto.FromString(_field(2, b"z") + _field(4, b"Constant")))
    packed = model.SerializeToString()
    graph = model.graph.SerializeToString()
    spoiled = packed.replace(_field(7, graph), _field(7, _field(1, node) + graph))
    with pytest.raises(ArtifactError, match="an attribute with two values"):
        check_onnx(_write(spoiled, tmp_path / "model.onnx"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(
            lambda: _field(7, _field(1, _field(4, b"Constant")) * _MANY),
            "more than 100000 nodes",
            id="nodes",
        ),
        pytest.param(
            lambda: _field(7, _field(13, _field(1, b"a")) * _MANY),
            "more than 250000 fields",
            id="values",
        ),
        pytest.param(lambda: _field(7, _field(5, b"\x08\x01" * _MANY)), "fields", id="dims"),
        pytest.param(
            lambda: _field(7, _field(5, _field(1, b"\x01" * _MANY))), "dimensions", id="packed dims"
        ),
        pytest.param(
            lambda: _field(7, _field(5, b"\x10\x06" + _field(5, b"\x01" * 50 * _MANY))),
            "does not hold the numbers",
            id="packed numbers",
        ),
        pytest.param(
            lambda: _field(7, _field(1, _field(2, b"abcdef") * _MANY)),
            "fields",
            id="outputs",
        ),
    ],
)
def test_a_million_of_anything_is_refused_in_two_seconds(
    spoil: Callable[[], bytes], says: str, tmp_path: Path
) -> None:
    opset = _field(8, b"\x10\x11")
    path = _write(b"\x08\x08" + opset + spoil(), tmp_path / "model.onnx")
    start = time.process_time()
    with pytest.raises(ArtifactError, match=says):
        check_onnx(path)
    assert time.process_time() - start < 2
