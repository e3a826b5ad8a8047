"""Spoils files without end, and opens each as the commands do, in a process that may die of it.

`run` is called in the forked child with the seeds' directory and how many inputs to try.
"""

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import onnx
import torch
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper
from safetensors.torch import load_file

import tcompress
from tcompress import artifact
from tcompress.artifact import Artifact
from tcompress.data import Columns, read_examples
from tcompress.digests import document_digest
from tcompress.errors import InputError, RequestError
from tcompress.evaluate.gating.baseline import Baseline
from tcompress.evaluate.gating.policy import make_policy, read_values
from tcompress.intake.pickles import check_state_file
from tcompress.runtime import open_model_file
from tcompress.workspace import Workspace

from .mutations import (
    Spoil,
    spoiled_bytes,
    spoiled_header,
    spoiled_json,
    spoiled_lines,
    spoiled_toml,
)
from .torch_files import reseal

SLOWEST_S = 5.0
"""One input that takes longer is a fault."""
_POLICY = b"""[quality]
max_drop = 0.01
slice_columns = ["film"]

[latency]
min_speedup = 1.2
batch = 8

[evidence]
alpha = 0.05
on_inconclusive = "fail"
"""
_LINES = b"\n".join(
    b'{"text": "the plot was %b", "label": "%b", "id": %d}' % (word, label, number)
    for number, (word, label) in enumerate(((b"good", b"good"), (b"dull", b"bad")) * 4)
)


@dataclass(frozen=True)
class Target:
    """A file that is read.

    Attributes:
        place: Puts a valid one into an empty directory, from that of the seeds; returns it.
        spoil: How it is spoiled.
        door: Opens it.
        seal: Makes digests agree with it, as whoever writes a bad one would.
    """

    place: Callable[[Path, Path], Path]
    spoil: Spoil
    door: Callable[[Path], object]
    seal: Callable[[Path], object] = lambda path: None


def run(name: str) -> NoReturn:
    """Try as many inputs as was asked for, and print what became of them.

    Args:
        name: Of `TARGETS`.
    """
    seeds, count = Path(sys.argv[1]), int(sys.argv[2])
    target, directory = TARGETS[name], Path.cwd() / "fuzz"
    directory.mkdir()
    path = target.place(seeds, directory)
    target.door(path)  # what is not spoiled opens, and what it imports is not timed
    seen, times = Counter[str](), [0.0]

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(target.spoil(path.read_bytes()))
    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        since = time.monotonic()
        refusal = _refusal(target, path)
        times.append(time.monotonic() - since)
        assert times[-1] < SLOWEST_S
        if isinstance(refusal, InputError):  # others name what was asked for
            assert path.name in str(refusal) or str(path.parent) in str(refusal)
        seen["opened" if refusal is None else "refused"] += 1

    attempt()
    print(json.dumps(seen | {"seconds": max(times)}))  # noqa: T201 - for the parent
    sys.exit(0)


def _refusal(target: Target, path: Path) -> InputError | RequestError | None:
    try:
        target.seal(path)
        target.door(path)
    except (InputError, RequestError) as error:
        return error
    return None


def _copied(source: str, file: str) -> Callable[[Path, Path], Path]:
    def place(seeds: Path, directory: Path) -> Path:
        shutil.copytree(seeds / source, directory / source)
        return directory / source / file

    return place


def _written(file: str, content: Callable[[Path], bytes]) -> Callable[[Path, Path], Path]:
    def place(seeds: Path, directory: Path) -> Path:
        (directory / file).write_bytes(content(seeds))
        return directory / file

    return place


def _load(path: Path) -> None:
    """Open a model, and read texts with it."""
    opened = tcompress.load(path.parent)
    if (path.parent / "tokenizer.json").exists():
        opened.preprocessor.encode(read_examples(Path(sys.argv[1]) / "texts.csv", Columns()))


def _workspace(path: Path) -> None:
    workspace = Workspace.open(path.parent)
    workspace.artifacts()


def _seal_manifest(path: Path) -> None:
    _seal(path, "seal", artifact.sealed)


