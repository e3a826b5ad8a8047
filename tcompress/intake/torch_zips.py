"""Zip archives as PyTorch writes them, looked at before PyTorch reads them.

Readers of zip files differ in what they make of a bent one, and scanners were fooled with that. So
nothing is accepted that could be read in two ways: each byte belongs to one member or to the
directory, and what the directory says of a member, its own header says too.
"""

import re
import reprlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from zipfile import ZipInfo

MAX_MEMBERS = 20_000
MAX_TEXT_BYTES = 64 << 20
_MAX_DIRECTORY_BYTES = 8 << 20
_END, _END_MARK = struct.Struct("<4s4H2LH"), b"PK\5\6"
_LOCATOR, _LOCATOR_MARK = struct.Struct("<4sLQL"), b"PK\6\7"
_LARGE_END, _LARGE_END_MARK = struct.Struct("<4sQ2H2L4Q"), b"PK\6\6"
_LOCAL, _LOCAL_MARK = struct.Struct("<4s5H3L2H"), b"PK\3\4"
_STREAMED, _UTF8 = 0x08, 0x800
_LARGEST = {2: 0xFFFF, 4: 0xFFFFFFFF}
# What may stand behind a member that was streamed: its checksum and sizes.
_TRAILERS = (12, 16, 20, 24)
_NAME = re.compile(r"[^\x00-\x1f\x7f/\\:]{1,255}(/[\w.+-]{1,255}){1,16}", re.ASCII)


@dataclass(frozen=True)
class TorchZip:
    """An archive that was looked at.

    Attributes:
        members: Its files, by their path below the one folder that they are in.
    """

    members: dict[str, ZipInfo]
    _archive: zipfile.ZipFile

    def read(self, name: str, limit_bytes: int = MAX_TEXT_BYTES) -> bytes:
        """Return the content of a member, whose checksum holds.

        Args:
            name: Its name.
            limit_bytes: Largest size.

        Raises:
            ValueError: If it is not there, too large, or damaged.
        """
        info = self.members.get(name)
        if info is None:
            msg = f"no {name} in it"
            raise ValueError(msg)
        if info.file_size > limit_bytes:
            msg = f"{name} has {info.file_size:,} bytes, at most {limit_bytes:,} are read"
            raise ValueError(msg)
        with _understanding():
            return self._archive.read(info)

    def check_sums(self) -> None:
        """Read every member and compare it with its checksum.

        Raises:
            ValueError: If one is damaged.
        """
        with _understanding():
            damaged = self._archive.testzip()
        if damaged is not None:
            msg = f"the checksum of {reprlib.repr(damaged)} does not hold"
            raise ValueError(msg)


@contextmanager
def opened_zip(source: Path | bytes, *, packed: bool = False) -> Iterator[TorchZip]:
    """Open an archive after every rule of its form was checked.

    Args:
        source: A regular file, or the bytes of one.
        packed: Whether members may be compressed.

    Yields:
        The archive.

    Raises:
        ValueError: If it breaks a rule.
    """
    with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        start = _check_end(stream)
        with _understanding():
            archive = zipfile.ZipFile(stream)
        with archive:
            _check_members(archive.infolist(), packed=packed)
            _check_places(stream, archive.infolist(), start)
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            yield TorchZip(members, archive)


@contextmanager
def _understanding() -> Iterator[None]:
    """Turn what Python's reader raises about damaged archives into a `ValueError`."""
    try:
        yield
    except (zipfile.BadZipFile, RuntimeError, EOFError, struct.error, zlib.error) as fault:
        raise ValueError(str(fault) or repr(fault)) from fault


def _check_end(stream: BinaryIO) -> int:
    """Check what stands at the end of the archive; returns where its directory starts."""
    size = stream.seek(0, 2)
    stream.seek(max(0, size - _END.size - _LOCATOR.size - _LARGE_END.size))
    tail = stream.read()
    if len(tail) < _END.size or tail[-_END.size :][:4] != _END_MARK or tail[-2:] != b"\0\0":
        msg = "no zip archive: it does not end as one"
        raise ValueError(msg)
    _, *disks, _, count, length, offset, _ = _END.unpack(tail[-_END.size :])
    if (large := tail[: -_END.size])[-_LOCATOR.size :][:4] == _LOCATOR_MARK:
        small, (count, length, offset) = (count, length, offset), _large_end(large, size)
        if any(
            value not in (true, _LARGEST[width])
            for value, true, width in zip(small, (count, length, offset), (2, 4, 4), strict=True)
        ):
            msg = f"it ends with two directories, of {small[0]:,} and of {count:,} members"
            raise ValueError(msg)
        end = size - _END.size - _LOCATOR.size - _LARGE_END.size
    else:
        end = size - _END.size
    if any(disks) or offset + length != end:
        msg = f"its directory is at {offset:,} and {length:,} long, but ends at {end:,}"
        raise ValueError(msg)
    if count > MAX_MEMBERS or length > _MAX_DIRECTORY_BYTES:
        msg = f"{count:,} members in a directory of {length:,} bytes, at most {MAX_MEMBERS:,}"
        raise ValueError(msg)
    return int(offset)


