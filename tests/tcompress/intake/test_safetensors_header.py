import json
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tcompress.errors import DataError, InputError
from tcompress.intake import read_header


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int8, torch.float8_e4m3fn])
def test_header_says_what_was_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"b": torch.zeros(3, 5, dtype=dtype), "a": torch.zeros((), dtype=dtype)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = read_header(tmp_path / "x.safetensors")
    assert {name: info.shape for name, info in found.items()} == {"a": (), "b": (3, 5)}
    assert sum(info.offsets[1] - info.offsets[0] for info in found.values()) == 16 * dtype.itemsize


def test_what_the_librarys_own_parser_refuses_is_refused_before_it(tmp_path: Path) -> None:
    """Every byte of a small file is flipped; a name may change, and nothing else."""
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.zeros(2, 3), "bias": torch.zeros(3)}, path)
    raw = path.read_bytes()
    end = 8 + struct.unpack_from("<Q", raw)[0]
    for place in range(end):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        try:
            with safe_open(path, "pt") as weights:
                names = set(weights.keys())
        except SafetensorError:
            with pytest.raises(InputError, match="damaged or not safetensors"):
                read_header(path)
        else:
            assert set(read_header(path)) == names


def test_error_is_of_the_kind_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(DataError, match="1 bytes, the length of its header alone takes 8"):
        read_header(tmp_path / "x", error=DataError)


def test_large_headers_are_read_in_a_moment(tmp_path: Path) -> None:
    names = {
        f"layer.{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]}
        for i in range(10_000)
    }
    header = json.dumps(names).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(10_000))
    start = time.perf_counter()
    assert len(read_header(path)) == 10_000
    assert time.perf_counter() - start < 2
