"""F6: the structure of ONNX files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .case import Case, Opens, Seeds
from .onnx_models import artifact_of, edited, first_tensor, loop_of

_GATE = ("--data", "{texts}", "--max-drop", "0.5")
_KINDS = {
    "float": np.float32,
    "double": np.float64,
    "half": np.float16,
    "int8": np.int8,
    "int32": np.int32,
    "int64": np.int64,
    "bool": np.bool_,
}


def _file(
    name: str, change: Callable[[bytes], bytes], says: str = "not an ONNX file that is safe"
) -> Case:
    def build(content: bytes, _artifact: Path, _seeds: Seeds) -> bytes:
        return change(content)

    return Case(name, "F6", Opens.ARTIFACT, artifact_of(build), says=says)


def _model(name: str, change: Callable[[onnx.ModelProto], object], says: str) -> Case:
    return Case(name, "F6", Opens.ARTIFACT, edited(change), says=says)


def _cycle(model: onnx.ModelProto) -> None:
    first, last = model.graph.node[0], model.graph.node[-1]
    first.input.append(last.output[0])


def _function(
    *calls: tuple[str, str], inside: str | None = None
) -> Callable[[onnx.ModelProto], None]:
    """Add functions that call each other; `inside`, from within a graph of that operator."""

    def change(model: onnx.ModelProto) -> None:
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        for name, called in calls:
            node = helper.make_node(called, ["x"], ["y"], domain="own")
            if inside is not None:
                output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
                body = helper.make_graph([node], "body", [], [output])
                parts = {"then_branch": body, "else_branch": body} if inside == "If" else {}
                node = helper.make_node(inside, ["x"], ["y"], **(parts or {"body": body}))
            model.functions.append(
                helper.make_function("own", name, ["x"], ["y"], [node], opset_imports=opsets)
            )

    return change


def _short(kind: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = numpy_helper.from_array(np.ones((4, 4), _KINDS[kind]), "extra")
        tensor.raw_data = tensor.raw_data[:-1]
        model.graph.initializer.append(tensor)

    return change


def _opset(version: int) -> Callable[[onnx.ModelProto], None]:
    return lambda model: setattr(model.opset_import[0], "version", version)


def _many(model: onnx.ModelProto) -> None:
    one = helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0])
    node = helper.make_node("Constant", [], ["c"], value=one)
    part = onnx.GraphProto(node=[node] * 1000)
    for _ in range(1000):
        model.graph.node.extend(part.node)


def _declared(length: int) -> bytes:
    """Make the start of a graph that claims to be longer than its file."""
    varint = bytearray()
    while length >= 0x80:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    return b"\x08\x08\x3a" + bytes(varint) + bytes([length]) + b"\x0a"


def _added(node: onnx.NodeProto) -> Callable[[onnx.ModelProto], None]:
    return lambda model: model.graph.node.append(node)


def _deep(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    model.graph.node.append(loop_of(12))


def _twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def _untyped(model: onnx.ModelProto) -> None:
    model.graph.input[0].ClearField("type")


def _negative(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -3


def _attribute_twice(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.attribute)
    node.attribute.append(node.attribute[0])


def _dims(*dims: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = first_tensor(model)
        del tensor.dims[:]
        tensor.dims.extend(dims)

    return change


CASES = (
    _file("empty", lambda content: b"", "bytes, where 1 to"),
    _file("truncated", lambda content: content[: len(content) // 2], "it ends too early"),
    _file("length beyond the file", lambda content: _declared(1 << 20), "it ends too early"),
    _file("length of 4 GB", lambda content: _declared(1 << 32), "it ends too early"),
    _file("endless number", lambda content: b"\x08" + b"\xff" * 20, "not a protobuf"),
    _file("groups", lambda content: b"\x0b\x0c" + content, "not a protobuf"),
    _file("text", lambda content: b"#!/bin/sh\necho\n"),
    _file("zip", lambda content: b"PK\x03\x04" + bytes(60)),
    _file("zeros", lambda content: bytes(1000), "not a protobuf"),
    _file(
        "name that is not UTF-8",
        lambda content: content.replace(b"attention_mask", b"attention_\xff\xfe\xfd\xfc"),
        "not UTF-8",
    ),
    _model("cycle", _cycle, "which nothing before it computes"),
    _model("function that calls itself", _function(("f", "f")), "functions"),
    _model("functions that call each other", _function(("f", "g"), ("g", "f")), "functions"),
    _model("function that calls itself in If", _function(("f", "f"), inside="If"), "functions"),
    _model("function that calls itself in Loop", _function(("f", "f"), inside="Loop"), "functions"),
    _model("function that calls itself in Scan", _function(("f", "f"), inside="Scan"), "functions"),
    _model(
        "unknown domain",
        _added(helper.make_node("Run", [], ["z"], domain="com.evil")),
        "operators of 'com.evil'",
    ),
    _model(
        "Python operators",
        _added(helper.make_node("PythonOp", [], ["z"], domain="ai.onnx.contrib")),
        "operators of 'ai.onnx.contrib'",
    ),
    _model("tensor twice", _twice, "is given twice"),
    _model(
        "output twice",
        lambda model: model.graph.node[-1].output.append(model.graph.node[0].output[0]),
        "is given twice",
    ),
    _model("attribute twice", _attribute_twice, "is given twice"),
    _model("input without type", _untyped, "has no type"),
    _model("negative dimension", _negative, "a negative dimension"),
    _model("tensor with a negative dimension", _dims(-1, 4), "has the shape"),
    _model("tensor of 2^62 numbers", _dims(1 << 31, 1 << 31), "does not hold the numbers"),
    _model("tensor of many dimensions", _dims(*[1] * 40), "has the shape"),
    *(_model(f"short {kind}", _short(kind), "does not hold the numbers") for kind in _KINDS),
    _model(
        "unknown type of numbers", lambda m: setattr(first_tensor(m), "data_type", 99), "of type 99"
    ),
    _model("a million constants", _many, "more than 100000 nodes"),
    _model("graphs within graphs", _deep, "deep"),
    _model("opset 9999", _opset(9999), "operator set 9999"),
    _model("opset 0", _opset(0), "operator set 0"),
    _model("no opset", lambda model: model.ClearField("opset_import"), "operator sets []"),
    _model("IR version 0", lambda model: setattr(model, "ir_version", 0), "IR version 0"),
    _model("IR version 9999", lambda model: setattr(model, "ir_version", 9999), "IR version 9999"),
    _model("no graph", lambda model: model.ClearField("graph"), "0 graphs"),
    _model(
        "training information",
        lambda model: model.training_info.add().initialization.CopyFrom(model.graph),
        "training information",
    ),
    _model(
        "sparse tensor",
        lambda model: model.graph.sparse_initializer.add().dims.append(3),
        "sparse tensors",
    ),
    _model(
        "name of a megabyte",
        lambda model: setattr(model.graph.node[0], "op_type", "A" * (1 << 20)),
        "a name of 1048576 bytes",
    ),
    Case(
        "operator that does not exist",
        "F6",
        Opens.WORDS,
        edited(lambda model: setattr(model.graph.node[0], "op_type", "NoSuchOperator")),
        says="the engine refuses it",
        words=("gate", "--baseline", "{bert}", "--candidate", "{input}", *_GATE),
    ),
)
