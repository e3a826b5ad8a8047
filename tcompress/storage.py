"""The one module that changes the file system.

Every function here raises `StorageError` where the system refuses, whichever library wrote. Before
and after each change it tells an observer, through which tests let any of them fail.

Outside stand only temporary directories of Python's own, which go with the process.
"""

import ctypes
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from .errors import StorageError


class Operation(StrEnum):
    """What is done to the file system."""

    MAKE = "make a directory"
    CREATE = "create"
    WRITE = "write"
    APPEND = "append"
    LINK = "link"
    SYNC = "sync"
    RENAME = "rename"
    EXCHANGE = "exchange"
    REMOVE = "remove"
    REMOVE_TREE = "remove a directory"


class Moment(StrEnum):
    """When an observer is told."""

    BEFORE = "before"
    AFTER = "after"


Buffer = bytes | memoryview
PREFIX = ".tcompress-"
"""What names of temporary files begin with."""
Observer = Callable[[Operation, Path, Moment], None]
observer: Observer | None = None
"""Told of every change; what it raises is taken for an answer of the system."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
_RENAME_EXCHANGE = 2
# How native libraries say that a file could not be written; not what was wrong with its content.
_REFUSED = re.compile(r"\(os error (?P<number>\d+)\)|iostream error")


def make_directory(path: Path) -> list[Path]:
    """Make a directory and those it stands in, unless they are there.

    Args:
        path: The directory.

    Returns:
        Those that were made, the outermost first.
    """
    missing = [place for place in (path, *path.parents) if not place.exists()][::-1]
    for place in missing:
        with _doing(Operation.MAKE, place):
            place.mkdir(exist_ok=True)
    return missing


def create(path: Path) -> int:
    """Open a file to be locked, and create it when missing.

    Args:
        path: The file.

    Returns:
        A handle, to be closed.
    """
    with _doing(Operation.CREATE, path):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def write_text(path: Path, text: str) -> None:
    """Write a file.

    Args:
        path: The file.
        text: Its content; lines end as they do in it.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: Buffer) -> None:
    """Write a file.

    Args:
        path: The file.
        content: Its content.
    """
    size = memoryview(content).nbytes
    with _doing(Operation.WRITE, path, size):
        check_room(path, size)
        path.write_bytes(content)


