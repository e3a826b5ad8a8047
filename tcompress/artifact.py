"""Directories that tcompress wrote: a manifest with digests."""

import json
import os
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Self

from .digests import document_digest, file_digest
from .errors import ArtifactError
from .intake import read_json
from .machine import cpu_features, library_versions
from .plan import CompressionPlan
from .staging import recover
from .tasks import Task

MANIFEST_FILE = "manifest.json"
SCHEMA_VERSION = 1
ENCODER_KIND = "encoder"
_SEAL = "seal"
_REMEDY = "write the artifact again, or delete its directory"


@dataclass(frozen=True)
class Parent:
    """What an artifact was made from.

    Attributes:
        path: Where it was; in the manifest of an artifact of the same workspace as seen from that
            artifact, so that a workspace may move.
        digest: Its digest then.
    """

    path: str
    digest: str

    def seen_from(self, directory: Path) -> Self:
        """Return the same reference with an absolute path.

        Args:
            directory: The artifact whose manifest has it.
        """
        return replace(self, path=os.path.normpath(directory.resolve() / self.path))


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and where it came from.

    Attributes:
        kind: `encoder` (weights that every stage can read), or the export format: `onnx`,
            `torchscript`, `program`, `openvino`.
        stage: Stage that wrote it: `prune`, `finetune`, `quantize`, `export`.
        parent: The artifact or model directory it was made from.
        source: The unpruned source model.
        plan: What is kept of the source, and in which precision.
        recipe: Parameters of the stage, including seeds; equal recipe and parent, equal result.
        precision: Precision that the files run in.
        details: What the stage wants to have on record.
        files: sha256 and size of every file beside the manifest.
        versions: Library versions at the time of writing.
        cpu_features: Instruction sets of the machine that wrote it.
        created: Time of writing, UTC, ISO 8601.
        task: What its outputs mean.
        key: What the stage's result depends on besides parent and recipe, see `StageKey`; empty
            in manifests from before it was kept.
        schema_version: Version of this document's form.
    """

    kind: str
    stage: str
    parent: Parent
    source: Parent
    plan: CompressionPlan
    recipe: dict[str, Any]
    precision: str = "fp32"
    details: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=library_versions)
    cpu_features: dict[str, bool] = field(default_factory=cpu_features)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat())
    task: Task = Task.CLASSIFICATION
    key: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def digest(self) -> str:
        """Digest of what the artifact is and how it was made; not of when it was written."""
        return document_digest(
            {
                "kind": self.kind,
                "stage": self.stage,
                "recipe": self.recipe,
                "files": self.files,
                "plan": self.plan.to_json(),
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as a JSON document."""
        document = {item.name: getattr(self, item.name) for item in fields(self)}
        document |= {"parent": asdict(self.parent), "source": asdict(self.source)}
        return document | {"plan": self.plan.to_json()}

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read a directory's manifest.

        Args:
            directory: A directory that tcompress wrote.

        Raises:
            ArtifactError: If the manifest is missing or not of a form that is known.
        """
        path = directory / MANIFEST_FILE
        recover(directory)
        if not path.exists():
            msg = f"{directory}: no {MANIFEST_FILE} in it; not a directory that tcompress wrote"
            raise ArtifactError(msg)
        document = read_json(path, error=ArtifactError, remedy=_REMEDY)
        try:
            _check_version(document.pop("schema_version"))
            document.pop(_SEAL, None)
            parent, source = (
                _reference(document, role).seen_from(directory) for role in ("parent", "source")
            )
            plan = CompressionPlan.from_json(document.pop("plan"))
            document["task"] = Task(document.get("task", Task.CLASSIFICATION))
            manifest = cls(parent=parent, source=source, plan=plan, **document)
            _check_types(manifest)
            return manifest
        except KeyError as error:
            msg = f"{path}: not a manifest that can be read: no {error} in it; {_REMEDY}"
            raise ArtifactError(msg) from error
        except (ValueError, TypeError, AttributeError, ArtifactError) as error:
            msg = f"{path}: not a manifest that can be read: {error}; {_REMEDY}"
            raise ArtifactError(msg) from error


@dataclass(frozen=True)
class Artifact:
    """A directory that tcompress wrote.

    Attributes:
        directory: Where it is.
        manifest: What it says about itself.
    """

    directory: Path
    manifest: Manifest

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open an artifact and check that its files are all there, unchanged.

        They are so now: who may write to the directory can change what is read of them later.

        Args:
            directory: The directory.

        Raises:
            ArtifactError: If a file is missing, changed or not listed.
        """
        artifact = cls(directory, Manifest.read(directory))
        if faults := artifact.faults():
            msg = f"{directory}: {faults[0]}; write the artifact again"
            raise ArtifactError(msg)
        return artifact

    @property
    def size_bytes(self) -> int:
        """Size of all files that the manifest lists."""
        return sum(int(entry["size_bytes"]) for entry in self.manifest.files.values())

    @property
    def model_bytes(self) -> int:
        """Size of the model file alone: the largest of all files."""
        return max(int(entry["size_bytes"]) for entry in self.manifest.files.values())

    def as_parent(self) -> Parent:
        """Return the reference that a child's manifest keeps."""
        return Parent(str(self.directory.resolve()), self.manifest.digest)

    def summary(self) -> dict[str, Any]:
        """Return what a stage's `--json` shows of the artifact it wrote."""
        manifest = self.manifest
        return {
            "schema_version": manifest.schema_version,
            "kind": manifest.kind,
            "stage": manifest.stage,
            "task": manifest.task.value,
            "path": str(self.directory),
            "digest": manifest.digest,
            "parent": manifest.parent.path,
            "plan": manifest.plan.summary(),
            "recipe": manifest.recipe,
            "details": manifest.details,
            "size_bytes": self.size_bytes,
        }

    def faults(self) -> list[str]:
        """Compare the files with the manifest; empty means that everything holds."""
        listed, present = self.manifest.files, self._present()
        faults = [f"{name} is missing" for name in sorted(set(listed) - present)]
        faults += [f"{name} is not in the manifest" for name in self.unlisted()]
        faults += [
            f"{name} differs from the manifest"
            for name in sorted(present & set(listed))
            if not _holds(self.directory / name, listed[name])
        ]
        whole = _is_sealed(self.directory / MANIFEST_FILE)
        return faults if whole else [*faults, f"{MANIFEST_FILE} differs from what was written"]

    def unlisted(self) -> list[str]:
        """Return the files in the directory that the manifest does not know."""
        return sorted(self._present() - set(self.manifest.files))

    def _present(self) -> set[str]:
        found = [p for p in self.directory.rglob("*") if not p.is_dir() or p.is_symlink()]
        return {p.relative_to(self.directory).as_posix() for p in found} - {MANIFEST_FILE}


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest's document with its own digest, by which a change shows.

    Args:
        document: The document.
    """
    read = json.loads(json.dumps(document))  # whose keys are strings
    return document | {_SEAL: document_digest(read)}


def _is_sealed(path: Path) -> bool:
    """Tell whether a manifest is as it was written, or from before it had its own digest."""
    document = read_json(path, error=ArtifactError, remedy=_REMEDY)
    seal = document.pop(_SEAL, None)
    return seal is None or seal == document_digest(document)


def _holds(path: Path, entry: Mapping[str, Any]) -> bool:
    """Tell whether a file is what its entry in the manifest says."""
    regular = path.is_file() and not path.is_symlink()
    same_size = regular and path.stat().st_size == entry["size_bytes"]
    return same_size and file_digest(path) == entry["sha256"]


def _check_version(version: Any) -> None:
    if version != SCHEMA_VERSION or type(version) is not int:
        newer = type(version) is int and version > SCHEMA_VERSION
        hint = ", a newer one wrote it: upgrade tcompress" if newer else ""
        found = reprlib.repr(version)
        msg = f"schema_version {found}, this tcompress reads {SCHEMA_VERSION}{hint}"
        raise ValueError(msg)


def _reference(document: dict[str, Any], role: str) -> Parent:
    found = Parent(**document.pop(role))
    if not (isinstance(found.path, str) and isinstance(found.digest, str)):
        msg = f"{role!r} must give path and digest as strings"
        raise TypeError(msg)
    if "\0" in found.path:
        msg = f"{role!r} must not give the path {found.path!r:.80}: no system has such a name"
        raise ValueError(msg)
    return found


def _check_types(manifest: Manifest) -> None:
    """Raise unless what is read from the manifest later on has the right types."""
    for name in ("kind", "stage", "precision", "created"):
        if not isinstance(getattr(manifest, name), str):
            msg = f"{name!r} must be a string"
            raise TypeError(msg)
    for name in ("recipe", "details", "files", "versions", "cpu_features", "key"):
        if not isinstance(getattr(manifest, name), dict):
            msg = f"{name!r} must be an object"
            raise TypeError(msg)
    _check_values("versions", manifest.versions, str)
    _check_values("cpu_features", manifest.cpu_features, bool)
    kinds = {"inputs": str, "versions": str, "cpu_features": bool}
    for name, kind in kinds.items():
        _check_values(f"key.{name}", manifest.key.get(name, {}), kind)
    if not manifest.files:
        msg = "'files' names none, and an artifact has some"
        raise ValueError(msg)
    for name, entry in manifest.files.items():
        _check_entry(name, entry)


def _check_values(name: str, found: Any, kind: type) -> None:
    if not isinstance(found, dict) or not all(type(value) is kind for value in found.values()):
        msg = f"{name!r} must be an object with values of type {kind.__name__}"
        raise TypeError(msg)


def _check_entry(name: str, entry: Any) -> None:
    """Raise unless a file is one in the directory, with what it takes to check it."""
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or "\\" in name or path.as_posix() != name
    if outside or name in ("", ".", MANIFEST_FILE):
        msg = f"'files' must not name {name!r}"
        raise ValueError(msg)
    size = entry["size_bytes"]
    if not isinstance(entry["sha256"], str) or type(size) is not int or size < 0:
        msg = f"'files' must give sha256 and size_bytes of {name!r}"
        raise TypeError(msg)


def is_artifact(directory: Path) -> bool:
    """Tell whether a directory looks like one that tcompress wrote.

    Args:
        directory: Any path.
    """
    recover(directory)
    return (directory / MANIFEST_FILE).is_file()
