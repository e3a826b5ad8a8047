"""Which artifacts are measured, and what is known about them before they are opened."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tcompress.artifact import ENCODER_KIND, Artifact, Manifest, Parent, is_artifact
from tcompress.errors import RequestError
from tcompress.intake.weights import WEIGHTS_FILE, weight_names
from tcompress.machine import cpu_features, has_int8_dot
from tcompress.runtime import ENGINE_FILES
from tcompress.workspace import Workspace, reference_to, source_of

from .measurement import Subject

BASELINE = "source"


def source_subject(directory: Path) -> Subject:
    """Describe the source model: the baseline of every comparison with a source.

    Args:
        directory: A model directory, or an artifact that still is an encoder.

    Raises:
        ArtifactError: If the artifact is damaged.
        ModelError: If the directory holds no weights.
        RequestError: If the artifact is no encoder in fp32.
    """
    subject = model_subject(BASELINE, directory)
    if (subject.kind, subject.precision) != (ENCODER_KIND, "fp32"):
        what = f"{subject.kind} in {subject.precision}"
        msg = (
            f"{directory}: the source model must be an encoder in fp32, not {what}; "
            "compare any two models with --compare"
        )
        raise RequestError(msg)
    return subject if is_artifact(directory) else replace(subject, stage=BASELINE)


def model_subject(name: str, directory: Path) -> Subject:
    """Describe an artifact or a model directory, of any kind.

    Args:
        name: How the report is to call it.
        directory: Where it is.

    Raises:
        ArtifactError: If the artifact is damaged.
        ModelError: If the directory holds no weights.
    """
    if is_artifact(directory):
        return _subject(name, Artifact.open(directory), stale=False)
    size = sum((directory / part).stat().st_size for part in weight_names(directory))
    digest = reference_to(directory).digest
    return Subject(name, directory, "model", ENCODER_KIND, "fp32", size, digest, digest)


def compared_subjects(first: Path, second: Path) -> tuple[Subject, Subject]:
    """Describe two artifacts or model directories, of any kind, to set side by side.

    Args:
        first: The baseline.
        second: What is compared with it.

    Raises:
        ArtifactError: If an artifact is damaged.
        ModelError: If a directory holds no weights.
        RequestError: If both are one directory.
    """
    if first.resolve() == second.resolve():
        msg = f"--compare {first} {second}: both are one directory; name two"
        raise RequestError(msg)
    return model_subject(first.as_posix(), first), model_subject(second.as_posix(), second)


def workspace_subjects(workspace: Workspace) -> tuple[list[Subject], list[str]]:
    """Describe the artifacts of a workspace, oldest first.

    Args:
        workspace: The workspace.

    Returns:
        The artifacts that stem from the workspace's current source model, and a line for each of
        the others.

    Raises:
        ArtifactError: If an artifact is damaged.
    """
    source, artifacts = workspace.source(), workspace.artifacts()
    fresh = _fresh_digests(source, artifacts)
    subjects, skipped = [], []
    for artifact in artifacts:
        name = artifact.directory.relative_to(workspace.artifacts_directory).as_posix()
        if artifact.manifest.source.digest != source.digest:
            skipped.append(f"{name} was made from another source model; it is left out")
            continue
        checked = Artifact.open(artifact.directory)
        stale = checked.manifest.digest not in fresh
        subjects.append(_subject(name, checked, stale=stale))
    return subjects, skipped


def named_subjects(paths: Sequence[Path], baseline: Path) -> tuple[list[Subject], list[str]]:
    """Describe artifacts and model directories that were named one by one.

    Args:
        paths: Their directories.
        baseline: The source model.

    Returns:
        The subjects, and a line for each that was made from another source model.

    Raises:
        ArtifactError: If an artifact is damaged.
        ModelError: If a directory holds no model.
    """
    source = source_of(baseline)
    subjects = [model_subject(path.as_posix(), path) for path in paths]
    notes = [
        f"{subject.name} was made from another source model than the baseline"
        for subject in subjects
        if is_artifact(subject.directory) and subject.source_digest != source.digest
    ]
    return subjects, notes


def saturation_notes(directories: Sequence[Path]) -> tuple[str, ...]:
    """Say which files answer differently here than where they were checked.

    Args:
        directories: Artifacts and model directories.

    Returns:
        A line for each int8 file with weights of 8 bits, where this CPU saturates on them.
    """
    if has_int8_dot(cpu_features()):
        return ()
    return tuple(
        f"{directory}: its int8 weights use 8 bits, on which this CPU saturates; "
        "export with --reduce-range"
        for directory in directories
        if is_artifact(directory) and Manifest.read(directory).details.get("reduce_range") is False
    )


def _fresh_digests(source: Parent, artifacts: Sequence[Artifact]) -> set[str]:
    """Return the digests of the source and of all that descends from it without a gap."""
    fresh, manifests = {source.digest}, [artifact.manifest for artifact in artifacts]
    for _ in manifests:  # the longest line of descent
        fresh |= {manifest.digest for manifest in manifests if manifest.parent.digest in fresh}
    return fresh


def _subject(name: str, artifact: Artifact, *, stale: bool) -> Subject:
    manifest = artifact.manifest
    is_encoder = manifest.kind == ENCODER_KIND
    return Subject(
        name=name,
        directory=artifact.directory,
        stage=manifest.stage,
        kind=manifest.kind,
        precision=manifest.plan.precision if is_encoder else manifest.precision,
        size_bytes=_model_bytes(manifest),
        digest=manifest.digest,
        source_digest=manifest.source.digest,
        plan=manifest.plan,
        stale=stale,
    )


def _model_bytes(manifest: Manifest) -> int:
    wanted = {WEIGHTS_FILE, *ENGINE_FILES}
    return sum(int(e["size_bytes"]) for name, e in manifest.files.items() if name in wanted)
