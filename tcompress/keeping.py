"""Model directories that tcompress makes of others: put in place when they are whole and checked.

What stands there before is replaced at one blow, and only where that was allowed and nothing in it
is of another kind.
"""

from pathlib import Path

from . import storage
from .digests import file_digest
from .errors import OutputExistsError
from .intake import is_there
from .locking import lock_file, locked
from .staging import put, recover


def keep(made: Path, target: Path, *, replace: bool) -> Path:
    """Let a staged model directory outlast its block, in a place where the user's files may be.

    Args:
        made: The directory.
        target: Where it is to stand.
        replace: Whether another model may be replaced there.

    Returns:
        The target.

    Raises:
        OutputExistsError: If something else is there and may not be replaced.
        StorageError: If the file system refuses.
    """
    with storage.reporting(target), locked(lock_file(target)):
        recover(target)
        if not _same(made, target):
            _check_replaceable(made, target, replace=replace)
            renew(made, target)
    return target


def renew(made: Path, target: Path) -> Path:
    """Let a staged model directory outlast its block, in a place that only tcompress writes to.

    Args:
        made: The directory.
        target: Where it is to stand.

    Returns:
        The target, untouched where it holds the same.

    Raises:
        StorageError: If the file system refuses.
    """
    with storage.reporting(target), locked(lock_file(target)):
        recover(target)
        if not _same(made, target):
            storage.sync_tree(made)
            put(made, target)
    return target


def _check_replaceable(made: Path, target: Path, *, replace: bool) -> None:
    if not is_there(target):
        return
    if not target.is_dir() or target.is_symlink():
        foreign = [target.name]
    elif not any(target.iterdir()):
        return
    else:
        foreign = sorted(_files(target) - _files(made))
    if foreign or not replace:
        also = f", with {foreign[0]} in it: move it away" if foreign else "; pass --force"
        msg = f"{target}: something else is here already{also} to replace it"
        raise OutputExistsError(msg)


def _same(made: Path, target: Path) -> bool:
    names = _files(made)
    return _files(target) == names and all(_equal(made / name, target / name) for name in names)


def _equal(file: Path, other: Path) -> bool:
    if other.is_symlink() or not other.is_file():
        return False
    return file.samefile(other) or file_digest(file) == file_digest(other)


def _files(directory: Path) -> set[str]:
    found = (path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(directory).as_posix() for path in found}
