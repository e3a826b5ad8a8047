from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from tcompress.artifact import ENCODER_KIND, Artifact, Manifest
from tcompress.encoder import open_encoder
from tcompress.plan import Precision
from tcompress.transformer import ARCHITECTURE_FILE, TransformerClassifier, TransformerSpec
from tcompress.workspace import DataConfig, Workspace, WorkspaceConfig, reference_to, source_of
from tcompress.writing import writing_artifact

LABELS = ("cat", "dog", "owl")
TOKENS, FEATURES, EXAMPLES = 6, 4, 150


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny unpruned encoder of tensors."""
    directory = tmp_path_factory.mktemp("source")
    spec = TransformerSpec(
        labels=LABELS,
        d_model=16,
        num_heads=4,
        feed_forward_size=32,
        num_layers=2,
        feature_size=FEATURES,
        max_positions=8,
    )
    torch.manual_seed(0)
    model = TransformerClassifier(spec)
    with torch.no_grad():
        model.classifier.weight.mul_(10)
    spec.write(directory / ARCHITECTURE_FILE)
    save_file(model.state_dict(), directory / "model.safetensors")
    return directory


@pytest.fixture(scope="session")
def data(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples that the source answers right four times out of five."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((EXAMPLES, TOKENS, FEATURES), dtype=np.float32)
    mask = np.ones((EXAMPLES, TOKENS), dtype=np.int64)
    logits = open_encoder(source).predict({"inputs": inputs, "attention_mask": mask})
    classes = (logits.argmax(1) + (np.arange(EXAMPLES) % 5 == 0)) % len(LABELS)
    path = tmp_path_factory.mktemp("data") / "data.npz"
    half = np.where(np.arange(EXAMPLES) % 2, "odd", "even")
    np.savez(path, inputs=inputs, labels=np.asarray(LABELS)[classes], half=half)
    return path


@pytest.fixture
def workspace(source: Path, data: Path, tmp_path: Path) -> Workspace:
    config = WorkspaceConfig(str(source), DataConfig(file=str(data)))
    return Workspace.create(tmp_path / "workspace", config)


@pytest.fixture
def write_encoder() -> Callable[..., Artifact]:
    """Write an encoder as a stage would, unchanged but for the precision in its plan."""

    def write(parent: Path, target: Path, stage: str, precision: str = "fp32") -> Artifact:
        encoder = open_encoder(parent)
        plan = encoder.plan.with_precision(Precision(precision))
        with writing_artifact(target) as draft:
            encoder.save(draft.directory)
            draft.manifest = Manifest(
                kind=ENCODER_KIND,
                stage=stage,
                parent=reference_to(parent),
                source=source_of(parent),
                plan=plan,
                recipe={},
                precision=precision,
            )
        return Artifact.open(target)

    return write


@pytest.fixture
def write_onnx() -> Callable[..., Artifact]:
    """Write an exported artifact whose logits are `sum over tokens(inputs) @ weight`."""

    def write(parent: Path, target: Path, weight: np.ndarray) -> Artifact:
        encoder = open_encoder(parent)
        with writing_artifact(target) as draft:
            onnx.save(_linear_model(weight), draft.directory / "model.onnx")
            encoder.model.spec.write(draft.directory / ARCHITECTURE_FILE)
            manifest = Manifest(
                kind="onnx",
                stage="export",
                parent=reference_to(parent),
                source=source_of(parent),
                plan=encoder.plan,
                recipe={},
            )
            details = {
                "labels": list(LABELS),
                "input_names": ["inputs", "attention_mask"],
                "preprocessing": {"max_positions": 8, "vocab_size": 0, "token_types": False},
            }
            draft.manifest = replace(manifest, details=details)
        return Artifact.open(target)

    return write


def _linear_model(weight: np.ndarray) -> onnx.ModelProto:
    def tensor(name: str, kind: int, *shape: str | int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["inputs", "axes"], ["sum"], keepdims=0),
            helper.make_node("MatMul", ["sum", "weight"], ["logits"]),
        ],
        "linear",
        [
            tensor("inputs", TensorProto.FLOAT, "batch", "tokens", FEATURES),
            tensor("attention_mask", TensorProto.INT64, "batch", "tokens"),
        ],
        [tensor("logits", TensorProto.FLOAT, "batch", len(LABELS))],
        [
            numpy_helper.from_array(np.asarray([1], dtype=np.int64), "axes"),
            numpy_helper.from_array(weight.astype(np.float32), "weight"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
