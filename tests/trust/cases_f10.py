"""F10: data."""

import bz2
import gzip
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from .case import Case, Opens, Seeds

Build = Callable[[Seeds, Path], Path]
OK = frozenset({0})
HEAD = "text,label\n"
ROWS = "".join(
    f"the film was {label} {i},{label}\n" for i in range(20) for label in ("good", "bad")
)
SCORE = (
    *("score", "--criterion", "gate-gradient", "--model", "{input}/model"),
    *("--output", "{output}/scores.json", "--data"),
)
RECORD = (
    *("gate", "record", "--model", "{input}/model", "--data", "{input}/data.csv"),
    *("--output", "{output}/baseline.json"),
)


class Opener:
    """Creates a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


def _file(name: str, content: bytes | str) -> Build:
    def build(seeds: Seeds, directory: Path) -> Path:
        raw = content.encode() if isinstance(content, str) else content
        (directory / name).write_bytes(raw)
        return directory / name

    return build


def _beside_model(name: str, content: bytes | str) -> Build:
    """Put a data file beside a copy of the model."""

    def build(seeds: Seeds, directory: Path) -> Path:
        shutil.copytree(seeds.bert, directory / "model")
        _file(name, content)(seeds, directory)
        return directory

    return build


def _pickled(name: str) -> Build:
    """An array of objects, whose pickle opens the canary."""

    def build(seeds: Seeds, directory: Path) -> Path:
        header = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
        header += " " * (64 - (10 + len(header) + 1) % 64) + "\n"
        array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
        with zipfile.ZipFile(directory / name, "w") as archive:
            archive.writestr("inputs.npy", array + pickle.dumps([Opener(seeds.canary)]))
        return directory / name

    return build


def _pipe(seeds: Seeds, directory: Path) -> Path:
    os.mkfifo(directory / "data.csv")
    return directory / "data.csv"


def _images(*names: str) -> Build:
    def build(seeds: Seeds, directory: Path) -> Path:
        (directory / "elsewhere").mkdir()
        (directory / "elsewhere" / "a.png").write_bytes(b"\x89PNG")
        (directory / "data").mkdir()
        (directory / "data" / "link.png").symlink_to(directory / "elsewhere" / "a.png")
        os.mkfifo(directory / "data" / "pipe.png")
        path = directory / "data" / "data.csv"
        path.write_text("image,label\n" + "".join(f"{name},good\n" for name in names))
        return path

    return build


def _permuted(seeds: Seeds, directory: Path) -> Path:
    """Label texts with what the model does not say, so that it is right under other names."""
    from tcompress import load
    from tcompress.data import Examples

    encoder = load(shutil.copytree(seeds.bert, directory / "model"))
    words = list(json.loads((seeds.bert / "tokenizer.json").read_text())["model"]["vocab"])[4:]
    rng = np.random.default_rng(0)
    texts = tuple(dict.fromkeys(" ".join(rng.choice(words, 6)) for _ in range(400)))
    encoded = encoder.preprocessor.encode(Examples("d", texts, texts=texts))
    with torch.no_grad():
        found = [
            int(row.argmax())
            for _, batch in sorted(encoded.batches(1), key=lambda item: item[0])
            for row in encoder.logits(batch)
        ]
    sides = [[text for text, side in zip(texts, found, strict=True) if side == k] for k in (0, 1)]
    count = min(40, *map(len, sides))
    lines = [f"{text},{encoder.labels[1 - k]}\n" for k in (0, 1) for text in sides[k][:count]]
    (directory / "data.csv").write_text(HEAD + "".join(lines))
    return directory


def _zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.csv", HEAD + ROWS)
        archive.writestr("../b.csv", HEAD + ROWS)
    return buffer.getvalue()


def _refused(name: str, build: Build, says: str) -> Case:
    return Case(name, "F10", Opens.DATA, build, says=says)


def _scored(name: str, file: str, content: bytes | str, says: str, *more: str) -> Case:
    """A file that is refused for what its labels are, where labels are read."""
    words = (*SCORE, f"{{input}}/{file}", *more)
    return Case(name, "F10", Opens.WORDS, _beside_model(file, content), says=says, words=words)


def _taken(name: str, file: str, content: bytes | str) -> Case:
    words = (*SCORE, f"{{input}}/{file}")
    return Case(
        name,
        "F10",
        Opens.WORDS,
        _beside_model(file, content),
        codes=OK,
        accepted=True,
        words=words,
    )


CASES = (
    _refused("empty", _file("d.csv", ""), "empty"),
    _refused("head only", _file("d.csv", HEAD), "no examples"),
    _refused("blanks only", _file("d.jsonl", "\n \n"), "no examples"),
    _refused("no such column", _file("d.csv", "words,label\na,good\n"), "no column 'text'"),
    _refused("line without end of quotes", _file("d.csv", f'{HEAD}"a,good\n'), "cannot be read"),
    _refused("UTF-16", _file("d.csv", (HEAD + ROWS).encode("utf-16")), "cannot be read"),
    _refused("Latin-1", _file("d.csv", HEAD.encode() + b"caf\xe9,good\n"), "cannot be read"),
    _refused("key twice", _file("d.jsonl", '{"text": "a", "text": "b"}\n'), "twice"),
    _refused("deep line", _file("d.jsonl", "[" * 100_000), "deep"),
    _refused("label not a number", _file("d.jsonl", '{"text": "a", "label": NaN}'), "NaN"),
    _refused("no label", _file("d.jsonl", '{"text": "a", "label": null}'), "no value"),
    _refused("numbers for records", _file("d.json", "[1, 2]"), "neither a list of records"),
    _refused("bomb of gzip", _file("d.csv.gz", gzip.compress(b"a" * (65 << 20), 9)), "unpacks"),
    _refused("bomb of bzip2", _file("d.jsonl.bz2", bz2.compress(b"a" * (65 << 20))), "unpacks"),
    _refused("gzip cut off", _file("d.csv.gz", gzip.compress(ROWS.encode())[:30]), "cannot be"),
    _refused("archive of two files", _file("d.csv.zip", _zipped()), "2 files"),
    _refused("arrays with a pickle", _pickled("d.npz"), "pickle"),
    _refused("named pipe", _pipe, "no such data file"),
    _refused("image above", _images("../elsewhere/a.png"), "outside"),
    _refused("image by an absolute path", _images("/etc/hosts"), "outside"),
    _refused("image by a link", _images("link.png"), "outside"),
    _refused("image that is a pipe", _images("pipe.png"), "no file"),
    _refused("image of no name", _images("x" * 5000), "no file"),
    _scored("unknown label", "d.csv", f"{HEAD}{ROWS}film,ugly\n", "'ugly' is not known"),
    _scored("label nan", "d.csv", f"{HEAD}{ROWS}film,nan\n", "'nan' is not known"),
    _scored("label of nothing", "d.csv", f"{HEAD}{ROWS}film,\n", "'' is not known"),
    _scored(
        "label that commands a terminal", "d.csv", f"{HEAD}film,\x1b[2J[red]\n", "is not known"
    ),
    _scored("numbers for names", "d.csv", f"{HEAD}film,0\nplot,1\n", "--label-map 0="),
    Case(
        "permuted labels",
        "F10",
        Opens.WORDS,
        _permuted,
        says="pass --label-map",
        words=RECORD,
    ),
    _taken("one row", "d.csv", f"{HEAD}the film,good\n"),
    _taken("one class", "d.csv", f"{HEAD}the film,good\nthe plot,good\n"),
    _taken("zero bytes in a text", "d.csv", f"{HEAD}the \0 film,good\nplot\0,bad\n"),
    _taken("line of a megabyte", "d.csv", f"{HEAD}{'good ' * 200_000},good\nbad,bad\n"),
    _taken("ids twice", "d.csv", "id,text,label\n1,a,good\n1,the,bad\n"),
    _taken("formula in a cell", "d.csv", f"{HEAD}\"=cmd|'/c calc'!A1\",good\nfilm,bad\n"),
)
