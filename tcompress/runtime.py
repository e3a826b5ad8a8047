"""Exported files, opened in the engine that serves them.

A file's own engine is all that is loaded for it: an ONNX file is opened without torch.
"""

import os
import reprlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifact import Artifact
from .errors import ArtifactError, MachineError, MissingExtraError
from .machine import usable_cpus
from .tasks.kinds import Task

if TYPE_CHECKING:
    from .preprocessing import Batch, Preprocessor

ONNX_KIND = "onnx"
TORCHSCRIPT_KIND = "torchscript"
PROGRAM_KIND = "program"
OPENVINO_KIND = "openvino"
MODEL_FILES = {
    ONNX_KIND: "model.onnx",
    TORCHSCRIPT_KIND: "model.pt",
    PROGRAM_KIND: "model.pt2",
    OPENVINO_KIND: "model.xml",
}
ENGINE_FILES = frozenset({*MODEL_FILES.values(), "model.bin"})
"""All that engines read; OpenVINO keeps its weights in a second file."""
BACKENDS = {
    ONNX_KIND: "onnxruntime",
    TORCHSCRIPT_KIND: "torchscript",
    PROGRAM_KIND: "torch.export",
    OPENVINO_KIND: "openvino",
}
# What looks at a file before its engine does; imported where it is needed.
_CHECKS = {
    ONNX_KIND: ("onnx_files", "check_onnx"),
    TORCHSCRIPT_KIND: ("torchscript_archives", "check_torchscript"),
    PROGRAM_KIND: ("program_archives", "check_program"),
    OPENVINO_KIND: ("openvino_files", "check_openvino"),
}
# What a manifest says of an exported file's inputs.
_PREPROCESSING = {
    "max_positions": int | None,
    "vocab_size": int,
    "token_types": bool,
    "pairs": bool,
    "unit": str,
    "patches": dict,
    "masked": bool,
    "tensors": dict,
}
_TELEMETRY = "openvino_telemetry"

Predict = Callable[["Batch"], Any]


@dataclass
class ExportedEncoder:
    """An exported file, ready to answer.

    Attributes:
        kind: `onnx`, `torchscript`, `program` or `openvino`.
        labels: Class names, in the order of the logits.
        preprocessor: Turns examples into the file's inputs.
        directory: Where it was opened from.
        predict: Computes logits, as `Encoder.predict` does, from a batch.
        task: What they mean.
    """

    kind: str
    labels: tuple[str, ...]
    preprocessor: "Preprocessor"
    directory: Path
    predict: Predict
    task: Task = Task.CLASSIFICATION


def open_exported(artifact: Artifact) -> ExportedEncoder:
    """Open an exported artifact whose digests were checked.

    Args:
        artifact: The artifact.

    Raises:
        ArtifactError: If its kind is unknown or the engine refuses the file.
        MissingExtraError: If the engine is not installed.
    """
    from .preprocessing import open_preprocessor

    manifest, directory = artifact.manifest, artifact.directory
    try:
        details = manifest.details
        labels = tuple(str(label) for label in details["labels"])
        preprocessor = open_preprocessor(directory, **_checked(details["preprocessing"]))
        names = [str(name) for name in details["input_names"]]
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{directory}: the manifest says too little to run the file: {error!r}"
        raise ArtifactError(msg) from error
    predict = open_model_file(manifest.kind, directory, names)
    return ExportedEncoder(manifest.kind, labels, preprocessor, directory, predict, manifest.task)


def _checked(preprocessing: Any) -> dict[str, Any]:
    """Return what a manifest says of a file's inputs, if it has the right types."""
    for name, value in dict(preprocessing).items():
        if not isinstance(value, _PREPROCESSING[name]):
            msg = f"{name} is {reprlib.repr(value)}"
            raise TypeError(msg)
    return dict(preprocessing)


