"""Exported files, opened in the engine that serves them."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .artifact import Artifact
from .errors import ArtifactError
from .machine import usable_cpus
from .preprocessing import Batch, Preprocessor, open_preprocessor

ONNX_KIND = "onnx"
TORCHSCRIPT_KIND = "torchscript"
PROGRAM_KIND = "program"
MODEL_FILES = {
    ONNX_KIND: "model.onnx",
    TORCHSCRIPT_KIND: "model.pt",
    PROGRAM_KIND: "model.pt2",
}
BACKENDS = {
    ONNX_KIND: "onnxruntime",
    TORCHSCRIPT_KIND: "torchscript",
    PROGRAM_KIND: "torch.export",
}

Predict = Callable[[Batch], Any]


@dataclass
class ExportedEncoder:
    """An exported file, ready to answer.

    Attributes:
        kind: `onnx`, `torchscript` or `program`.
        labels: Class names, in the order of the logits.
        preprocessor: Turns examples into the file's inputs.
        directory: Where it was opened from.
        predict: Computes logits, `(batch, labels)` float32, from a batch.
    """

    kind: str
    labels: tuple[str, ...]
    preprocessor: Preprocessor
    directory: Path
    predict: Predict


def open_exported(artifact: Artifact) -> ExportedEncoder:
    """Open an exported artifact whose digests were checked.

    Args:
        artifact: The artifact.

    Raises:
        ArtifactError: If its kind is unknown or the engine refuses the file.
    """
    manifest, directory = artifact.manifest, artifact.directory
    try:
        details = manifest.details
        labels = tuple(str(label) for label in details["labels"])
        limits = details["preprocessing"]
        preprocessor = open_preprocessor(directory, **limits)
        names = [str(name) for name in details["input_names"]]
    except (KeyError, TypeError) as error:
        msg = f"{directory}: the manifest says too little to run the file: {error!r}"
        raise ArtifactError(msg) from error
    predict = open_model_file(manifest.kind, directory, names)
    return ExportedEncoder(manifest.kind, labels, preprocessor, directory, predict)


def open_model_file(kind: str, directory: Path, input_names: list[str]) -> Predict:
    """Open a file in its engine.

    Args:
        kind: `onnx`, `torchscript` or `program`.
        directory: Where the file is, under its usual name.
        input_names: The file's inputs, in their order.

    Returns:
        A function from a batch to logits, `(batch, labels)` float32.

    Raises:
        ArtifactError: If the engine refuses the file.
    """
    if kind not in MODEL_FILES:
        msg = f"{directory}: unknown kind of artifact {kind!r}"
        raise ArtifactError(msg)
    path = directory / MODEL_FILES[kind]
    try:
        if kind == ONNX_KIND:
            return _open_onnx(path, input_names)
        return _open_torch(kind, path, input_names)
    except Exception as error:  # the engines raise many kinds
        msg = f"{path}: the engine refuses it: {str(error).splitlines()[0]}"
        raise ArtifactError(msg) from error


def _open_onnx(path: Path, input_names: list[str]) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cpus()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )

    def predict(batch: Batch) -> Any:
        return session.run(None, {name: batch[name] for name in input_names})[0]

    return predict


def _open_torch(kind: str, path: Path, input_names: list[str]) -> Predict:
    import torch

    module: Any
    if kind == TORCHSCRIPT_KIND:
        with ignoring_torchscript_deprecation():
            module = torch.jit.load(str(path), map_location="cpu")
    else:
        module = torch.export.load(str(path)).module()

    def predict(batch: Batch) -> Any:
        with torch.inference_mode():
            logits = module(*(torch.from_numpy(batch[name]) for name in input_names))
        return logits.float().numpy()

    return predict


@contextmanager
def ignoring_torchscript_deprecation() -> Iterator[None]:
    """Silence torch's notice that TorchScript is deprecated; callers asked for that format.

    Yields:
        Nothing.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*`?torch\.jit\..*deprecated")
        warnings.filterwarnings("ignore", message=r".*TorchScript.*")
        yield
