import os
import socket
from pathlib import Path

import pytest

from tcompress.errors import DataError, ModelError, StorageError
from tcompress.intake import checked_file, regular_file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "a.txt").write_text("1234")
    return directory


def _check(root: Path, name: str) -> Path:
    return checked_file(root, name, limit_bytes=4)


def test_links_may_lead_to_the_directory_itself_and_to_the_blobs_of_a_snapshot(
    root: Path, tmp_path: Path
) -> None:
    (root / "link").symlink_to("a.txt")
    assert _check(root, "link") == root / "link"
    (tmp_path / "short").symlink_to(root)
    assert _check(tmp_path / "short", "a.txt").read_text() == "1234"
    home = tmp_path / "models--any--bert"
    (home / "snapshots" / "0123").mkdir(parents=True)
    (home / "blobs").mkdir()
    (home / "blobs" / "aa").write_text("5678")
    (home / "snapshots" / "0123" / "a.txt").symlink_to("../../blobs/aa")
    assert _check(home / "snapshots" / "0123", "a.txt").read_text() == "5678"


def test_links_out_of_the_directory_are_refused_with_the_way_out(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").write_text("1")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "b").write_text("1")
    (root / "out").symlink_to(tmp_path / "elsewhere")
    (root / "blob").symlink_to(tmp_path / "blobs" / "b")
    (root / "below").symlink_to(tmp_path)
    for name in ("out", "blob", "below/elsewhere", "../elsewhere"):
        with pytest.raises(ModelError, match=r"leads out of its directory.*cp -rL"):
            _check(root, name)


def test_what_is_no_regular_file_is_named_and_never_opened(root: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "s"))
    for name, says in (("pipe", "a FIFO"), ("s", "a socket"), (".", "a dir"), ("loop", "itself")):
        with pytest.raises(ModelError, match=says):
            _check(root, name)
    with pytest.raises(DataError, match="a device, not a regular file"):
        regular_file(Path("/dev/zero"), limit_bytes=4, error=DataError)


def test_size_and_absence_are_said_with_the_remedy(root: Path) -> None:
    with pytest.raises(ModelError, match="4 bytes, at most 3 are read; try again"):
        checked_file(root, "a.txt", limit_bytes=3, remedy="try again")
    with pytest.raises(ModelError, match="is not there"):
        _check(root, "a.txt/b")
    with pytest.raises(StorageError, match="File name too long"):
        _check(root, "x" * 300)