def open_model_file(kind: str, directory: Path, input_names: list[str]) -> Predict:
    """Open a file in its engine.

    Args:
        kind: `onnx`, `torchscript`, `program` or `openvino`.
        directory: Where the file is, under its usual name.
        input_names: The file's inputs, in their order.

    Returns:
        A function from a batch to logits, `(batch, labels)` float32.

    Raises:
        ArtifactError: If the engine refuses the file.
        MissingExtraError: If the engine is not installed.
    """
    path = check_exported(kind, directory)
    try:
        if kind == ONNX_KIND:
            return _open_onnx(path, input_names)
        if kind == OPENVINO_KIND:
            return _open_openvino(path, input_names)
        return _open_torch(kind, path, input_names)
    except (MachineError, ArtifactError):
        raise
    except Exception as error:  # the engines raise many kinds
        msg = f"{path}: the engine refuses it: {str(error).partition(chr(10))[0] or repr(error)}"
        raise ArtifactError(msg) from error


def check_exported(kind: str, directory: Path) -> Path:
    """Raise unless a file keeps to what its format allows and tcompress writes; nothing opens it.

    Args:
        kind: `onnx`, `torchscript`, `program` or `openvino`.
        directory: Where the file is, under its usual name.

    Returns:
        The file.

    Raises:
        ArtifactError: If it does not.
    """
    if kind not in MODEL_FILES:
        msg = f"{directory}: unknown kind of artifact {kind!r}"
        raise ArtifactError(msg)
    module, name = _CHECKS[kind]
    path = directory / MODEL_FILES[kind]
    getattr(import_module(f".intake.{module}", __package__), name)(path)
    return path


def import_onnxruntime() -> Any:
    """Import ONNX Runtime without its telemetry.

    From 1.29 on its builds for Linux report models by name, shape and digest of their weights to
    their maker, unless this variable stands in the environment as the library is loaded.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return import_module("onnxruntime")


def open_onnx_session(
    path: Path, optimized: Path | None = None, profile: Path | None = None
) -> Any:
    """Open an ONNX file in ONNX Runtime.

    Args:
        path: The file.
        optimized: Where to write the graph that the session executes; None: nowhere.
        profile: Where to profile to, less the end of the file's name; None: no profile.

    Returns:
        The `onnxruntime.InferenceSession`.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cpus()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )


def _open_onnx(path: Path, input_names: list[str]) -> Predict:
    session = open_onnx_session(path)

    def predict(batch: "Batch") -> Any:
        return session.run(None, {name: batch[name] for name in input_names})[0]

    return predict


def _open_openvino(path: Path, input_names: list[str]) -> Predict:
    openvino = import_openvino()
    model = openvino.Core().read_model(path)
    # The engine computes in bf16 by itself wherever the CPU can, unless it is told.
    precision = model.get_rt_info(["tcompress", "precision"]).value
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": usable_cpus(),
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    compiled = openvino.compile_model(model, "CPU", settings)

    def predict(batch: "Batch") -> Any:
        return compiled({name: batch[name] for name in input_names})[0]

    return predict


def import_openvino() -> Any:
    """Return the module `openvino`.

    Raises:
        MissingExtraError: If it is not installed.
    """
    return _import_untold("openvino")


def import_nncf() -> Any:
    """Return the module `nncf`, which quantizes for OpenVINO.

    Raises:
        MissingExtraError: If it is not installed.
    """
    return _import_untold("nncf")


def _import_untold(name: str) -> Any:
    """Import a library of OpenVINO's without its telemetry, which is on unless the user finds out.

    Both send an event as they are imported, and do without where the reporter is not installed.
    """
    told = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError("openvino", "OpenVINO") from error
    finally:
        del sys.modules[_TELEMETRY]
        if told is not None:
            sys.modules[_TELEMETRY] = told


def _open_torch(kind: str, path: Path, input_names: list[str]) -> Predict:
    import torch

    module: Any
    if kind == TORCHSCRIPT_KIND:
        with ignoring_torchscript_deprecation():
            module = torch.jit.load(str(path), map_location="cpu")
    else:
        module = torch.export.load(str(path)).module()

    def predict(batch: "Batch") -> Any:
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
