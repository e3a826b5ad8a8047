"""ONNX files, put together by hand or taken from a seed and changed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from tcompress.artifact import MANIFEST_FILE

from .case import Seeds
from .torch_files import reseal

Build = Callable[[Seeds, Path], Path]
FILE = "model.onnx"


def artifact_of(change: Callable[[bytes, Path, Seeds], bytes | None]) -> Build:
    """Build an exported artifact with another model, whose manifest a stranger made right."""

    def build(seeds: Seeds, directory: Path) -> Path:
        artifact = Path(shutil.copytree(seeds.onnx, directory / "artifact"))
        path = artifact / FILE
        content = change(path.read_bytes(), artifact, seeds)
        if content is not None:
            path.write_bytes(content)
        for file in artifact.rglob("*"):
            if file.is_file() and not file.is_symlink() and file.name != MANIFEST_FILE:
                reseal(artifact, file.relative_to(artifact).as_posix())
        return artifact

    return build


def edited(change: Callable[[onnx.ModelProto], object]) -> Build:
    """Build an artifact whose model was edited."""

    def edit(content: bytes, _artifact: Path, _seeds: Seeds) -> bytes:
        model = onnx.ModelProto.FromString(content)
        change(model)
        return model.SerializeToString()

    return artifact_of(edit)


def first_tensor(model: onnx.ModelProto, kind: int = TensorProto.FLOAT) -> onnx.TensorProto:
    """Return the largest tensor of a type."""
    found = [t for t in model.graph.initializer if t.data_type == kind]
    return max(found, key=lambda tensor: len(tensor.raw_data))


def loop_of(depth: int) -> onnx.NodeProto:
    """Make graphs within graphs."""
    branch = helper.make_graph([helper.make_node("Identity", ["c"], ["d"])], "leaf", [], [])
    for level in range(depth):
        output = helper.make_tensor_value_info(f"x{level}", TensorProto.FLOAT, None)
        node = helper.make_node("If", ["c"], [f"x{level}"], then_branch=branch, else_branch=branch)
        branch = helper.make_graph([node], f"g{level}", [], [output])
    return helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
