"""Pickles, and the archives that PyTorch keeps them in, put together by hand."""

import io
import json
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from tcompress.artifact import MANIFEST_FILE, sealed
from tcompress.digests import file_digest

from .case import Seeds

START, STOP = b"\x80\x02", b"."
Build = Callable[[Seeds, Path], Path]


def text(value: str) -> bytes:
    """Put a text on the stack."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def named(module: str, name: str) -> bytes:
    """Put what a module calls by a name on the stack."""
    return f"c{module}\n{name}\n".encode()


def calling(module: str, name: str, *values: str) -> bytes:
    """Call something with texts."""
    return named(module, name) + b"(" + b"".join(map(text, values)) + b"tR"


def number(value: int) -> bytes:
    """Put a number on the stack."""
    return b"\x8a\x08" + struct.pack("<q", value)


def storage(count: int, key: str = "0", location: str = "cpu") -> bytes:
    """Put numbers on the stack that are kept beside the pickle."""
    kind = named("torch", "FloatStorage")
    return b"(" + text("storage") + kind + text(key) + text(location) + number(count) + b"tQ"


def tensor(count: int, size: int, stride: int = 1) -> bytes:
    """Put a tensor of one dimension on the stack, made of so many numbers."""
    shape = number(size) + b"\x85" + number(stride) + b"\x85"
    hooks = named("collections", "OrderedDict") + b")R"
    rebuild = named("torch._utils", "_rebuild_tensor_v2")
    return rebuild + b"(" + storage(count) + b"K\x00" + shape + b"\x89" + hooks + b"tR"


def state(value: bytes, key: bytes | None = None) -> bytes:
    """Make a pickle of a dictionary of one entry."""
    return START + b"}" + (text("weight") if key is None else key) + value + b"s" + STOP


def archive(members: Iterable[tuple[str | zipfile.ZipInfo, bytes]]) -> bytes:
    """Pack files as PyTorch does: not compressed."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as packed:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, content in members:
            packed.writestr(name, content)
    return stream.getvalue()


def saved(pickled: bytes, **others: bytes) -> bytes:
    """Pack a pickle as torch.save does, beside four numbers."""
    files = {"data.pkl": pickled, "byteorder": b"little", "data/0": bytes(16), "version": b"3\n"}
    return archive((f"archive/{name}", content) for name, content in (files | others).items())


def members_of(path: Path) -> dict[str, bytes]:
    """Unpack an archive."""
    with zipfile.ZipFile(path) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def artifact_with(
    kind: str, file: str, change: Callable[[dict[str, bytes], Seeds], object], *, seal: bool = True
) -> Build:
    """Build an exported artifact whose archive has other members, and its manifest agrees."""

    def build(seeds: Seeds, directory: Path) -> Path:
        target = Path(shutil.copytree(getattr(seeds, kind), directory / "artifact"))
        members = members_of(target / file)
        change(members, seeds)
        (target / file).write_bytes(archive(members.items()))
        if seal:
            reseal(target, file)
        return target

    return build


def reseal(artifact: Path, file: str) -> None:
    """Make the manifest agree with a file, as whoever writes a bad one would."""
    path = artifact / MANIFEST_FILE
    document = json.loads(path.read_text(encoding="utf-8"))
    size = (artifact / file).stat().st_size
    digest = file_digest(artifact / file)
    document["files"][file] = {"sha256": digest, "size_bytes": size}
    document.pop("seal")
    path.write_text(json.dumps(sealed(document)), encoding="utf-8")
