"""One call that opens anything tcompress can work with."""

from pathlib import Path

from .artifact import ENCODER_KIND, Artifact, is_artifact
from .encoder import Encoder, open_encoder
from .errors import ModelError, RequestError
from .factories import house, is_factory, trust
from .floors import check_floors
from .hub import fetched, is_hub_name
from .runtime import ExportedEncoder, open_exported
from .tasks import Task, check_task


def load(
    path: str | Path,
    *,
    task: str | None = None,
    weights: str | Path | None = None,
    trust_module: str | None = None,
) -> Encoder | ExportedEncoder:
    """Open a model directory, or any artifact that tcompress wrote, compressed or not.

    An exported file is looked at and then opened by its engine, in this process. What the engine
    does not survive, ends this process, too: `tcompress evaluate` and `gate` open files in others.

    Args:
        path: A Hugging Face directory, a directory with `architecture.json`, or an artifact; or
            `package.module:factory`, which returns a module of your own; or `hf:OWNER/NAME`, a
            model of the Hugging Face hub, with `@REVISION` for another than the newest.
        task: What the model was trained for, one of `tcompress.tasks.Task`; None for what its
            files say.
        weights: What that module's weights are: a safetensors file, or a directory with
            `model.safetensors`; None for beside the factory's module.
        trust_module: The `package.module:factory` that an artifact may import.

    Returns:
        An `Encoder`, which every stage can work on; an `ExportedEncoder` for an exported file.
        Both have `labels`, `preprocessor` and `predict(batch)`.

    Raises:
        ModelError: If the directory cannot be opened as a model.
        ArtifactError: If it is an artifact whose digests do not hold.
        RequestError: If it is for another task.
        MachineError: If torch or another library is too old to open files of unknown origin, or
            the hub cannot be reached.
    """
    check_floors()
    if trust_module is not None:
        trust(trust_module)
    if isinstance(path, str) and is_hub_name(path):
        path = fetched(path)
    elif isinstance(path, str) and is_factory(path):
        path = house(path, None if weights is None else Path(weights))
    directory, asked = Path(path), None if task is None else _known(task)
    if not is_artifact(directory):
        return open_encoder(directory, task=asked)
    artifact = Artifact.open(directory)
    kept = check_task(directory, artifact.manifest.task, asked)
    if artifact.manifest.kind == ENCODER_KIND:
        return open_encoder(directory, artifact.manifest.plan, kept)
    return open_exported(artifact)


def _known(task: str) -> Task:
    try:
        return Task(task)
    except ValueError as error:
        msg = f"unknown task {task!r}; known are: {', '.join(Task)}"
        raise RequestError(msg) from error


def load_encoder(path: str | Path, task: str | None = None) -> Encoder:
    """Open a directory that holds an encoder with weights, not an exported file.

    Args:
        path: As for `load`.
        task: As for `load`.

    Raises:
        ModelError: If it holds an exported file, or cannot be opened.
        RequestError: If it is for another task.
    """
    opened = load(path, task=task)
    if isinstance(opened, ExportedEncoder):
        msg = (
            f"{path}: an exported {opened.kind} file; this needs an encoder with weights "
            "(a model directory, or what prune, finetune or quantize wrote)"
        )
        raise ModelError(msg)
    return opened
