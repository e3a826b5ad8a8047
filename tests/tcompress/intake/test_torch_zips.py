import io
import zipfile
from pathlib import Path

import pytest
import torch

from tcompress.intake.torch_zips import opened_zip


def saved(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for name, content in members.items():
            packed.writestr(f"archive/{name}", content)
    return stream.getvalue()


def test_what_torch_saves_is_read_member_by_member(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3), "empty": torch.zeros(0), "half": torch.ones(2).half()}
    torch.save(tensors, tmp_path / "weights")
    with opened_zip(tmp_path / "weights") as archive:
        archive.check_sums()
        assert archive.read("data/0") == b"\0\0\x80?" * 3
        assert {"data.pkl", "data/1", "data/2", "version"} <= archive.members.keys()


def test_every_byte_that_changes_is_noticed_or_of_padding(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "weights")
    whole = (tmp_path / "weights").read_bytes()
    members = {}
    with opened_zip(whole) as archive:
        members = {name: archive.read(name) for name in archive.members}
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x41
        try:
            with opened_zip(bytes(changed)) as archive:
                archive.check_sums()
                found = {name: archive.read(name) for name in archive.members}
        except ValueError:
            continue
        assert list(found.values()) == list(members.values())


@pytest.mark.parametrize("length", [0, 1, 21, 40, -1])
def test_what_is_cut_off_is_no_archive(length: int) -> None:
    with pytest.raises(ValueError, match="no zip archive"), opened_zip(saved(x=b"y")[:length]):
        pass


def test_a_member_is_read_up_to_a_limit() -> None:
    with opened_zip(saved(x=bytes(100))) as archive:
        with pytest.raises(ValueError, match="has 100 bytes, at most 99"):
            archive.read("x", 99)
        with pytest.raises(ValueError, match="no y in it"):
            archive.read("y")
