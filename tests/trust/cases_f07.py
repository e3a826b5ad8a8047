"""F7: ONNX files that keep their numbers elsewhere."""

import os
from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import TensorProto

from .case import Case, Opens, Seeds
from .onnx_models import artifact_of, first_tensor

_SAYS = "data outside of the file"


def _outside(
    name: str,
    location: str,
    prepare: Callable[[Path, bytes], object] = lambda artifact, numbers: None,
    **more: str,
) -> Case:
    """Make a case whose largest tensor lies at a location; `{}` there is the artifact's place."""

    def change(content: bytes, artifact: Path, _seeds: Seeds) -> bytes:
        model = onnx.ModelProto.FromString(content)
        tensor = first_tensor(model)
        numbers = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        prepare(artifact, numbers)
        for key, value in {"location": location.format(artifact.parent), **more}.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        return model.SerializeToString()

    return Case(name, "F7", Opens.ARTIFACT, artifact_of(change), says=_SAYS)


def _beside(name: str) -> Callable[[Path, bytes], object]:
    return lambda artifact, numbers: (artifact / name).write_bytes(numbers)


def _above(artifact: Path, numbers: bytes) -> None:
    (artifact.parent / "secret").write_bytes(numbers)


def _linked(artifact: Path, numbers: bytes) -> None:
    _above(artifact, numbers)
    os.link(artifact.parent / "secret", artifact / "data")


def _soft(artifact: Path, numbers: bytes) -> None:
    _above(artifact, numbers)
    (artifact / "data").symlink_to("../secret")


def _soft_folder(artifact: Path, numbers: bytes) -> None:
    _above(artifact, numbers)
    (artifact / "folder").symlink_to("..")


def _folder(artifact: Path, numbers: bytes) -> None:
    (artifact / "data").mkdir()
    (artifact / "data" / "file").write_bytes(numbers)


def _not_marked(content: bytes, _artifact: Path, _seeds: Seeds) -> bytes:
    """Name another file without saying that the numbers are there."""
    model = onnx.ModelProto.FromString(content)
    entry = first_tensor(model).external_data.add()
    entry.key, entry.value = "location", "../secret"
    return model.SerializeToString()


def _in_attribute(content: bytes, _artifact: Path, _seeds: Seeds) -> bytes:
    """Hide the place in a tensor that is an attribute."""
    model = onnx.ModelProto.FromString(content)
    attribute = model.graph.node[0].attribute.add()
    attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
    attribute.t.data_type = TensorProto.FLOAT
    attribute.t.data_location = TensorProto.EXTERNAL
    entry = attribute.t.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    return model.SerializeToString()


CASES = (
    _outside("parent", "../secret", _above),
    _outside("parent by a detour", "a/../../secret", _above),
    _outside("absolute", "{}/secret", _above),
    _outside("passwords", "/etc/passwd"),
    _outside("a well-behaved one", "data", _beside("data")),
    _outside("hard link", "data", _linked),
    _outside("missing", "nowhere"),
    _outside("directory", "data", _folder),
    _outside("negative offset", "data", _beside("data"), offset="-1"),
    _outside("negative length", "data", _beside("data"), length="-1"),
    _outside("offset that is no number", "data", _beside("data"), offset="0x10"),
    _outside("offset beyond the end", "data", _beside("data"), offset="99999999"),
    _outside("length of 2^50", "data", _beside("data"), length=str(1 << 50)),
    _outside("unknown key", "data", _beside("data"), colour="red"),
    _outside("attribute of an object", "data", _beside("data"), __class__="x"),
    _outside("device", "/dev/zero"),
    _outside("terminal", "/dev/stdin"),
    _outside("empty name", ""),
    _outside("name with NUL", "data\x00/../../secret"),
    Case("not marked as external", "F7", Opens.ARTIFACT, artifact_of(_not_marked), says=_SAYS),
    Case("in an attribute", "F7", Opens.ARTIFACT, artifact_of(_in_attribute), says=_SAYS),
    Case(
        "symbolic link",
        "F7",
        Opens.ARTIFACT,
        _outside("", "data", _soft).build,
        says="data",
    ),
    Case(
        "symbolic link to a folder",
        "F7",
        Opens.ARTIFACT,
        _outside("", "folder/secret", _soft_folder).build,
        says="folder",
    ),
)
