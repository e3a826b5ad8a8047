"""The `inspect` command: looks, but changes nothing."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import Console
from .options import CONTEXT, Common, common_options

if TYPE_CHECKING:
    from .artifact import Artifact, Manifest


@click.command(context_settings=CONTEXT, short_help="Say what an artifact is, and verify it.")
@click.argument("path", type=click.Path(path_type=Path, file_okay=False))
@common_options
def inspect(path: Path, common: Common) -> None:
    """Say what an artifact is, where it came from, and whether its digests hold.

    Exits with 5 when a file was changed, is missing or was added, or is none that a stage would
    open.

    \b
    Example:
      tcompress inspect artifacts/prune
    """
    from .artifact import Artifact, Manifest, is_artifact
    from .encoder import open_encoder
    from .errors import ArtifactError

    console = common.console
    if not is_artifact(path):
        encoder = open_encoder(path)
        document: dict[str, Any] = {
            "schema_version": 1,
            "kind": "model",
            "task": encoder.task.value,
            "parent": None,
            "plan": encoder.plan.summary(),
            "verified": False,
            "labels": list(encoder.labels),
        }
        _show(
            console,
            path,
            document,
            [f"a model directory for {encoder.task}; tcompress did not write it"],
        )
        return
    artifact = Artifact(path, Manifest.read(path))
    manifest, faults = artifact.manifest, artifact.faults() or _unsafe(artifact)
    stale = _stale(manifest)
    document = artifact.summary() | {
        "parent": {"path": manifest.parent.path, "digest": manifest.parent.digest},
        "source": {"path": manifest.source.path, "digest": manifest.source.digest},
        "precision": manifest.precision,
        "verified": not faults,
        "faults": faults,
        "stale": stale,
        "created": manifest.created,
        "versions": manifest.versions,
        "cpu_features": manifest.cpu_features,
    }
    lines = [
        f"{manifest.kind} for {manifest.task}, "
        f"written by {manifest.stage} on {manifest.created[:19]}Z",
        f"made from {manifest.parent.path}",
        f"precision {manifest.precision}, {artifact.size_bytes / 1e6:.1f} MB, "
        f"digest {manifest.digest[:16]}",
        *([f"stale: since then {', '.join(stale)}"] if stale else []),
    ]
    _show(console, path, document, lines)
    if faults:
        msg = f"{path}: {'; '.join(faults)}; do not use it, write it again"
        raise ArtifactError(msg)
    if not console.as_json:
        console.show(f"verified: all {len(manifest.files)} files are as they were written")


def _unsafe(artifact: "Artifact") -> list[str]:
    """Say why no stage or engine would be given an artifact's files; empty: one would."""
    from .artifact import ENCODER_KIND
    from .errors import ArtifactError, ModelError
    from .factories import FACTORY_FILE
    from .intake.configs import CONFIG_FILE
    from .intake.weights import weight_names
    from .runtime import check_exported
    from .transformer import ARCHITECTURE_FILE

    try:
        if artifact.manifest.kind != ENCODER_KIND:
            check_exported(artifact.manifest.kind, artifact.directory)
            return []
        weight_names(artifact.directory)
    except (ArtifactError, ModelError) as error:
        return [str(error)]
    known = (CONFIG_FILE, ARCHITECTURE_FILE)
    if not {*known, FACTORY_FILE}.isdisjoint(artifact.manifest.files):
        return []
    return [f"neither {' nor '.join(known)} in it"]


def _stale(manifest: "Manifest") -> list[str]:
    """Say what its stage would no longer find as it was; data is not looked at."""
    from .errors import InputError
    from .stage_key import StageKey
    from .workspace import reference_to

    try:
        model = reference_to(Path(manifest.parent.path)).digest
    except InputError:
        return ["the model it was made from is gone or damaged"]
    return StageKey.again(manifest, model).changes(manifest)


def _show(console: Console, path: Path, document: dict[str, Any], lines: list[str]) -> None:
    if console.as_json:
        console.show_json(document)
        return
    console.show(str(path), *lines)
    plan = document["plan"]
    rows = [
        (index, f"{heads} of {all_heads}", f"{neurons} of {all_neurons}", *precision.values())
        for index, (heads, all_heads, neurons, all_neurons, precision) in enumerate(
            zip(
                plan["heads"],
                plan["source_heads"],
                plan["neurons"],
                plan["source_neurons"],
                plan["precision"],
                strict=True,
            )
        )
    ]
    console.table(("layer", "heads", "neurons", "attention in", "feed-forward in"), rows)
