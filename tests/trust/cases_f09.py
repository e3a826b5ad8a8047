"""F9: tokenizers."""

import base64
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .case import Case, Opens, Seeds

Change = Callable[[Any], object]
OK = frozenset({0})
MODEL, CONFIG = "tokenizer.json", "tokenizer_config.json"
CODE = "open({canary!r}, 'w').close()\n"


def _edited(name: str, change: Change) -> Callable[[Seeds, Path], Path]:
    """Copy the model and change a JSON file of it."""

    def build(seeds: Seeds, directory: Path) -> Path:
        path = _copied(seeds, directory) / name
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))
        return path.parent

    return build


def _written(name: str, content: bytes) -> Callable[[Seeds, Path], Path]:
    def build(seeds: Seeds, directory: Path) -> Path:
        target = _copied(seeds, directory)
        (target / name).write_bytes(content)
        return target

    return build


def _copied(seeds: Seeds, directory: Path) -> Path:
    return Path(shutil.copytree(seeds.bert, directory / "model"))


def _lines_only(end: bytes) -> Callable[[Seeds, Path], Path]:
    """Keep the vocabulary as lines of text, and nothing else of the tokenizer."""

    def build(seeds: Seeds, directory: Path) -> Path:
        target = _copied(seeds, directory)
        tokens = json.loads((target / MODEL).read_text())["model"]["vocab"]
        (target / MODEL).unlink()
        (target / CONFIG).write_text('{"tokenizer_class": "BertTokenizer"}')
        (target / "vocab.txt").write_bytes(b"".join(t.encode() + end for t in tokens if end))
        return target

    return build


def _with_code(seeds: Seeds, directory: Path) -> Path:
    target = _edited(CONFIG, lambda d: d.update(auto_map={"AutoTokenizer": ["own.T", None]}))(
        seeds, directory
    )
    (target / "own.py").write_text(CODE.format(canary=str(seeds.canary)))
    return target


def _pipe(seeds: Seeds, directory: Path) -> Path:
    target = _copied(seeds, directory)
    (target / MODEL).unlink()
    os.mkfifo(target / MODEL)
    return target


def _beside(name: str, make: Callable[[Path], object]) -> Callable[[Seeds, Path], Path]:
    """Copy the model and put something beside its files that transformers would open."""

    def build(seeds: Seeds, directory: Path) -> Path:
        target = _copied(seeds, directory)
        make(target / name)
        return target

    return build


def _versioned(place: str) -> Callable[[Seeds, Path], Path]:
    """Name another file in place of tokenizer.json, with a pattern that takes forever."""

    def build(seeds: Seeds, directory: Path) -> Path:
        target = _copied(seeds, directory)
        other = Path(os.path.normpath(target / place))
        document = json.loads((target / MODEL).read_text())
        _splitting("(x+x+)+y")(document)
        other.write_text(json.dumps(document))
        named = {"fast_tokenizer_files": [place if place.startswith(".") else str(other)]}
        config = json.loads((target / CONFIG).read_text()) | named
        (target / CONFIG).write_text(json.dumps(config))
        return target

    return build


def _normalizing(document: dict[str, Any]) -> Change:
    return lambda found: found.update(normalizer=document)


def _charsmap(raw: bytes) -> Change:
    encoded = base64.b64encode(raw).decode()
    return _normalizing({"type": "Precompiled", "precompiled_charsmap": encoded})


def _splitting(pattern: str) -> Change:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return lambda found: found.update(pre_tokenizer=step)


def _many_added(document: Any) -> None:
    plain = document["added_tokens"][0]
    document["added_tokens"] += [plain | {"id": i, "content": f"<{i}>"} for i in range(20, 60_000)]


def _doubling(document: Any) -> None:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    document["normalizer"] = {"type": "Sequence", "normalizers": [step] * 40}


def _refused(name: str, build: Callable[[Seeds, Path], Path], says: str) -> Case:
    return Case(name, "F9", Opens.MODEL, build, says=says)


def _harmless(name: str, build: Callable[[Seeds, Path], Path]) -> Case:
    return Case(name, "F9", Opens.MODEL, build, codes=OK, accepted=True)