def _large_end(tail: bytes, size: int) -> tuple[int, int, int]:
    """Return count, length and offset as the record for large archives says."""
    place = size - _END.size - _LOCATOR.size - _LARGE_END.size
    if len(tail) < _LOCATOR.size + _LARGE_END.size:
        msg = "its end is cut off"
        raise ValueError(msg)
    mark, _, _, _, disk, other, _, count, length, offset = _LARGE_END.unpack(
        tail[: _LARGE_END.size]
    )
    _, start, where, _ = _LOCATOR.unpack(tail[_LARGE_END.size :])
    if mark != _LARGE_END_MARK or where != place or any((disk, other, start)):
        msg = "its end contradicts itself"
        raise ValueError(msg)
    return count, length, offset


def _check_members(members: list[ZipInfo], *, packed: bool) -> None:
    """Check what the directory says of each member."""
    seen: set[str] = set()
    for info in members:
        _check_member(info, packed=packed)
        if (key := info.filename.lower()) in seen:  # PyTorch's reader takes a for A
            msg = f"two members are called {reprlib.repr(info.filename)}"
            raise ValueError(msg)
        seen.add(key)
    if len(roots := {name.partition("/")[0] for name in seen}) != 1:
        msg = f"its members are in {len(roots)} folders, expected one"
        raise ValueError(msg)
    if (total := sum(i.file_size for i in members if i.compress_type)) > MAX_TEXT_BYTES:
        msg = f"its compressed members unpack to {total:,} bytes, at most {MAX_TEXT_BYTES:,}"
        raise ValueError(msg)


def _check_member(info: ZipInfo, *, packed: bool) -> None:
    name = reprlib.repr(info.orig_filename)
    parts = info.orig_filename.split("/")
    strange = _NAME.fullmatch(info.orig_filename) is None or info.filename != info.orig_filename
    if strange or any(part in (".", "..") for part in parts):
        msg = f"a member is called {name}"
        raise ValueError(msg)
    if odd := info.flag_bits & ~(_STREAMED | _UTF8):
        msg = f"{name} has the flags {odd:#x}, so it is encrypted, patched or masked"
        raise ValueError(msg)
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        msg = f"{name} is no regular file but a link or the like"
        raise ValueError(msg)
    allowed = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) if packed else (zipfile.ZIP_STORED,)
    if info.compress_type not in allowed:
        msg = f"{name} is compressed by method {info.compress_type}, which PyTorch does not write"
        raise ValueError(msg)
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        msg = f"{name} has {info.compress_size:,} bytes and says {info.file_size:,}"
        raise ValueError(msg)


def _check_places(stream: BinaryIO, members: list[ZipInfo], start: int) -> None:
    """Check that members stand one behind the other, with nothing between them."""
    trailers: tuple[int, ...] = (0,)
    at = 0
    for info in sorted(members, key=lambda member: member.header_offset):
        if info.header_offset - at not in trailers:
            msg = f"{info.header_offset - at:,} bytes before {reprlib.repr(info.filename)} belong "
            raise ValueError(msg + "to no member, or to two")
        at = _end_of(stream, info)
        trailers = _TRAILERS if info.flag_bits & _STREAMED else (0,)
    if start - at not in trailers:
        msg = f"{start - at:,} bytes before its directory belong to no member, or to two"
        raise ValueError(msg)


def _end_of(stream: BinaryIO, info: ZipInfo) -> int:
    """Return where a member's data ends, after its own header said what the directory says."""
    stream.seek(info.header_offset)
    raw = stream.read(_LOCAL.size)
    if len(raw) < _LOCAL.size or raw[:4] != _LOCAL_MARK:
        msg = f"no member where {reprlib.repr(info.filename)} should be"
        raise ValueError(msg)
    _, _, flags, method, _, _, crc, packed, size, name_length, extra = _LOCAL.unpack(raw)
    name = stream.read(name_length)
    expected = info.orig_filename.encode("utf-8" if flags & _UTF8 else "cp437", "replace")
    later = (0,) if flags & _STREAMED else ()
    agree = (
        (flags, method, name) == (info.flag_bits, info.compress_type, expected)
        and crc in (info.CRC, *later)
        and packed in (min(info.compress_size, _LARGEST[4]), _LARGEST[4], *later)
        and size in (min(info.file_size, _LARGEST[4]), _LARGEST[4], *later)
    )
    if not agree:
        msg = f"{reprlib.repr(info.filename)} and the directory contradict each other"
        raise ValueError(msg)
    return stream.tell() + int(extra) + info.compress_size
