import base64
import json
import os
import pickle
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tcompress.data import Examples
from tcompress.errors import ModelError, StorageError
from tcompress.intake.tokenizer_files import repeats_in_a_row, repeats_in_repeats
from tcompress.preprocessing import TextPreprocessor, open_preprocessor
from tcompress.tokenizing import one_line_of

EXAMPLES = Examples("d.csv", ("0",), texts=("the film was good",))


@pytest.fixture
def directory(tmp_path: Path, model_directories: Callable[[str], Path]) -> Path:
    return Path(shutil.copytree(model_directories("bert"), tmp_path / "bert"))


def _edit(path: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _read(directory: Path, rows: int = 20) -> None:
    opened = open_preprocessor(directory, max_positions=40, vocab_size=rows, token_types=True)
    opened.encode(EXAMPLES)


def _normalizer(document: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda found: found.update(normalizer=document)


def _charsmap(raw: bytes) -> Callable[[dict[str, Any]], None]:
    encoded = base64.b64encode(raw).decode()
    return _normalizer({"type": "Precompiled", "precompiled_charsmap": encoded})


def _replace(content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": "a"}, "content": content}


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        pytest.param("tokenizer.json", lambda d: d["model"].update(vocab={}), "no voc", id="empty"),
        pytest.param(
            "tokenizer.json",
            lambda d: d["model"]["vocab"].update(film=20),
            "goes to token id 20, the model's table has 20 rows",
            id="vocabulary larger than the table",
        ),
        pytest.param(
            "tokenizer.json",
            lambda d: d["model"]["vocab"].update(film=-1),
            "-1 is no token id",
            id="negative id",
        ),
        pytest.param(
            "tokenizer.json",
            lambda d: d["added_tokens"][0].update(id=1 << 40),
            "holds the id 1099511627776",
            id="huge id",
        ),
        pytest.param("tokenizer.json", _charsmap(b"ab"), "an index leads out", id="short map"),
        pytest.param(
            "tokenizer.json",
            _charsmap(struct.pack("<II", 4, 0x00FFFC00) + b"abc\0"),
            "an index leads out of it",
            id="map that leads out",
        ),
        pytest.param(
            "tokenizer.json",
            _normalizer({"type": "Sequence", "normalizers": [_replace("aa")] * 40}),
            "make a text over 64 times as long",
            id="replacements that double",
        ),
        pytest.param(
            "tokenizer.json",
            lambda d: d.update(
                pre_tokenizer={
                    "type": "Split",
                    "pattern": {"Regex": "(x+x+)+y"},
                    "behavior": "Isolated",
                    "invert": False,
                }
            ),
            r"repeats what itself repeats",
            id="catastrophic pattern",
        ),
        pytest.param(
            "tokenizer.json",
            _normalizer({"type": "Replace", "pattern": {"Regex": "x*"}, "content": "a"}),
            r"the pattern 'x\*' also finds the empty text",
            id="pattern that finds nothing",
        ),
        pytest.param(
            "tokenizer.json",
            _normalizer({"type": "Prepend", "prepend": "a" * 1000}),
            "make a text over 64 times as long",
            id="long prefix",
        ),
        pytest.param(
            "tokenizer.json",
            _normalizer({"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 30}),
            "make a text over 64 times as long",
            id="bytes of bytes",
        ),
        pytest.param(
            "tokenizer.json",
            lambda d: d["model"].update(dropout=0.1),
            "'dropout' 0.1 makes its tokens random; set it to null",
            id="dropout",
        ),
        pytest.param(
            "tokenizer_config.json",
            lambda d: d.update(auto_map={"AutoTokenizer": ["own.Tokenizer", None]}),
            "'auto_map' asks for code",
            id="auto_map",
        ),
        pytest.param(
            "tokenizer_config.json",
            lambda d: d.update(tokenizer_file="/etc/hosts"),
            "names '/etc/hosts', which is not the model's",
            id="file outside",
        ),
        pytest.param(
            "tokenizer_config.json",
            lambda d: d.update(fast_tokenizer_files=["../tokenizer.4.0.0.json"]),
            "'fast_tokenizer_files' names files in place of tokenizer.json; remove the key",
            id="file of a version",
        ),
        pytest.param(
            "tokenizer_config.json",
            lambda d: d.update(model_max_length=-5),
            "must be at least 1, got -5",
            id="negative length",
        ),
        pytest.param(
            "tokenizer_config.json",
            lambda d: d.update(model_max_length=2),
            "adds 3 tokens to every text, and cuts at 2",
            id="no room",
        ),
        pytest.param(
            "tokenizer_config.json",
            lambda d: d.update(model_input_names=["x"]),
            "not 'input_ids'",
            id="no inputs",
        ),
    ],
)
def test_harmful_tokenizer_is_one_line(
    directory: Path, name: str, change: Callable[[Any], object], says: str
) -> None:
    _edit(directory / name, change)
    with pytest.raises(ModelError, match=says) as caught:
        _read(directory)
    assert "\n" not in str(caught.value)


def test_nothing_is_opened_beside_the_files_that_were_checked(directory: Path) -> None:
    os.mkfifo(directory / "chat_template.jinja")  # whoever opens it waits
    (directory / "additional_chat_templates").symlink_to("/etc")
    _read(directory)


def test_a_tokenizer_names_its_directory_and_can_be_sent_elsewhere(directory: Path) -> None:
    opened = open_preprocessor(directory, max_positions=40, vocab_size=20, token_types=True)
    assert isinstance(opened, TextPreprocessor)
    assert opened.tokenizer.name_or_path == str(directory)
    assert tempfile.gettempdir() not in repr(vars(opened.tokenizer)).replace(str(directory), "")
    again = pickle.loads(pickle.dumps(opened.tokenizer))
    assert again("the film").input_ids == opened.tokenizer("the film").input_ids


def test_a_tokenizer_that_cannot_be_opened_is_named_as_the_user_does(directory: Path) -> None:
    _edit(directory / "tokenizer.json", lambda d: d["model"].update(type="None"))
    with pytest.raises(ModelError, match="the tokenizer cannot be opened") as caught:
        _read(directory)
    assert tempfile.gettempdir() not in str(caught.value).replace(str(directory), "")


def test_without_a_temporary_directory_the_machine_is_to_blame(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(directory / "none"))
    with pytest.raises(StorageError, match=r"no temporary directory .* name another .* TMPDIR"):
        _read(directory)


def test_what_a_tokenizer_raises_of_a_text_is_one_line(directory: Path) -> None:
    _edit(directory / "tokenizer.json", lambda d: d["model"].update(unk_token="[NONE]"))
    opened = open_preprocessor(directory, max_positions=40, vocab_size=20, token_types=True)
    with pytest.raises(ModelError, match=r"cannot read the texts: WordPiece error: Missing"):
        opened.encode(Examples("d.csv", ("0",), texts=("unheard",)))


def test_a_panic_writes_nothing_and_whatever_else_is_written_stays(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class PanicException(BaseException):
        pass

    def panic() -> None:
        with one_line_of("x"):
            os.write(2, b"thread panicked\nbacktrace\n")
            raise PanicException("no way")

    with one_line_of("x"):
        os.write(2, b"a warning\n")
    with pytest.raises(ModelError, match="x: no way"):
        panic()
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "a warning\nlater\n"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_of_a_vocabulary_are_no_part_of_its_tokens(directory: Path, end: str) -> None:
    document = json.loads((directory / "tokenizer.json").read_text())
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    lines = end.join(document["model"]["vocab"]) + end
    (directory / "vocab.txt").write_bytes(lines.encode())
    opened = open_preprocessor(directory, max_positions=40, vocab_size=20, token_types=True)
    ids = opened.encode(EXAMPLES).collate([0])["input_ids"]
    assert ids.tolist() == [[2, 5, 6, 7, 8, 3]]


@pytest.mark.parametrize(
    "pattern",
    [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]*[\p{Ll}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}",
        r" ?[^(\s|[.,!?])]+",
        r"\p{N}{1,3}(?=(?:\p{N}{3})*\b)",
        " {2,}",
    ],
)
def test_patterns_of_known_models_are_taken(pattern: str) -> None:
    assert not repeats_in_repeats(pattern)
    assert not repeats_in_a_row(pattern)


@pytest.mark.parametrize(
    ("pattern", "refused"),
    [
        ("a*a*a*a*a*a*[bc]", True),
        (r"\s*[\r\n]+\s+", True),
        (r"\s*[\r\n]+|\s+(?!\S)|\s+", False),
        (r"\d+\D+\d+", False),
        ("a+b+c+", False),
        ("a++a++a++", False),
    ],
)
def test_three_repetitions_that_share_a_text_are_too_many(pattern: str, refused: bool) -> None:
    assert repeats_in_a_row(pattern) is refused


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(?:a|aa)+b", "((a+)b)*", r"(\w+\s?)*!", "([a-z]+){2,}", "(x?a+){10}"]
)
def test_patterns_that_try_every_way_are_not(pattern: str) -> None:
    assert repeats_in_repeats(pattern)