def write_stream(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let a library write a file by way of memory.

    PyTorch's writers of files end the process when the disk is full.

    Args:
        path: The file.
        write: Writes the content.
    """
    buffer = BytesIO()
    write(buffer)
    write_bytes(path, buffer.getbuffer())


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document, readable and with a final newline.

    Args:
        path: The file.
        document: What to write.
    """
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_text(path: Path, text: str) -> None:
    """Write at the end of a file.

    Args:
        path: The file; created when missing.
        text: What to add.
    """
    with _doing(Operation.APPEND, path), path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(text)


def write_with(path: Path, write: Callable[[Path], object], size_bytes: int | None = None) -> None:
    """Let a library write a file.

    Args:
        path: The file.
        write: Writes it; what it raises about its content stays as it is.
        size_bytes: What it will take, where that is known.
    """
    with _doing(Operation.WRITE, path, size_bytes):
        check_room(path, size_bytes or 0)
        path.touch()
        mode = path.stat().st_mode  # some libraries make files that only their owner may read
        with _understanding(path, size_bytes):
            write(path)
        path.chmod(mode)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, byte by byte.

    Args:
        source: The file.
        target: Where; a file there is replaced.
    """
    size = source.stat().st_size
    with _doing(Operation.WRITE, target, size):
        check_room(target, size)
        shutil.copyfile(source, target)


def link(file: Path, name: Path) -> None:
    """Give a file a second name, or make a copy where that cannot be; replaces what is there.

    Args:
        file: The file.
        name: The second name.
    """
    remove(name)
    with _doing(Operation.LINK, name):
        try:
            name.hardlink_to(file)
            return
        except OSError as error:  # most often another file system
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EACCES):
                raise
    copy_file(file, name)


def sync(path: Path) -> None:
    """Force a file or directory to disk.

    Args:
        path: The file or directory.
    """
    with _doing(Operation.SYNC, path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the file system has nothing to force
                raise
        finally:
            os.close(handle)


def sync_tree(directory: Path) -> None:
    """Force all in a directory to disk: files, then the directories that name them.

    Args:
        directory: The directory.
    """
    paths = sorted(directory.rglob("*"), key=lambda path: (path.is_dir(), -len(path.parts), path))
    for path in (*paths, directory):
        if not path.is_symlink():
            sync(path)


def rename(source: Path, target: Path) -> None:
    """Rename a file or directory, over a file or an empty directory of the same kind.

    Args:
        source: What it is called.
        target: What it is to be called.
    """
    with _doing(Operation.RENAME, target):
        source.replace(target)


def exchange(first: Path, second: Path) -> bool:
    """Let two directories change names, at one blow.

    Args:
        first: One.
        second: The other.

    Returns:
        Whether that was done; kernels and file systems exist that cannot.
    """
    if _renameat2 is None:
        return False
    with _doing(Operation.EXCHANGE, second):
        here, names = -100, (os.fsencode(first.absolute()), os.fsencode(second.absolute()))
        if _renameat2(here, names[0], here, names[1], _RENAME_EXCHANGE) != 0:
            number = ctypes.get_errno()
            if number in _NO_EXCHANGE:
                return False
            raise OSError(number, os.strerror(number), str(second))
    return True


def remove(path: Path) -> None:
    """Remove a file or a link, unless it is gone.

    Args:
        path: The file.
    """
    with _doing(Operation.REMOVE, path, doing="removed"):
        path.unlink(missing_ok=True)


def remove_empty(directory: Path) -> None:
    """Remove a directory, unless there is something in it.

    Args:
        directory: The directory.
    """
    with suppress(StorageError), _doing(Operation.REMOVE, directory, doing="removed"):
        directory.rmdir()


def remove_tree(directory: Path) -> None:
    """Remove a directory with all that is in it, as far as possible; what is left is temporary.

    Args:
        directory: The directory.
    """
    if directory.is_dir():
        with suppress(StorageError), _doing(Operation.REMOVE_TREE, directory, doing="removed"):
            shutil.rmtree(directory, ignore_errors=True)


def check_room(path: Path, size_bytes: int) -> None:
    """Raise unless so many bytes fit on the file system that a path is on.

    Args:
        path: A file to be written.
        size_bytes: What it will take.
    """
    if not is_special(path) and size_bytes > free_bytes(path):
        raise StorageError(_full(path, size_bytes))


def is_special(path: Path) -> bool:
    """Tell whether a path is a pipe, a device or the like, which is neither made nor replaced.

    Args:
        path: Any path.
    """
    return path.exists() and not (path.is_file() or path.is_dir())


def free_bytes(path: Path) -> int:
    """Return how many bytes are free on the file system that a path is on.

    Args:
        path: Any path, that need not exist.
    """
    place = next(place for place in (path, *path.absolute().parents) if place.exists())
    return shutil.disk_usage(place).free


@contextmanager
def reporting(path: Path) -> Iterator[None]:
    """Turn what the file system answers into a `StorageError`.

    Args:
        path: What is written.

    Yields:
        Nothing.
    """
    try:
        yield
    except OSError as error:
        raise _failure(path, error, None, "written") from error


@contextmanager
def _doing(
    operation: Operation, path: Path, size_bytes: int | None = None, *, doing: str = "written"
) -> Iterator[None]:
    """Tell the observer around a change, and turn what the system answers into a `StorageError`."""
    try:
        if observer is not None:
            observer(operation, path, Moment.BEFORE)
        yield
        if observer is not None:
            observer(operation, path, Moment.AFTER)
    except OSError as error:
        raise _failure(path, error, size_bytes, doing) from error


@contextmanager
def _understanding(path: Path, size_bytes: int | None) -> Iterator[None]:
    """Turn what a library says of a system that refused into what the system said."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if (refusal := _REFUSED.search(str(error))) is None:
            raise
        raise _as_os_error(path, refusal, size_bytes) from error


def _failure(path: Path, error: OSError, size_bytes: int | None, doing: str) -> StorageError:
    if error.errno in _FULL:
        return StorageError(_full(path, size_bytes))
    why = error.strerror or str(error)
    return StorageError(
        f"{_named(path)}: cannot be {doing}: {why}; mend that or choose another place"
    )


def _full(path: Path, size_bytes: int | None) -> str:
    needs = "needs more room" if size_bytes is None else f"needs {size_bytes / 1e6:.3g} MB"
    free = f"{free_bytes(path) / 1e6:.3g} MB free on its file system"
    return f"disk full: {_named(path)} {needs}, {free}; make room or choose another place"


def _named(path: Path) -> Path:
    """Return the path as far as the user knows it: names of temporary files are ours."""
    ours = [place for place in (path, *path.parents) if place.name.startswith(PREFIX)]
    return ours[-1].parent if ours else path


def _as_os_error(path: Path, refusal: re.Match[str], size_bytes: int | None) -> OSError:
    """Return what the system told a library, as far as that can be known."""
    if refusal["number"] is not None:
        number = int(refusal["number"])
    else:
        number = errno.ENOSPC if free_bytes(path) <= (size_bytes or 0) else errno.EIO
    return OSError(number, os.strerror(number), str(path))


def _find_renameat2() -> Callable[..., int] | None:
    """Return Linux's call that exchanges names, which Python does not offer."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        text = ctypes.c_char_p
        function.argtypes = (ctypes.c_int, text, ctypes.c_int, text, ctypes.c_uint)
    return function


_renameat2 = _find_renameat2()
