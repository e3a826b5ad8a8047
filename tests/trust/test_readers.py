"""Readers of files work or raise an error of tcompress's own, whatever hypothesis does to a file.

The same examples every time; `pytest -m slow -s tests/trust/test_readers.py` tries 10,000.
"""

import json
import shutil
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from onnx import TensorProto, helper

from tcompress.artifact import MANIFEST_FILE, Artifact, Manifest
from tcompress.cli import cli
from tcompress.data import Columns, read_examples
from tcompress.digests import document_digest
from tcompress.encoder import open_encoder
from tcompress.errors import TcompressError
from tcompress.evaluate.gating.baseline import Baseline
from tcompress.evaluate.gating.baseline_file import Record, Row
from tcompress.evaluate.gating.baseline_file import compose as composed_baseline
from tcompress.evaluate.gating.policy import POLICY_FILE, make_policy, read_values
from tcompress.intake.onnx_files import check_onnx
from tcompress.intake.safetensors_header import read_header
from tcompress.workspace import CONFIG_FILE, Workspace

from .edits import (
    Bytes,
    Edit,
    Values,
    bytes_edits,
    change_bytes,
    change_values,
    composed_json,
    value_edits,
    without_none,
)
from .model_files import CONFIG, WEIGHTS, header_of, joined

FILES = (
    *("weights", "config", "tokenizer", "tokenizer config", "manifest", "workspace", "policy"),
    *("baseline", "csv", "json lines", "json", "onnx"),
)
DOCUMENTS = tuple(name for name in FILES if name not in ("csv", "onnx"))
DEFAULT, SLOW = 14, 480
POLICY = """\
[quality]
max_drop = 0.02
[latency]
min_speedup = 1.2
batch = 1
[size]
max_size_ratio = 0.9
[evidence]
on_inconclusive = "fail"
"""
RECIPE = """\
schema_version = 1
model = "bert"
seed = 0
max_drop = 0.01

[data]
file = "x.csv"
text_column = "text"
label_column = "label"
"""
RECORD = Record(
    **{name: name[0] * 64 for name in ("model", "source", "data")},
    ids=document_digest(["a", "b"]),
    size_bytes=1000,
    labels=("bad", "good"),
    tokenizer={"vocab.txt": "0" * 64},
    max_tokens=40,
    truncated=0,
    device="cpu",
    metrics={"accuracy": 0.5},
    cpu={"name": "CPU", "features": {"avx2": True}, "usable": 2},
    versions={"torch": "2.13.0"},
    latency=None,
    rows=(Row("a", "0" * 16, "bad", (0.5, 0.25)), Row("b", "1" * 16, "good", (-1.0, 1.0))),
)


@dataclass(frozen=True, repr=False)
class Target:
    """A file, and what reads it.

    Attributes:
        path: The file, among those that belong to it.
        content: What it holds while it is right.
        read: Reads it.
        document: What it says, or None where it is no document.
        compose: Writes a document.
    """

    path: Path
    content: bytes
    read: Callable[[], object]
    document: Any = None
    compose: Callable[[Any], bytes] = composed_json


class Fuzzed(dict[str, Target]):
    """Targets by name."""

    def __repr__(self) -> str:
        return "targets"  # hypothesis shows arguments


@pytest.fixture(scope="module")
def tried() -> Iterator[Counter[str]]:
    """Counts what was tried, and what of it was refused."""
    found: Counter[str] = Counter()
    yield found
    print(f"\nfuzz: {found['tried']} files tried, {found['refused']} refused")  # noqa: T201


@pytest.fixture(scope="module")
def targets(
    tmp_path_factory: pytest.TempPathFactory, model_directories: Callable[[str], Path]
) -> Fuzzed:
    root = tmp_path_factory.mktemp("fuzz")
    bert, pruned = root / "bert", root / "pruned"
    shutil.copytree(model_directories("bert"), bert)
    words = ("--heads", "0.3", "--criterion", "random", "--model", str(bert))
    made = CliRunner().invoke(cli, ["prune", *words, "--output", str(pruned)])
    assert made.exit_code == 0, made.output
    return Fuzzed(_models(bert) | _own(root, pruned) | _data(root))


def _json(path: Path, read: Callable[[], object], **others: Any) -> Target:
    content = path.read_bytes()
    return Target(path, content, read, json.loads(content), **others)


def _toml(path: Path, text: str, read: Callable[[], object]) -> Target:
    def compose(document: Any) -> bytes:
        plain = without_none(document)
        return tomli_w.dumps(plain if isinstance(plain, dict) else {"a": plain}).encode()

    return Target(path, text.encode(), read, tomllib.loads(text), compose)


def _models(bert: Path) -> dict[str, Target]:
    weights = (bert / WEIGHTS).read_bytes()
    header, buffer = header_of(weights)
    alone = bert.with_name(WEIGHTS)
    found = {
        "weights": Target(
            alone,
            weights,
            lambda: read_header(alone),
            header,
            lambda document: joined(composed_json(document), buffer),
        )
    }
    names = {"config": CONFIG, "tokenizer": "tokenizer.json"}
    names["tokenizer config"] = "tokenizer_config.json"
    return found | {
        name: _json(bert / file, lambda: open_encoder(bert)) for name, file in names.items()
    }


