"""Who takes part beside whom, and how the files of each are made."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import click
import peers_prepare

from tcompress.artifact import ENCODER_KIND, Artifact
from tcompress.cli import cli
from tcompress.encoder import Encoder, open_encoder
from tcompress.errors import MachineError, MeasurementError, ModelError
from tcompress.runtime import ONNX_KIND
from tcompress.workspace import Workspace, reference_to

BASELINE, CONTROL = "pytorch", "pytorch-again"
_HERE = Path(__file__).resolve().parent
_CALIBRATION_TEXTS = 300
_LAST_WORDS = 300
_READS = {
    "optimum-int8": "optimum",
    "openvino": "optimum",
    "openvino-int8": "openvino",
}
_ENGINE_FILES = {
    "onnxruntime": ("*.onnx", "*.onnx.data", "*.onnx_data"),
    "openvino": ("*.xml", "*.bin"),
    "ctranslate2": ("*.bin", "classifier.npz"),
}
_ENGINE_FILES["openvino-bf16"] = _ENGINE_FILES["openvino"]
_SOURCE_FILES = ("*.safetensors",)
_INT8 = ("--precision", "int8")
_STATIC = ("--activations", "static")
_OPENVINO = ("--format", "openvino")
_NO_ENGINE = "{}: {} is not a kind that is raced here; export it to onnx or openvino"


@dataclass(frozen=True)
class Contender:
    """Somebody who serves the model.

    Attributes:
        name: As `--only` spells it.
        title: As tables spell it.
        engine: One of the worker's `ENGINES`.
        recipe: A recipe of `peers_prepare`, or options of a `tcompress export`; None: it reads the
            source as it is.
        peer: Whether it runs in the environment of the peers.
        pruned: The artifact that it is exported from; None: the source.
    """

    name: str
    title: str
    engine: str
    recipe: str | tuple[str, ...] | None = None
    peer: bool = False
    pruned: Path | None = None


CONTENDERS = (
    Contender(BASELINE, "PyTorch fp32", "transformers"),
    Contender(CONTROL, "PyTorch fp32, again", "transformers"),
    Contender("torch-compile", "torch.compile fp32", "torch.compile"),
    Contender("torch-int8", "PyTorch dynamic int8", "torch-int8"),
    Contender("onnxruntime", "ONNX Runtime fp32", "onnxruntime", "optimum", peer=True),
    Contender(
        "optimum-int8", "ONNX Runtime int8, optimum-onnx", "onnxruntime", "optimum-int8", peer=True
    ),
    Contender("openvino", "OpenVINO fp32", "openvino", "openvino", peer=True),
    Contender("openvino-bf16", "OpenVINO bf16", "openvino-bf16", "openvino", peer=True),
    Contender("openvino-int8", "OpenVINO int8, NNCF", "openvino", "openvino-int8", peer=True),
    Contender("ctranslate2-int8", "CTranslate2 int8", "ctranslate2", "ctranslate2-int8", peer=True),
    Contender("tcompress", "tcompress fp32, ONNX", "onnxruntime", ("--precision", "fp32")),
    Contender("tcompress-int8", "tcompress int8, ONNX", "onnxruntime", _INT8),
    Contender(
        "tcompress-static-int8", "tcompress static int8, ONNX", "onnxruntime", (*_INT8, *_STATIC)
    ),
    Contender(
        "tcompress-openvino-int8", "tcompress int8, OpenVINO", "openvino", (*_INT8, *_OPENVINO)
    ),
)


def pruned_contender(path: Path) -> Contender:
    """Return the contender that an artifact makes: an encoder is exported to ONNX in int8.

    Args:
        path: An encoder that tcompress pruned, or a file that it exported.

    Raises:
        ArtifactError: If it is damaged.
        ModelError: If it is of a kind without an engine here.
    """
    manifest = Artifact.open(path).manifest
    name = f"pruned-{path.resolve().name}"
    plan = manifest.plan
    heads = f"{sum(plan.head_counts)} of {sum(plan.source_heads)} heads"
    neurons = f"{sum(plan.neuron_counts)} of {sum(plan.source_neurons)} neurons"
    title = f"tcompress pruned, {path.name}: {heads}, {neurons}"
    if manifest.kind == ENCODER_KIND:
        return Contender(name, f"{title}, int8, ONNX", "onnxruntime", _INT8, pruned=path)
    engine = {ONNX_KIND: "onnxruntime", "openvino": "openvino"}.get(manifest.kind)
    if engine is None:
        raise ModelError(_NO_ENGINE.format(path, manifest.kind))
    return Contender(name, f"{title}, {manifest.precision}, {manifest.kind}", engine, pruned=path)


class Workshop:
    """Where the files of all contenders are made from one fine-tuned model.

    Args:
        workspace: The model and its data.
        directory: Where the files go.
        peer_python: Python of the environment of the peers.
    """

    def __init__(self, workspace: Workspace, directory: Path, peer_python: Path) -> None:
        self.workspace = workspace
        self.source = workspace.model_directory.resolve()
        self.directory = directory.resolve()
        self._peer_python = peer_python

    @cached_property
    def encoder(self) -> Encoder:
        """The fine-tuned model."""
        return open_encoder(self.source)

    def clear(self) -> None:
        """Forget the files that are there: what makes them may have changed."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def python(self, contender: Contender) -> Path | None:
        """Return the Python that a contender runs in; None: this one.

        Args:
            contender: The contender.

        Raises:
            MachineError: If there is none.
        """
        if not contender.peer:
            return None
        if not self._peer_python.is_file():
            msg = (
                f"{self._peer_python}: no such file; install benchmarks/requirements-peers.txt "
                "in an environment of its own and pass --peer-python"
            )
            raise MachineError(msg)
        return self._peer_python

    def files(self, contender: Contender) -> Path:
        """Return where a contender's files are; makes them first where they are missing.

        Args:
            contender: The contender.

        Raises:
            TcompressError: If they cannot be made.
        """
        if contender.recipe is None:
            return (contender.pruned or self.source).resolve()
        if isinstance(contender.recipe, str):
            python = self.python(contender)
            assert python is not None
            return self._peer_files(contender.recipe, python)
        return self._export(contender.name, contender.pruned or self.source, contender.recipe)

    def _peer_files(self, recipe: str, python: Path) -> Path:
        target = self.directory / recipe
        if not target.exists():
            reads = _READS.get(recipe)
            read = self.source if reads is None else self._peer_files(reads, python)
            script = _HERE / f"{peers_prepare.__name__}.py"
            staging = target.with_name(f"{recipe}.partial")
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            _run([python, "-P", script, recipe, read, staging, self._calibration], recipe)
            staging.rename(target)
        return target

    def _export(self, name: str, model: Path, options: Sequence[str]) -> Path:
        target = self.directory / name
        words = ["export", "--workspace", self.workspace.directory, "--model", model]
        words += [*options, "--output", target, "--quiet"]
        if not target.exists():
            try:
                cli.main([str(word) for word in words], standalone_mode=False)
            except click.ClickException as error:
                raise MeasurementError(error.format_message()) from error
        return target

    @cached_property
    def _calibration(self) -> Path:
        """File of the inputs that NNCF calibrates on: training texts, one by one."""
        texts = self.workspace.splits().train.sample(_CALIBRATION_TEXTS, 0)
        encoded = self.encoder.preprocessor.encode(texts)
        batches = [encoded.collate([row]) for row in range(len(texts))]
        rows = [{name: array[0].tolist() for name, array in batch.items()} for batch in batches]
        path = self.directory / "calibration.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows), encoding="utf-8")
        return path


def check_parentage(contender: Contender, source: Path) -> None:
    """Refuse an artifact that was made from another model.

    Args:
        contender: The contender.
        source: The fine-tuned model.

    Raises:
        ModelError: If it was.
    """
    if contender.pruned is None:
        return
    made_from = Artifact.open(contender.pruned).manifest.source
    if made_from.digest != reference_to(source).digest:
        msg = f"{contender.pruned} was made from {made_from.path}, not from {source}"
        raise ModelError(msg)


def size_bytes(contender: Contender, directory: Path) -> int:
    """Return the size of what an engine reads, without tokenizer and configuration.

    Args:
        contender: The contender.
        directory: Where its files are.
    """
    patterns = _ENGINE_FILES.get(contender.engine, _SOURCE_FILES)
    return sum(path.stat().st_size for pattern in patterns for path in directory.glob(pattern))


def _run(command: Sequence[str | Path], what: str) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        msg = f"{what} cannot be made: {words[-1][:_LAST_WORDS]}"
        raise MeasurementError(msg)
