"""One call that opens anything tcompress can work with."""

from pathlib import Path

from .artifact import ENCODER_KIND, Artifact, is_artifact
from .encoder import Encoder, open_encoder
from .errors import ModelError
from .factories import house, is_factory, trust
from .runtime import ExportedEncoder, open_exported


def load(
    path: str | Path,
    *,
    weights: str | Path | None = None,
    trust_module: str | None = None,
) -> Encoder | ExportedEncoder:
    """Open a model directory, or any artifact that tcompress wrote, compressed or not.

    Args:
        path: A Hugging Face directory, a directory with `architecture.json`, or an artifact; or
            `package.module:factory`, which returns a module of your own.
        weights: What that module's weights are: a safetensors file, or a directory with
            `model.safetensors`; None for beside the factory's module.
        trust_module: The `package.module:factory` that an artifact may import.

    Returns:
        An `Encoder`, which every stage can work on; an `ExportedEncoder` for an exported file.
        Both have `labels`, `preprocessor` and `predict(batch)`.

    Raises:
        ModelError: If the directory cannot be opened as a model.
        ArtifactError: If it is an artifact whose digests do not hold.
    """
    if trust_module is not None:
        trust(trust_module)
    if isinstance(path, str) and is_factory(path):
        path = house(path, None if weights is None else Path(weights))
    directory = Path(path)
    if not is_artifact(directory):
        return open_encoder(directory)
    artifact = Artifact.open(directory)
    if artifact.manifest.kind == ENCODER_KIND:
        return open_encoder(directory, artifact.manifest.plan)
    return open_exported(artifact)


def load_encoder(path: str | Path) -> Encoder:
    """Open a directory that holds an encoder with weights, not an exported file.

    Args:
        path: As for `load`.

    Raises:
        ModelError: If it holds an exported file, or cannot be opened.
    """
    opened = load(path)
    if isinstance(opened, ExportedEncoder):
        msg = (
            f"{path}: an exported {opened.kind} file; this needs an encoder with weights "
            "(a model directory, or what prune, finetune or quantize wrote)"
        )
        raise ModelError(msg)
    return opened