CASES = (
    _refused(
        "vocabulary larger than the table",
        _edited(MODEL, lambda d: d["model"]["vocab"].update(x=1000)),
        "belongs to another model",
    ),
    _refused(
        "padding beyond the table",
        _edited(CONFIG, lambda d: d.update(pad_token="[NEW]")),
        "padding has token id",
    ),
    _refused(
        "negative id", _edited(MODEL, lambda d: d["model"]["vocab"].update(x=-1)), "no token id"
    ),
    _refused(
        "huge id of an added token",
        _edited(MODEL, lambda d: d["added_tokens"][0].update(id=1 << 40)),
        "added_tokens",
    ),
    _harmless("no padding token", _edited(CONFIG, lambda d: d.pop("pad_token", None))),
    _refused("character map too short", _edited(MODEL, _charsmap(b"ab")), "precompiled_charsmap"),
    _refused("character map empty", _edited(MODEL, _charsmap(b"")), "precompiled_charsmap"),
    _refused(
        "character map that leads out",
        _edited(MODEL, _charsmap(struct.pack("<II", 4, 0x00FFFC00) + b"abc\0")),
        "precompiled_charsmap",
    ),
    _refused(
        "character map no base64",
        _edited(MODEL, _normalizing({"type": "Precompiled", "precompiled_charsmap": "!\x1b[31m"})),
        "precompiled_charsmap",
    ),
    _refused("catastrophic pattern", _edited(MODEL, _splitting("(x+x+)+y")), "repeats"),
    _refused("pattern of alternatives", _edited(MODEL, _splitting("(?:a|aa)+b")), "repeats"),
    _refused("pattern of repetitions", _edited(MODEL, _splitting("a*a*a*a*a*a*[bc]")), "in a row"),
    _refused(
        "pattern that finds nothing",
        _edited(
            MODEL,
            _normalizing({"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 60}),
        ),
        "empty text",
    ),
    _refused(
        "prefixes of megabytes",
        _edited(
            MODEL,
            _normalizing(
                {
                    "type": "Sequence",
                    "normalizers": [{"type": "Prepend", "prepend": "a" * (1 << 17)}] * 50,
                }
            ),
        ),
        "times as long",
    ),
    _refused(
        "bytes of bytes",
        _edited(
            MODEL, _normalizing({"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 30})
        ),
        "times as long",
    ),
    _refused("dropout", _edited(MODEL, lambda d: d["model"].update(dropout=0.1)), "random"),
    _refused("doubling replacements", _edited(MODEL, _doubling), "times as long"),
    _harmless(
        "chat template named as a path",
        _edited(
            CONFIG, lambda d: d.update(chat_template=[{"name": "../../x", "template": "{{ 1 }}"}])
        ),
    ),
    _harmless("unknown class", _edited(CONFIG, lambda d: d.update(tokenizer_class="NoSuch"))),
    _refused("class of no name", _edited(CONFIG, lambda d: d.update(tokenizer_class=[1])), "class"),
    _refused("no vocabulary", _edited(MODEL, lambda d: d["model"].update(vocab={})), "vocabulary"),
    _refused("code in the directory", _with_code, "auto_map"),
    _refused(
        "file elsewhere", _edited(CONFIG, lambda d: d.update(tokenizer_file="/etc/hosts")), "names"
    ),
    _refused("tokenizer of a version elsewhere", _versioned("../tokenizer.4.0.0.json"), "in place"),
    _refused("tokenizer of a version", _versioned("tokenizer.4.0.0.json"), "in place"),
    _harmless("template that is a pipe", _beside("chat_template.jinja", os.mkfifo)),
    _harmless(
        "template that leads out",
        _beside("chat_template.jinja", lambda path: path.symlink_to("/etc/passwd")),
    ),
    _harmless(
        "templates that lead out",
        _beside("additional_chat_templates", lambda path: path.symlink_to("/etc")),
    ),
    _refused(
        "vocabulary that leads out",
        _beside("vocab.txt", lambda path: path.symlink_to("/etc/passwd")),
        "leads out of its directory",
    ),
    _refused("many added tokens", _edited(MODEL, _many_added), "added_tokens"),
    _harmless("vocabulary with carriage returns", _lines_only(b"\r\n")),
    _refused("empty vocabulary file", _lines_only(b""), "vocabulary"),
    _refused("truncated JSON", _written(MODEL, b'{"version": "1.0",'), "not valid JSON"),
    _refused("key twice", _written(MODEL, b'{"model": 1, "model": 2}'), "twice"),
    _refused("deep JSON", _written(MODEL, b"[" * 100_000), "deep"),
    _refused("UTF-16", _written(CONFIG, "{}".encode("utf-16")), "UTF-8"),
    _refused("named pipe", _pipe, "regular file"),
    _refused(
        "negative length", _edited(CONFIG, lambda d: d.update(model_max_length=-5)), "at least 1"
    ),
    _refused(
        "no room for a token", _edited(CONFIG, lambda d: d.update(model_max_length=3)), "cuts at"
    ),
    _refused(
        "inputs of no model", _edited(CONFIG, lambda d: d.update(model_input_names=["x"])), "input"
    ),
)