def _own(root: Path, pruned: Path) -> dict[str, Target]:
    def compose(document: Any) -> bytes:
        """Seal a baseline again, so that more than its digest is looked at."""
        if isinstance(document, dict) and "digest" in document:
            rest = {name: value for name, value in document.items() if name != "digest"}
            document = rest | {"digest": document_digest(rest)}
        return composed_json(document)

    def read_manifest() -> object:
        return Manifest.read(pruned).digest, Artifact.open(pruned).summary()

    policy, baseline = root / POLICY_FILE, root / "baseline.json"
    baseline.write_text(composed_baseline(RECORD))
    return {
        "manifest": _json(pruned / MANIFEST_FILE, read_manifest),
        "workspace": _toml(
            root / CONFIG_FILE, RECIPE, lambda: Workspace.open(root).config.data.columns
        ),
        "policy": _toml(policy, POLICY, lambda: make_policy(read_values(policy))),
        "baseline": _json(baseline, lambda: Baseline.read(baseline).answers, compose=compose),
    }


def _data(root: Path) -> dict[str, Target]:
    rows = [{"text": f"a film {i}", "label": ("good", "bad")[i % 2], "id": i} for i in range(8)]

    def lines(document: Any) -> bytes:
        records = document if isinstance(document, list) else [document]
        return b"\n".join(map(composed_json, records))

    def at(name: str) -> tuple[Path, Callable[[], object]]:
        path = root / name
        columns = Columns(slices=("id",) if path.suffix == ".jsonl" else ())
        return path, lambda: read_examples(path, columns).digest

    table = "\n".join(["text,label", *(f'"{row["text"]}, ""x""",{row["label"]}' for row in rows)])
    csv, jsonl, document, onnx = at("x.csv"), at("x.jsonl"), at("x.json"), root / "model.onnx"
    return {
        "csv": Target(csv[0], table.encode(), csv[1]),
        "json lines": Target(jsonl[0], lines(rows), jsonl[1], rows, lines),
        "json": Target(document[0], composed_json(rows), document[1], rows),
        "onnx": Target(onnx, _onnx(), lambda: check_onnx(onnx)),
    }


def _onnx() -> bytes:
    """Return a model of two branches, with weights, attributes and shapes."""
    info = helper.make_tensor_value_info
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Mul", ["x", "w"], [name])], name, [], [info(name, 1, ["n", 3])]
        )
        for name in ("then", "else")
    }
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
            helper.make_node("Cast", ["m"], ["c"], to=TensorProto.BOOL),
            helper.make_node("If", ["c"], ["y"], **branches),
        ],
        "model",
        [info("x", TensorProto.FLOAT, ["n", 3])],
        [info("y", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def _try(target: Target, content: bytes, tried: Counter[str]) -> None:
    """Read a file that was changed; any error but tcompress's own is a failure."""
    tried["tried"] += 1
    target.path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read()
    except TcompressError:
        tried["refused"] += 1
    finally:
        target.path.write_bytes(target.content)


def _composed(target: Target, edits: list[Values]) -> bytes:
    try:
        return target.compose(change_values(target.document, edits))
    except (ValueError, TypeError, RecursionError, OverflowError):
        return b""  # its form has no such values


def _examples(count: int) -> settings:
    return settings(
        derandomize=True,
        database=None,
        max_examples=count,
        deadline=timedelta(seconds=20),
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("name", FILES)
def test_unchanged_file_is_read(name: str, targets: Fuzzed) -> None:
    target = targets[name]
    target.path.write_bytes(target.content)

    target.read()
    if target.document is not None:
        target.path.write_bytes(target.compose(target.document))
        if name != "manifest":  # which is sealed as it was formatted
            target.read()
        target.path.write_bytes(target.content)


@pytest.mark.parametrize("name", FILES)
@_examples(DEFAULT)
@given(edits=bytes_edits())
def test_other_bytes(name: str, edits: list[Bytes], targets: Fuzzed, tried: Counter[str]) -> None:
    _try(targets[name], change_bytes(targets[name].content, edits), tried)


@pytest.mark.parametrize("name", DOCUMENTS)
@_examples(DEFAULT)
@given(edits=value_edits())
@example(edits=[(Edit.SPLICE, 991, 30, 0)])  # config: `architectures` is a number
@example(edits=[(Edit.FLIP, 107, 0, [])])  # config: `problem_type` is a list
@example(edits=[(Edit.FLIP, 407, 0, 10**400)])  # policy: a number that is no float
def test_other_values(name: str, edits: list[Values], targets: Fuzzed, tried: Counter[str]) -> None:
    _try(targets[name], _composed(targets[name], edits), tried)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@_examples(SLOW)
@given(edits=bytes_edits())
def test_ten_thousand_files_of_other_bytes(
    name: str, edits: list[Bytes], targets: Fuzzed, tried: Counter[str]
) -> None:
    _try(targets[name], change_bytes(targets[name].content, edits), tried)


@pytest.mark.slow
@pytest.mark.parametrize("name", DOCUMENTS)
@_examples(SLOW)
@given(edits=value_edits())
def test_ten_thousand_files_of_other_values(
    name: str, edits: list[Values], targets: Fuzzed, tried: Counter[str]
) -> None:
    _try(targets[name], _composed(targets[name], edits), tried)
