import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcompress.data import Examples
from tcompress.errors import DataError, ModelError
from tcompress.images import PatchPreprocessor, read_image


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(_png(10_000, 10_000), "exceeds limit", id="of 100 megapixels"),
        pytest.param(_png(1 << 30, 1 << 30), "exceeds limit", id="of an exapixel"),
        pytest.param(_png(50, 50)[:40], "cannot be read as PNG", id="cut off"),
        pytest.param(b"GIF89a" + b"\0" * 99, "cannot be read as PNG", id="of another format"),
    ],
)
def test_image_that_cannot_be_meant_is_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        read_image(tmp_path / "a.png", "L")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        pytest.param({"size": {"height": 10**9, "width": 8}}, "'size' must be 0 to", id="size"),
        pytest.param({"crop_size": -1}, "'crop_size' must be 0 to", id="crop"),
        pytest.param({"auto_map": {"AutoImageProcessor": "own.P"}}, "asks for code", id="code"),
    ],
)
def test_harmful_processor_is_one_line(tmp_path: Path, config: dict[str, Any], says: str) -> None:
    text = json.dumps({"image_processor_type": "ViTImageProcessor"} | config)
    (tmp_path / "preprocessor_config.json").write_text(text)
    opened = PatchPreprocessor(tmp_path, "pixel_values", (3, 8, 8), 5)
    with pytest.raises(ModelError, match=says):
        opened.encode(Examples("d.npz", ("0",), inputs=np.zeros((1, 8, 8, 3), dtype=np.uint8)))
