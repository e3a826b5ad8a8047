"""F10: data."""

import bz2
import gzip
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
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


def _arrays(**arrays: np.ndarray) -> Build:
    def build(seeds: Seeds, directory: Path) -> Path:
        np.savez(directory / "d.npz", **({"inputs": np.ones((8, 6, 5), np.float32)} | arrays))
        return directory / "d.npz"

    return build


def _parquet(column: str, kind: str) -> Build:
    """Rows that are long, or not of Python's time, in few bytes."""

    def build(seeds: Seeds, directory: Path) -> Path:
        import pyarrow as pa
        from pyarrow import parquet

        rows = pa.array([0] * 2000, pa.int32())
        values = {
            "long": lambda: pa.DictionaryArray.from_arrays(rows, ["a" * (5 << 20)]),
            "date": lambda: pa.array([2**31 - 1] * 2000, pa.int32()).cast(pa.date32()),
            "duration": lambda: pa.array([2**62] * 2000, pa.duration("s")),
        }[kind]()
        columns = {"text": ["film"] * 2000, "label": ["good"] * 2000, column: values}
        parquet.write_table(pa.table(columns), directory / "d.parquet")
        return directory / "d.parquet"

    return build


def _beside(build: Build) -> Build:
    """Put what another function builds beside a copy of the model."""

    def both(seeds: Seeds, directory: Path) -> Path:
        shutil.copytree(seeds.bert, directory / "model")
        build(seeds, directory)
        return directory

    return both


def _tarred(seeds: Seeds, directory: Path) -> Path:
    path = directory / "d.csv.tar"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("d.csv")
        member.size = 128 << 20
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def _url(seeds: Seeds, directory: Path) -> Path:
    """A directory whose name is the start of a URL, with a file that is not the one of the URL."""
    outside = directory / "outside.csv.bak"
    outside.write_text(HEAD + ROWS)
    inside = Path(f"{directory}/file:{outside}")
    inside.parent.mkdir(parents=True)
    inside.write_text(HEAD + ROWS)
    return inside


def _page(place: str) -> Build:
    """A folder whose README.md names data elsewhere."""

    def build(seeds: Seeds, directory: Path) -> Path:
        shutil.copytree(seeds.bert, directory / "model")
        (directory / "outside.csv").write_text(HEAD + ROWS)
        (directory / "set").mkdir()
        path = place.format(directory=directory)
        page = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - path: {path}\n---\n"
        (directory / "set" / "README.md").write_text(page)
        return directory

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


def _tensors(name: str, says: str, **arrays: np.ndarray) -> Case:
    return Case(name, "F10", Opens.TENSORS, _arrays(**arrays), says=says)


def _paged(name: str, place: str) -> Case:
    words = (*SCORE, "hf:{input}/set")
    return Case(name, "F10", Opens.WORDS, _page(place), says="no data files", words=words)


def _question(answers: str) -> Build:
    return _file("d.jsonl", f'{{"question": "a", "context": "the film", "answers": {answers}}}\n')


WIDE = json.dumps({"text": "film", "label": "bad", **{f"{i:x}": 0 for i in range(20_000)}})
PLAIN = '{"text": "film", "label": "good"}\n'
FLOATS = np.ones((8, 6, 5), np.float32)

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
    _refused("Parquet of one text in all rows", _parquet("text", "long"), "rows take over"),
    _refused("Parquet of dates beyond the calendar", _parquet("label", "date"), "cannot be read"),
    _refused("Parquet of endless durations", _parquet("label", "duration"), "cannot be read"),
    Case(
        "Parquet with a bomb in another column",
        "F10",
        Opens.WORDS,
        _beside(_parquet("note", "long")),
        codes=OK,
        accepted=True,
        words=(*SCORE, "{input}/d.parquet"),
    ),
    _taken("record of many keys among others", "d.jsonl", f"{WIDE}\n" + PLAIN * 19_999),
    _refused(
        "bomb of JSON",
        _file("d.json.gz", gzip.compress(b"[" + b"{}," * 20_000_000 + b"{}]", 1)),
        "lists and objects",
    ),
    _refused("bomb in a tar", _tarred, "unknown data format"),
    _refused("path like a URL", _url, "unknown data format"),
    _refused("sentence without end", _file("d.conll", "the O\n" * 100_001), "without a blank line"),
    _paged("page that names an absolute path", "{directory}/outside.csv"),
    _paged("page that names a path above", "../outside.csv"),
    _paged("page that names the hub", "hf://datasets/owner/name/d.csv"),
    _paged("page that names a server", "http://127.0.0.1:9/d.csv"),
    _refused(
        "number among lists of words",
        _file("d.jsonl", '{"text": ["a"], "label": ["x"]}\n{"text": 5, "label": ["x"]}\n'),
        "lists of words",
    ),
    _refused("object for a text", _file("d.jsonl", '{"text": {"a": 1}}\n'), "no text"),
    _refused(
        "answer at a word",
        _question('[{"text": "film", "answer_start": "abc"}]'),
        "no whole number",
    ),
    _refused(
        "answer at a list", _question('[{"text": "film", "answer_start": [1]}]'), "no whole number"
    ),
    _refused(
        "answers with one start", _question('{"text": ["film"], "answer_start": 5}'), "for 1 texts"
    ),
    _refused("row longer than the head", _file("d.csv", f"{HEAD}a,good,x\nb,bad,y\n"), "3 cells"),
    _refused(
        "row shorter than the head", _file("d.csv", f"{HEAD}a,good\nb\n"), "row 2 has 1 cells"
    ),
    _refused(
        "image in a row too long", _file("d.csv", "image,label\n../x.png,good,z\n"), "3 cells"
    ),
    _refused("column twice", _file("d.csv", "text,label,text\na,good,b\n"), "two columns"),
    _tensors("texts for numbers", "floats or whole", inputs=FLOATS.astype("U3")),
    _tensors("bytes for numbers", "floats or whole", inputs=np.zeros((8, 6, 5), "V8")),
    _tensors("complex numbers", "floats or whole", inputs=FLOATS.astype(complex)),
    _tensors("dates for numbers", "floats or whole", inputs=FLOATS.astype("datetime64[s]")),
    _tensors("records for numbers", "floats or whole", inputs=np.zeros((8, 6, 5), [("a", "f4")])),
    _tensors("numbers beyond float32", "not finite", inputs=np.full((8, 6, 5), 1e300)),
    _tensors("no tokens", "at least one token", inputs=FLOATS[:, :0]),
    _tensors("mask of texts", "0 and 1 only", mask=np.full((8, 6), "1")),
    _tensors("mask below zero", "0 and 1 only", mask=np.full((8, 6), -1)),
    _tensors("mask of nan", "0 and 1 only", mask=np.full((8, 6), np.nan)),
)
