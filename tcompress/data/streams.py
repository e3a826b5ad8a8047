"""Streams of data files, also compressed ones, which may not grow without bound."""

import bz2
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
UNREADABLE = (ValueError, OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
"""What reading a damaged file raises."""


class _Bounded(io.RawIOBase):
    """Passes a stream on, up to a number of bytes."""

    def __init__(self, stream: IO[bytes], path: Path, limit_bytes: int) -> None:
        super().__init__()
        self._stream = stream
        self._path = path
        self._limit_bytes = limit_bytes
        self._left = limit_bytes

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
    limit_bytes = max(ALWAYS_BYTES, MAX_RATIO * path.stat().st_size)
    return io.BufferedReader(_Bounded(unpack(path), path, limit_bytes))


def is_bounded(path: Path, kind: str) -> bool:
    """Tell whether `open_bytes` reads a file; pandas knows more kinds of compression.

    Args:
        path: The file.
        kind: Suffix of its content.
    """
    return path.suffix.lower() in (kind, *_UNPACKERS)


def open_text(path: Path) -> IO[str]:
    """Open a UTF-8 file, compressed or not; see `open_bytes`.

    Args:
        path: The file.
    """
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8")


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
