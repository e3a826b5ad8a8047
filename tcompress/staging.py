"""All or nothing: what is written stands beside its place until it is whole.

A staging directory is locked by the process that fills it, so what a killed process left is known
by its lock being free. Only names of that form are ever removed.
"""

import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import storage
from .digests import document_digest
from .errors import StorageError
from .interruption import temporary
from .locking import SUFFIX, make_locked, try_lock
from .storage import PREFIX, Buffer

STAGING_PREFIX = PREFIX
_LEFT = re.compile(
    rf"{re.escape(PREFIX)}([0-9a-f]{{32}}\.tmp|([0-9a-f]{{16}}|here){re.escape(SUFFIX)})"
)
_ASIDE = ".old"
_LEFT_ASIDE = re.compile(rf"{re.escape(PREFIX)}[0-9a-f]{{16}}{re.escape(_ASIDE)}")
_MOMENT_S = 0.01


@contextmanager
def staged(directory: Path) -> Iterator[Path]:
    """Give a staging directory, which is removed unless it was renamed.

    Args:
        directory: Where it is to stand; created when missing.

    Yields:
        The staging directory.

    Raises:
        StorageError: If the file system refuses.
    """
    storage.make_directory(directory)
    sweep(directory)
    path = directory.absolute() / f"{PREFIX}{uuid.uuid4().hex}.tmp"
    with temporary(path), _locked_directory(path):
        try:
            yield path
        finally:
            storage.remove_tree(path)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a file that appears when it is whole.

    Args:
        path: The file to appear; a pipe, a device or the like is written as it is.
        text: Its content.

    Raises:
        StorageError: If the file system refuses.
    """
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: Buffer) -> None:
    """Write a file that appears when it is whole.

    Args:
        path: The file to appear; a pipe, a device or the like is written as it is.
        content: Its content.

    Raises:
        StorageError: If the file system refuses.
    """
    if storage.is_special(path):
        storage.write_bytes(path, content)
        return
    target = path.resolve() if path.is_symlink() else path
    with staged(target.parent) as staging:
        file = staging / target.name
        storage.write_bytes(file, content)
        storage.sync(file)
        storage.rename(file, target)
        storage.sync(target.parent)


def put(staging: Path, target: Path) -> None:
    """Put a staging directory in the place of a target, and what stood there in its own.

    Args:
        staging: The staging directory.
        target: The directory to appear, held by `lock_file`.

    Raises:
        StorageError: If the file system refuses.
    """
    if not target.exists():
        storage.rename(staging, target)
    elif not storage.exchange(staging, target):
        _replace(staging, target)
    storage.sync(target.parent)


def recover(target: Path) -> None:
    """Put back what a process moved aside and did not live to replace.

    Args:
        target: A directory that may have stood there.

    Raises:
        StorageError: If the file system refuses.
    """
    aside = _aside(target)
    moved = aside / target.name
    while moved.is_dir() and not target.exists():
        handle = try_lock(aside)
        if handle is None:  # a process is between two renames, which takes a moment
            time.sleep(_MOMENT_S)
            continue
        try:
            if moved.is_dir() and not target.exists():
                storage.rename(moved, target)
                storage.sync(target.parent)
        finally:
            os.close(handle)


def recover_within(root: Path) -> None:
    """Put back everything that was moved aside below a directory.

    Args:
        root: The directory.
    """
    for aside in root.glob(f"**/{PREFIX}*{_ASIDE}"):
        for moved in aside.iterdir():
            recover(aside.parent / moved.name)


def sweep(directory: Path) -> None:
    """Remove what processes left that were killed; nothing that one is at work on.

    Args:
        directory: Where to look, not below.
    """
    with suppress(OSError), os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(PREFIX)]
        for path in (directory / name for name in names):
            if _LEFT.fullmatch(path.name) or _is_left_aside(path):
                _remove_left(path)


def sweep_below(root: Path) -> None:
    """Remove what processes left that were killed, in a directory and all below it.

    Args:
        root: The directory.
    """
    for directory in (root, *(path for path in root.glob("**/") if path != root)):
        sweep(directory)


def _remove_left(path: Path) -> None:
    handle = try_lock(path)
    if handle is None:
        return
    with suppress(StorageError):
        remove = storage.remove_tree if path.is_dir() else storage.remove
        remove(path)
    os.close(handle)


def _replace(staging: Path, target: Path) -> None:
    """Put a directory in another's place where the two cannot change names at one blow."""
    aside = _aside(target)
    with _locked_directory(aside):
        storage.rename(target, aside / target.name)
        try:
            storage.rename(staging, target)
        except BaseException:
            storage.rename(aside / target.name, target)
            raise
        storage.sync(target.parent)
        storage.remove_tree(aside)


@contextmanager
def _locked_directory(path: Path) -> Iterator[None]:
    handle = make_locked(path)
    try:
        yield
    finally:
        os.close(handle)


def _aside(target: Path) -> Path:
    """Where a directory stands while another takes its place."""
    return target.with_name(f"{PREFIX}{document_digest(target.name)[:16]}{_ASIDE}")


def _is_left_aside(path: Path) -> bool:
    """Whether a directory was moved aside for one that has taken its place."""
    if _LEFT_ASIDE.fullmatch(path.name) is None or not path.is_dir():
        return False
    moved = [entry.name for entry in path.iterdir()]
    return all(
        _aside(path.parent / name) == path and (path.parent / name).exists() for name in moved
    )
