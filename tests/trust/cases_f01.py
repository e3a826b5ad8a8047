"""F1: headers of safetensors files."""

import io
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .case import Case, Opens, Seeds
from .model_files import (
    WEIGHTS,
    Build,
    bert_with,
    header_of,
    joined,
    with_header,
    with_tensor,
    with_weights,
)

NAME = "classifier.bias"
_FORMAT = "damaged or not safetensors"


def _entry(**values: Any) -> Build:
    """Change what the header says of one tensor."""
    return with_header(lambda document: document[NAME].update(values))


def _header(change: Callable[[bytes], bytes]) -> Build:
    """Change the header's bytes."""

    def spoil(raw: bytes) -> bytes:
        document, buffer = header_of(raw)
        return joined(change(json.dumps(document).encode()), buffer)

    return with_weights(spoil)


def _length(length: int) -> Build:
    return with_weights(lambda raw: struct.pack("<Q", length) + raw[8:])


def _huge(model: Path) -> None:
    with (model / WEIGHTS).open("wb") as stream:  # a hole takes no room
        stream.write(struct.pack("<Q", 100_000_001) + b"{")
        stream.truncate(100_000_009)


def _moved(first: int, last: int) -> Callable[[dict[str, Any]], None]:
    """Move the ends of the tensor that stands last in the buffer."""

    def change(document: dict[str, Any]) -> None:
        entries = (entry for name, entry in document.items() if name != "__metadata__")
        offsets = max(entries, key=lambda entry: entry["data_offsets"])["data_offsets"]
        offsets[0] += first
        offsets[1] += last

    return change


def _swapped(document: dict[str, Any]) -> None:
    document[NAME]["data_offsets"].reverse()


def _overlap(document: dict[str, Any]) -> None:
    """Let two tensors of one shape share their bytes."""
    names = [f"bert.encoder.layer.{i}.attention.output.dense.bias" for i in (0, 1)]
    document[names[1]]["data_offsets"] = document[names[0]]["data_offsets"]


def _hole(raw: bytes) -> bytes:
    document, buffer = header_of(raw)
    for name, entry in document.items():
        if name != "__metadata__":
            entry["data_offsets"] = [offset + 64 for offset in entry["data_offsets"]]
    return joined(json.dumps(document).encode(), bytes(64) + buffer)


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps({}))
    return stream.getvalue()


def _many(raw: bytes) -> bytes:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return joined(json.dumps({f"x{i}": entry for i in range(100_000)}).encode())


def _data(spoil: Callable[[bytes], bytes]) -> Build:
    """Build a data file in safetensors form, then spoil it."""

    def build(seeds: Seeds, directory: Path) -> Path:
        import numpy as np
        from safetensors.numpy import save

        with np.load(seeds.tensors) as arrays:
            raw = save({n: arrays[n] for n in arrays.files if arrays[n].dtype.kind in "biuf"})
        path = directory / "data.safetensors"
        path.write_bytes(spoil(raw))
        return path

    return build


def _linked(seeds: Seeds, directory: Path) -> Path:
    model = Path(shutil.copytree(seeds.bert, directory / "model"))
    (model / WEIGHTS).rename(directory / "elsewhere.safetensors")
    (model / WEIGHTS).symlink_to(directory / "elsewhere.safetensors")
    return model


def _snapshot(seeds: Seeds, directory: Path) -> Path:
    """Lay the model out as the cache of the Hub does: links from a snapshot to blobs."""
    home = directory / "models--any--bert"
    model = Path(shutil.copytree(seeds.bert, home / "snapshots" / "0123abc"))
    (home / "blobs").mkdir()
    for i, path in enumerate(sorted(path for path in model.iterdir() if path.is_file())):
        path.rename(home / "blobs" / f"{i:040x}")
        path.symlink_to(Path("../../blobs") / f"{i:040x}")
    return model


def _model(name: str, build: Build, says: str = _FORMAT) -> Case:
    return Case(name, "F1", Opens.MODEL, build, says=says)


def _harmless(name: str, build: Build) -> Case:
    """A tensor that has no place in the model, whatever its name, is left out."""
    return Case(name, "F1", Opens.MODEL, build, codes=frozenset({0}), accepted=True)


