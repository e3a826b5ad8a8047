import json
import os
import time
from pathlib import Path

import pytest

from tcompress.errors import ArtifactError, ModelError
from tcompress.intake import parse_json, read_json


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        pytest.param(b"", "it is empty", id="empty"),
        pytest.param(b'{"a": 1,\n "b" 2}', "line 2, column 6", id="syntax"),
        pytest.param(b'{"a": 1', "line 1, column 8", id="truncated"),
        pytest.param(b'\xef\xbb\xbf{"a": 1}', "utf-8-sig, expected UTF-8", id="bom"),
        pytest.param('{"a": 1}'.encode("utf-16"), "utf-16, expected UTF-8", id="utf-16"),
        pytest.param(b'{"a": "\xff"}', "byte 7 is not UTF-8", id="latin-1"),
        pytest.param(b'{"a": {"b": 1, "b": 2}}', "key 'b' stands twice", id="duplicate"),
        pytest.param(b'{"NaN": "NaN",\n"b": NaN}', "NaN at line 2, column 6", id="nan"),
        pytest.param(b'{"a": -Infinity}', "-Infinity at line 1, column 7", id="infinity"),
        pytest.param(b'{"a": 1e999}', "'1e999' is too large", id="overflow"),
        pytest.param(b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON", id="digits"),
        pytest.param(b'{"a": "\\ud800"}', "surrogates not allowed", id="surrogate"),
        pytest.param(b"[" * 100_000, "64 deep at line 1, column 65", id="deep"),
        pytest.param(b"[1]", "holds a list, expected an object", id="list"),
    ],
)
def test_bad_document_is_one_line_that_says_where(raw: bytes, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        parse_json(raw, "config.json")
    message = str(caught.value)
    assert message.startswith("config.json: ")
    assert "\n" not in message


def test_brackets_in_strings_do_not_nest() -> None:
    document = {"a": "[{" * 1000, 'b\\"': ['"[', "\\"], "c": "\U0001f600"}
    assert parse_json(json.dumps(document).encode(), "x") == document


def test_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": "b" * 100}))
    assert read_json(path, limit_bytes=200) == {"a": "b" * 100}
    with pytest.raises(ArtifactError, match=r"larger than the 50 bytes.*; write it again"):
        read_json(path, limit_bytes=50, error=ArtifactError, remedy="write it again")


def test_what_is_no_regular_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, says in (("pipe", "not a regular file"), (".", "not a regular"), ("x", "not there")):
        with pytest.raises(ModelError, match=says):
            read_json(tmp_path / name)


def test_large_vocabulary_is_read_in_a_moment() -> None:
    vocabulary = {"model": {"vocab": [[f"token{i}", -i / 7] for i in range(100_000)]}}
    raw = json.dumps(vocabulary).encode()
    start = time.process_time()
    assert parse_json(raw, "tokenizer.json") == vocabulary
    assert time.process_time() - start < 3