def _seal_baseline(path: Path) -> None:
    _seal(path, "digest", lambda document: document | {"digest": document_digest(document)})


def _seal(path: Path, key: str, seal: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    with suppress(ValueError, TypeError, AttributeError, RecursionError):
        document = json.loads(path.read_bytes())
        document.pop(key, None)
        path.write_text(json.dumps(seal(document)), encoding="utf-8")


def _small_onnx(seeds: Path) -> bytes:
    """Return a graph with weights in two forms, a branch within, and names of sizes."""
    of = helper.make_tensor_value_info
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], bytes(16), raw=True)
    axis = helper.make_tensor("axes", TensorProto.INT64, [1], [0])
    branch = helper.make_graph(
        [helper.make_node("Relu", ["y"], ["b"])], "branch", [], [of("b", TensorProto.FLOAT, None)]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("ReduceSum", ["y", "axes"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        helper.make_node("ReduceMax", ["s"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["c0"], to=TensorProto.BOOL),
        helper.make_node("If", ["c0"], ["out"], then_branch=branch, else_branch=branch),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [of("x", TensorProto.FLOAT, ["batch", 2])],
        [of("out", TensorProto.FLOAT, ["batch", 2])],
        [weights, axis],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _saved_state(seeds: Path) -> bytes:
    """Return weights as torch.save writes them."""
    path = Path("state.bin")
    torch.save(dict(list(load_file(seeds / "bert" / "model.safetensors").items())[:2]), path)
    return path.read_bytes()


TARGETS = {
    "weights": Target(_copied("bert", "model.safetensors"), spoiled_header, _load),
    "config": Target(_copied("bert", "config.json"), spoiled_json, _load),
    "tokenizer": Target(_copied("bert", "tokenizer.json"), spoiled_json, _load),
    "tokenizer-config": Target(_copied("bert", "tokenizer_config.json"), spoiled_json, _load),
    "architecture": Target(_copied("torch", "architecture.json"), spoiled_json, _load),
    "modules": Target(_copied("embedder", "modules.json"), spoiled_json, _load),
    "manifest": Target(_copied("pruned", "manifest.json"), spoiled_json, _load, _seal_manifest),
    "manifest-of-onnx": Target(
        _copied("onnx", "manifest.json"), spoiled_json, _load, _seal_manifest
    ),
    "unsealed-manifest": Target(
        _copied("pruned", "manifest.json"), spoiled_json, lambda path: Artifact.open(path.parent)
    ),
    "workspace": Target(_copied("workspace", "tcompress.toml"), spoiled_toml, _workspace),
    "policy": Target(
        _written("policy.toml", lambda seeds: _POLICY),
        spoiled_toml,
        lambda path: make_policy(read_values(path)),
    ),
    "baseline": Target(
        _written("baseline.json", lambda seeds: (seeds / "baseline.json").read_bytes()),
        spoiled_json,
        lambda path: Baseline.read(path).answers,
        _seal_baseline,
    ),
    "onnx": Target(
        _written("model.onnx", _small_onnx),
        spoiled_bytes,
        lambda path: open_model_file("onnx", path.parent, ["x"]),
    ),
    "torchscript": Target(
        _copied("torchscript", "model.pt"),
        spoiled_bytes,
        _load,
        lambda path: reseal(path.parent, path.name),
    ),
    "pickle": Target(_written("model.bin", _saved_state), spoiled_bytes, check_state_file),
    "csv": Target(
        _written("texts.csv", lambda seeds: (seeds / "texts.csv").read_bytes()[:600]),
        spoiled_bytes,
        lambda path: read_examples(path, Columns()),
    ),
    "jsonl": Target(
        _written("texts.jsonl", lambda seeds: _LINES),
        spoiled_lines,
        lambda path: read_examples(path, Columns()),
    ),
    "tensors": Target(
        _written("tensors.npz", lambda seeds: (seeds / "tensors.npz").read_bytes()),
        spoiled_bytes,
        lambda path: read_examples(path, Columns()),
    ),
}