CASES = (
    _model("empty file", with_weights(lambda raw: b"")),
    _model("seven bytes", with_weights(lambda raw: raw[:7])),
    _model("header of no bytes", _length(0)),
    _model("header longer than the file", with_weights(lambda raw: joined(b"{}")[:-1])),
    _model("header of 2^63 bytes", _length(1 << 63)),
    _model("header of 2^64-1 bytes", _length((1 << 64) - 1)),
    _model("header of 100,000,001 bytes", bert_with(_huge), "header of 100,000,001 bytes"),
    _model("truncated", with_weights(lambda raw: raw[:-5]), "5 bytes are missing"),
    _model("leading space", _header(lambda header: b" " + header), "header starts with"),
    _model("byte order mark", _header(lambda header: b"\xef\xbb\xbf" + header), "starts with"),
    _model("list", _header(lambda header: b"[" + header + b"]"), "header starts with"),
    _model("not UTF-8", _header(lambda header: header.replace(b"bert", b"b\xff\xfet", 1)), "utf-8"),
    _model("not JSON", _header(lambda header: header[:-1]), "not valid JSON"),
    _model(
        "tensor named twice",
        _header(lambda header: header.replace(b'"bert.pooler.dense.bias"', b'"classifier.bias"')),
        "stands twice",
    ),
    _model("NaN", _header(lambda header: b'{"__metadata__": NaN}'), "not valid JSON"),
    _model("10,000 deep", _header(lambda header: b'{"a":' + b"[" * 10_000), "deep"),
    _model("100,000 tensors", with_weights(_many), "100,000 tensors"),
    _model(
        "metadata of numbers",
        with_header(lambda document: document.update(__metadata__={"format": 1})),
        "must hold texts",
    ),
    _model("unknown dtype", _entry(dtype="F31"), "unknown dtype 'F31'"),
    _model("dtype of another kind", _entry(dtype=["F32"]), "unknown dtype"),
    _model("negative dimension", _entry(shape=[-2]), "has the shape [-2]"),
    _model("huge dimension", _entry(shape=[1 << 62]), "has the shape"),
    _model("dimension of 4000 digits", _entry(shape=[10**4000]), "has the shape"),
    _model("fractional dimension", _entry(shape=[2.0]), "has the shape [2.0]"),
    _model("true as dimension", _entry(shape=[True, 2]), "has the shape"),
    _model("shape whose product overflows", _entry(shape=[1 << 32, 1 << 32]), "by its shape"),
    _model("100 dimensions", _entry(shape=[1] * 99 + [2]), "has the shape"),
    _model("shape of other size", _entry(shape=[3]), "by its shape"),
    _model("entry without shape", with_header(lambda d: d[NAME].pop("shape")), "must have"),
    _model("entry with more keys", _entry(strides=[1]), "must have"),
    _model("reversed offsets", with_header(_swapped), "by its offsets"),
    _model("three offsets", _entry(data_offsets=[0, 8, 16]), "has the offsets"),
    _model("overlapping tensors", with_header(_overlap), "at byte"),
    _model("hole before the first tensor", with_weights(_hole), "a hole"),
    _model("tensor past the end", with_header(_moved(0, 4)), "by its offsets"),
    _model("tensor moved past the end", with_header(_moved(4, 4)), "a hole"),
    _model("zip behind the tensors", with_weights(lambda raw: raw + _zip()), "to no tensor"),
    _model("pickle behind the tensors", with_weights(lambda raw: raw + b"\x80\x04N."), "no tensor"),
    _model("weights that are a zip", with_weights(lambda raw: _zip())),
    _model("fp8 tensor", with_tensor("x", "F8_E4M3", [4], 4), "is of type F8_E4M3"),
    _model("fp4 tensor", with_tensor("x", "F4", [4], 2), "is of type F4"),
    _model("fp4 tensor of half a byte", with_tensor("x", "F4", [3], 2), "by its shape"),
    _model(
        "escape codes in the name of a missed tensor",
        with_tensor("attention.\x1b[31m[/red]\x00", "F32", [1], 4),
        "has no place",
    ),
    _model("link out of the directory", _linked, "leads out of its directory"),
    _harmless("links of the Hub's cache", _snapshot),
    _harmless("tensor without dimensions", with_tensor("x", "F32", [], 4)),
    _harmless("tensor without elements", with_tensor("x", "F32", [0, 7], 0)),
    _harmless("path as a tensor's name", with_tensor("../../x", "F32", [1], 4)),
    _harmless("NUL in a tensor's name", with_tensor("x\x00y", "F32", [1], 4)),
    _harmless("markup in a tensor's name", with_tensor("\x1b[31m[/red]", "F32", [1], 4)),
    Case("data cut off", "F1", Opens.TENSORS, _data(lambda raw: raw[:-1]), says="missing"),
    Case("data with a hole", "F1", Opens.TENSORS, _data(_hole), says="a hole"),
    Case(
        "data of 2^63", "F1", Opens.TENSORS, _data(lambda r: r[:7] + b"\x80" + r[8:]), says=_FORMAT
    ),
)
