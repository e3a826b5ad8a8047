"""Streams of data files, also compressed ones, which may not grow without bound."""

import bz2
import csv
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ..errors import DataError

MAX_RATIO = 200
"""Text of many equal rows shrinks a hundredfold; what shrinks more is made to fill a disk."""
ALWAYS_BYTES = 64 << 20
"""So much may come of any file."""
UNREADABLE = (
    *(ValueError, ArithmeticError, LookupError, NotImplementedError, OSError, EOFError),
    *(csv.Error, zlib.error, lzma.LZMAError, zipfile.BadZipFile),
)
"""What reading a damaged file raises."""


class _Bounded(io.RawIOBase):
    """Passes a stream on, up to a number of bytes."""

    def __init__(self, stream: IO[bytes], path: Path, limit: int) -> None:
        super().__init__()
        self._stream = stream
        self._path = path
        self._limit_bytes = limit
        self._left = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._stream.read(len(buffer))
        self._left -= len(block)
        if self._left < 0:
            msg = (
                f"{self._path}: unpacks to more than {self._limit_bytes:,} bytes, {MAX_RATIO} "
                "times its size; unpack it and name the file itself"
            )
            raise DataError(msg)
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._stream.close()
        super().close()


def open_bytes(path: Path) -> IO[bytes]:
    """Open a data file, also one compressed by gzip, bzip2, xz or alone in a ZIP archive.

    Args:
        path: The file; its last suffix tells how it is compressed.

    Raises:
        DataError: If an archive does not hold one file, or, in reading, if it unpacks to too much.
    """
    unpack = _UNPACKERS.get(path.suffix.lower())
    if unpack is None:
        return path.open("rb")
    return io.BufferedReader(_Bounded(unpack(path), path, limit_bytes(path)))


def limit_bytes(path: Path) -> int:
    """Return how many bytes a packed file may become.

    Args:
        path: The file.
    """
    return max(ALWAYS_BYTES, MAX_RATIO * path.stat().st_size)


def open_text(path: Path, *, newline: str | None = None, encoding: str = "utf-8") -> IO[str]:
    """Open a UTF-8 file, compressed or not; see `open_bytes`.

    Args:
        path: The file.
        newline: Which ends of lines are kept, as for `open`.
        encoding: A kind of UTF-8.
    """
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, newline=newline)


def content_suffix(path: Path) -> str:
    """Return the suffix of a file's content, in small letters, without that of its compression.

    Args:
        path: The file.
    """
    packed = path.suffix.lower() in _UNPACKERS
    return (Path(path.stem) if packed else path).suffix.lower()


def _only_member(path: Path) -> IO[bytes]:
    archive = zipfile.ZipFile(path)
    names = archive.namelist()
    if len(names) != 1:
        archive.close()
        msg = f"{path}: holds {len(names)} files; pack the one file of examples alone"
        raise DataError(msg)
    return archive.open(names[0])


_UNPACKERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zip": _only_member,
}
COMPRESSIONS = tuple(_UNPACKERS)
