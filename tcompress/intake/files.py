"""Which files of a directory may be opened: regular ones that lie in it, of sane size."""

import errno
import stat
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError, ModelError, StorageError

DESCRIPTION_BYTES = 256 << 20
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_REMEDY = "restore the file"


def checked_file(
    root: Path,
    name: str,
    *,
    limit_bytes: int,
    error: type[InputError] = ModelError,
    remedy: str = _REMEDY,
) -> Path:
    """Return the path of a file below a directory, if it may be opened; it is not opened here.

    Links may lead to other files of the directory, and from a snapshot of the Hub's cache to the
    blobs of the same repository.

    Args:
        root: The directory.
        name: Path of the file below it.
        limit_bytes: Largest size.
        error: What to raise of a bad file.
        remedy: What the user can do, as the end of the message.

    Raises:
        InputError: If it is not there, leads out of the directory, is no regular file or too
            large; of the type `error`.
        StorageError: If the system does not tell.
    """
    path, home = root / name, root.resolve()
    try:
        place = path.resolve()
    except RuntimeError:  # links in a circle, which Python 3.13 leaves as they are
        place = path.absolute()
    if not any(place.is_relative_to(allowed) for allowed in (home, *_blobs(home))):
        msg = (
            f"{path}: leads out of its directory, to {place}; make a copy of the directory that "
            "holds the file itself (cp -rL)"
        )
        raise error(msg)
    return regular_file(path, limit_bytes=limit_bytes, error=error, remedy=remedy)


def regular_file(
    path: Path,
    *,
    limit_bytes: int,
    error: type[InputError] = ModelError,
    remedy: str = _REMEDY,
) -> Path:
    """Return a path that the user named, if it may be opened; wherever links lead.

    Args:
        path: The path.
        limit_bytes: Largest size.
        error: What to raise of a bad file.
        remedy: What the user can do, as the end of the message.

    Raises:
        InputError: If it is not there, no regular file or too large; of the type `error`.
        StorageError: If the system does not tell.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as fault:
        msg = f"{path}: is not there; {remedy}"
        raise error(msg) from fault
    except OSError as fault:
        if fault.errno == errno.ELOOP:
            msg = f"{path}: a link that leads to itself; {remedy}"
            raise error(msg) from fault
        msg = f"{path}: cannot be read: {fault.strerror or fault}; check its permissions"
        raise StorageError(msg) from fault
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no file")
        msg = f"{path}: {kind}, not a regular file; {remedy}"
        raise error(msg)
    if status.st_size > limit_bytes:
        msg = f"{path}: {status.st_size:,} bytes, at most {limit_bytes:,} are read; {remedy}"
        raise error(msg)
    return path


def check_files(root: Path, names: Iterable[str]) -> None:
    """Check those of a directory's files that are there.

    Args:
        root: The directory.
        names: Paths of descriptions below it.

    Raises:
        ModelError: If one of them may not be opened.
    """
    for name in names:
        if is_there(root / name):
            checked_file(root, name, limit_bytes=DESCRIPTION_BYTES)


def is_there(path: Path) -> bool:
    """Tell whether a name is taken, be it by a link that leads nowhere.

    Args:
        path: The path.
    """
    return path.is_symlink() or path.exists()


def _blobs(home: Path) -> list[Path]:
    """Return where the Hub's cache has the files to which a snapshot's links lead."""
    return [
        place.parents[1] / "blobs"
        for place in (home, *home.parents)
        if place.parent.name == "snapshots" and place.parents[1].name.startswith("models--")
    ]
