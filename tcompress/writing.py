"""How artifacts are written: one process at a time, all or nothing, and never over what is others'.

Files are forced to disk, then the manifest with their digests, then the directory; one rename shows
it. A reader therefore sees an artifact that holds, or none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import storage
from .artifact import MANIFEST_FILE, Artifact, Manifest, is_artifact, sealed
from .digests import file_digest
from .errors import ArtifactError, OutputExistsError
from .locking import Tell, lock_file, locked, silent
from .staging import put, staged


@dataclass
class ArtifactDraft:
    """An artifact that is being written.

    Attributes:
        directory: Where to put its files.
        manifest: To be set before the block ends; its `files` are filled in.
    """

    directory: Path
    manifest: Manifest | None = None


@contextmanager
def writing_directory(
    target: Path, *, replace: bool = False, tell: Tell = silent
) -> Iterator[Path]:
    """Give a staging directory that becomes `target` when the block ends well.

    It stands beside the target, so that the last step is one rename. If the block raises,
    nothing is left behind and an old target stays as it was.

    Args:
        target: The directory to appear.
        replace: Whether an artifact that is already there may be replaced.
        tell: Told which process is waited for.

    Yields:
        The staging directory.

    Raises:
        OutputExistsError: If the target exists and may not be replaced.
        StorageError: If the file system refuses.
    """
    with storage.reporting(target), locked(lock_file(target), tell):
        check_output(target, replace=replace)
        with staged(target.parent) as staging:
            yield staging
            storage.sync_tree(staging)
            check_output(target, replace=replace)  # somebody else may have been quicker
            put(staging, target)


@contextmanager
def writing_artifact(target: Path, *, replace: bool = False) -> Iterator[ArtifactDraft]:
    """Give a draft that becomes an artifact when the block ends well and set a manifest.

    Args:
        target: The directory to appear.
        replace: Whether an artifact that is already there may be replaced.

    Yields:
        The draft.
    """
    with writing_directory(target, replace=replace) as staging:
        draft = ArtifactDraft(staging)
        yield draft
        if draft.manifest is None:
            msg = f"{target}: no manifest was set"
            raise RuntimeError(msg)
        storage.sync_tree(staging)
        files = {
            path.relative_to(staging).as_posix(): {
                "sha256": file_digest(path),
                "size_bytes": path.stat().st_size,
            }
            for path in sorted(staging.rglob("*"))
            if path.is_file()
        }
        document = sealed(draft.manifest.to_json() | {"files": files})
        storage.write_json(staging / MANIFEST_FILE, document)


def check_output(target: Path, *, replace: bool) -> None:
    """Raise unless `target` may be written.

    Args:
        target: A directory to appear.
        replace: Whether an artifact there may be replaced; anything else never may.

    Raises:
        OutputExistsError: If something is there that has to stay.
    """
    if _is_free(target):
        return
    if not replace:
        msg = f"{target}: exists already; pass --force to replace it, or another --output"
        raise OutputExistsError(msg)
    if target.is_symlink() or not is_artifact(target):
        msg = f"{target}: exists and is not an artifact of tcompress; choose another --output"
        raise OutputExistsError(msg)
    _check_own(target)


def _is_free(target: Path) -> bool:
    if target.is_symlink() or target.is_file():
        return False
    return not (target.exists() and any(target.iterdir()))


def _check_own(target: Path) -> None:
    """Raise unless all in a directory was written by tcompress."""
    try:
        foreign = Artifact(target, Manifest.read(target)).unlisted()
    except ArtifactError as error:
        msg = (
            f"{target}: not replaced, as its {MANIFEST_FILE} cannot be read and so nothing says "
            "what in it is yours; delete it, or choose another --output"
        )
        raise OutputExistsError(msg) from error
    if foreign:
        msg = (
            f"{target}: not replaced, as tcompress did not write {foreign[0]!r} in it; move that "
            "away, or choose another --output"
        )
        raise OutputExistsError(msg)
