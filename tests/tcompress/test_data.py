import bz2
import gzip
import json
import lzma
import re
import shlex
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from tcompress.cli import cli
from tcompress.data import Answer, Columns, Examples, read_examples, split_examples
from tcompress.errors import DataError, WorkspaceError
from tcompress.options import DataOptions
from tcompress.stages import DataSource
from tcompress.workspace import DataConfig, Workspace, WorkspaceConfig

CSV = 'text,label\n"a, b",x\nNA,y\n,x\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.csv", CSV),
        ("d.tsv", "text\tlabel\na, b\tx\nNA\ty\n\tx\n"),
        (
            "d.jsonl",
            '{"text":"a, b","label":"x"}\n{"text":"NA","label":"y"}\n{"text":"","label":"x"}\n',
        ),
    ],
)
def test_tables_are_read_as_text_whatever_they_look_like(
    tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    examples = read_examples(tmp_path / name, Columns())
    assert examples.texts == ("a, b", "NA", "")
    assert examples.labels == ("x", "y", "x")


def test_separated_tables_are_read_as_spreadsheets_write_them(tmp_path: Path) -> None:
    content = '\ufefftext,label\r\n\r\n"a\nb, ""c""",x\r\n5" disk,y\n"film" said,z'
    (tmp_path / "d.csv").write_bytes(content.encode())
    examples = read_examples(tmp_path / "d.csv", Columns())
    assert examples.texts == ('a\nb, "c"', '5" disk', "film said")
    assert examples.labels == ("x", "y", "z")


def test_a_text_that_stands_in_every_row_counts_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setattr("tcompress.data.streams.ALWAYS_BYTES", 1 << 16)
    long = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 99), ["a" * 9999])
    for name, other in (("text", "note"), ("note", "text")):
        table = pyarrow.table({name: long, other: ["film"] * 99})
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    assert read_examples(tmp_path / "note.parquet", Columns()).texts == ("film",) * 99
    with pytest.raises(DataError, match=r"its rows take over [\d,]+ bytes, 200 times"):
        read_examples(tmp_path / "text.parquet", Columns())


def test_rows_of_long_texts_come_in_small_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr("tcompress.data.parquet.ALWAYS_BYTES", 1000)
    texts = tuple(f"{i} {'a' * (i % 300)}" for i in range(200))
    pd.DataFrame({"text": texts}).to_parquet(tmp_path / "d.parquet")
    examples = read_examples(tmp_path / "d.parquet", Columns())
    assert (examples.texts, examples.ids) == (texts, tuple(map(str, range(200))))


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_keys_of_one_record_cost_the_others_nothing(tmp_path: Path, form: str) -> None:
    first = {"text": "a", **{f"k{i}": 0 for i in range(2000)}}
    lines = [json.dumps(first), *['{"text": "b"}'] * 2000]
    content = "\n".join(lines) if form == "jsonl" else f"[{','.join(lines)}]"
    (tmp_path / f"d.{form}").write_text(content)
    assert len(read_examples(tmp_path / f"d.{form}", Columns())) == 2001
    with pytest.raises(DataError, match=r"it has: text, k0, .*, k18, and 1,981 more"):
        read_examples(tmp_path / f"d.{form}", Columns(text="body"))


@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
def test_values_are_counted_before_they_are_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("tcompress.data.tables.MAX_VALUES", 99)
    (tmp_path / name).write_text("[" + "{}," * 99 + "{}]")
    with pytest.raises(DataError, match="101 lists and objects, at most 99 are read at once"):
        read_examples(tmp_path / name, Columns())


@pytest.mark.parametrize("name", ["d.csv.tar", "d.csv.bak", "d.parquet.gz", "d.npz.zip", "d.gz"])
def test_only_known_suffixes_are_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(CSV)
    with pytest.raises(DataError, match="unknown data format; the name must end in one of"):
        read_examples(tmp_path / name, Columns())


def test_a_path_that_looks_like_a_url_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outside.csv").write_text("text\noutside\n")
    inside = Path(f"file:{tmp_path}/outside.csv")
    inside.parent.mkdir(parents=True)
    inside.write_text("text\ninside\n")
    assert read_examples(inside, Columns()).texts == ("inside",)


def test_parquet_is_read(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pd.DataFrame({"text": ["a", "b"], "label": [1, 0]}).to_parquet(tmp_path / "d.parquet")
    assert read_examples(tmp_path / "d.parquet", Columns()).labels == ("1", "0")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("no.csv", None, "no such data file", id="missing"),
        pytest.param("d.csv", "", "the file is empty", id="empty"),
        pytest.param("d.csv", "text,label\n", "no examples in it", id="header-only"),
        pytest.param(
            "d.csv", "body,label\na,x\n", "no column 'text'; it has: body, label", id="column"
        ),
        pytest.param("d.doc", "a", "unknown data format", id="format"),
        pytest.param("d.jsonl", "{broken", "line 1: not valid JSON", id="json"),
        pytest.param("d.npz", "text", "cannot be read as npz", id="npz"),
        pytest.param("d.csv", "text\na\n", "no column 'genre'; it has: text", id="slice"),
        pytest.param("d.jsonl", '{"text":null,"label":"x"}\n', "no value in row 1", id="null"),
    ],
)
def test_bad_files_are_named_with_what_is_wrong(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    slices = ("genre",) if "genre" in message else ()
    with pytest.raises(DataError, match=f"{name}: .*{message}"):
        read_examples(tmp_path / name, Columns(slices=slices))


def test_tensors_are_read_and_checked(tmp_path: Path) -> None:
    inputs = np.zeros((3, 4, 2), np.float32)
    np.savez(tmp_path / "d.npz", inputs=inputs, labels=np.array([0, 1, 0]))
    save_file({"inputs": inputs, "labels": np.array([0, 1, 0])}, tmp_path / "d.safetensors")
    for name in ("d.npz", "d.safetensors"):
        examples = read_examples(tmp_path / name, Columns())
        assert examples.labels == ("0", "1", "0")
        assert len(examples) == 3
    np.savez(tmp_path / "bad.npz", inputs=inputs, labels=np.array([0]))
    with pytest.raises(DataError, match="'inputs' has 3 examples, 'labels' has 1"):
        read_examples(tmp_path / "bad.npz", Columns())
    np.savez(tmp_path / "nan.npz", inputs=inputs * np.nan)
    with pytest.raises(DataError, match="values that are not finite"):
        read_examples(tmp_path / "nan.npz", Columns())


FLOATS = np.ones((2, 3, 4), np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        pytest.param({"inputs": FLOATS.astype("U3")}, "must be floats or whole", id="texts"),
        pytest.param({"inputs": FLOATS.astype(complex)}, "got complex128", id="complex"),
        pytest.param({"inputs": FLOATS.astype("datetime64[s]")}, "got datetime64", id="dates"),
        pytest.param({"inputs": FLOATS.astype("V8")}, "must be floats or whole", id="bytes"),
        pytest.param(
            {"inputs": np.full((2, 3, 4), 1e300)}, "not finite in float32", id="too large"
        ),
        pytest.param({"inputs": FLOATS[:, :0]}, "at least one token each", id="no tokens"),
        pytest.param(
            {"mask": np.full((2, 3), "1")}, "'mask' must hold 0 and 1", id="mask of texts"
        ),
        pytest.param({"mask": np.full((2, 3), -1)}, "'mask' must hold 0 and 1", id="mask below 0"),
        pytest.param(
            {"mask": np.full((2, 3), np.nan)}, "'mask' must hold 0 and 1", id="mask of nan"
        ),
        pytest.param({"labels": FLOATS}, "'labels' must be", id="labels of three dimensions"),
    ],
)
def test_arrays_that_no_model_reads_are_refused(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "d.npz", **({"inputs": FLOATS} | arrays))
    with pytest.raises(DataError, match=f"d.npz: .*{message}"):
        read_examples(tmp_path / "d.npz", Columns())


def test_a_mask_may_be_of_any_numbers(tmp_path: Path) -> None:
    for dtype in ("bool", "int8", "float32"):
        np.savez(tmp_path / "d.npz", inputs=FLOATS, mask=np.ones((2, 3), dtype))
        assert len(read_examples(tmp_path / "d.npz", Columns())) == 2


def test_arrays_with_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", inputs=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="Python objects, which are never unpickled"):
        read_examples(tmp_path / "d.npz", Columns())


def test_a_split_keeps_groups_and_equal_texts_together(tmp_path: Path) -> None:
    rows = [f"text {i % 50},x,film {i % 20}" for i in range(200)]
    (tmp_path / "d.csv").write_text("\n".join(["text,label,film", *rows]))
    by_text = read_examples(tmp_path / "d.csv", Columns())
    by_film = read_examples(tmp_path / "d.csv", Columns(group="film"))
    for examples, key in ((by_text, "texts"), (by_film, "groups")):
        sides = split_examples(examples, validation=0.2, test=0.3, seed=1)
        assert sum(map(len, sides)) == 200
        assert [round(len(side) / 200, 1) for side in sides] == [0.5, 0.2, 0.3]
        values = [value for side in sides for value in set(getattr(side, key))]
        assert len(values) == len(set(values))
        again = split_examples(examples, validation=0.2, test=0.3, seed=1)
        assert [side.digest for side in again] == [side.digest for side in sides]


def test_what_is_tested_on_is_not_trained_on(tmp_path: Path) -> None:
    for name, texts in (("train", "abcd"), ("validation", "cde"), ("test", "def")):
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(f"{t},x\n" for t in texts))
    data = DataConfig(**{name: f"{name}.csv" for name in ("train", "validation", "test")})
    splits = Workspace.create(tmp_path, WorkspaceConfig("model", data)).splits()
    assert splits.test.texts == ("d", "e", "f")
    assert splits.validation.texts == ("c",)
    assert splits.train.texts == ("a", "b")
    assert splits.dropped == 4


def test_slices_follow_their_examples_and_change_no_digest(tmp_path: Path) -> None:
    rows = ["a,x,war,1", "b,y,,2", "c,x,love,3"]
    (tmp_path / "d.csv").write_text("\n".join(["text,label,genre,year", *rows]))
    sliced = read_examples(tmp_path / "d.csv", Columns(slices=("genre", "year")))
    assert sliced.slices == {"genre": ("war", "", "love"), "year": ("1", "2", "3")}
    assert sliced.take([2, 0]).slices["genre"] == ("love", "war")
    drawn = sliced.sample(2, seed=0)
    assert [sliced.slices["year"][sliced.ids.index(i)] for i in drawn.ids] == [
        *drawn.slices["year"]
    ]
    assert sliced.digest == read_examples(tmp_path / "d.csv", Columns()).digest


def test_a_missing_slice_value_is_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text":"a","genre":null}\n{"text":"b","genre":"war"}\n')
    assert read_examples(tmp_path / "d.jsonl", Columns(slices=("genre",))).slices == {
        "genre": ("", "war")
    }


def test_slices_of_tensors_are_arrays_with_one_value_per_example(tmp_path: Path) -> None:
    inputs, path = np.zeros((3, 4, 2), np.float32), tmp_path / "d.npz"
    np.savez(path, inputs=inputs, writer=np.array(["ann", "bob", "ann"]))
    assert read_examples(path, Columns(slices=("writer",))).slices["writer"] == (
        "ann",
        "bob",
        "ann",
    )
    with pytest.raises(DataError, match="no array 'hand'; it has: inputs, writer"):
        read_examples(path, Columns(slices=("hand",)))
    with pytest.raises(
        DataError, match=r"'inputs' must have one value per example, .*=\(3,\), got"
    ):
        read_examples(path, Columns(slices=("inputs",)))


def test_a_workspace_keeps_its_slice_columns(tmp_path: Path) -> None:
    rows = [f"text {i},x,{'long' if i % 3 else 'short'}" for i in range(30)]
    (tmp_path / "d.csv").write_text("\n".join(["text,label,length_class", *rows]))
    data = DataConfig(file="d.csv", slice_columns=("length_class",))
    Workspace.create(tmp_path, WorkspaceConfig("model", data))
    opened = Workspace.open(tmp_path)
    assert set(opened.splits().test.slices["length_class"]) == {"long", "short"}
    assert opened.with_slices(("text",)).splits().test.slices["text"] == opened.splits().test.texts
    text = (tmp_path / "tcompress.toml").read_text().replace('[\n    "length_class",\n]', '"text"')
    (tmp_path / "tcompress.toml").write_text(text)
    with pytest.raises(WorkspaceError, match="slice_columns must be a list of column names"):
        Workspace.open(tmp_path)


def test_init_keeps_slice_columns_that_the_data_has(
    tmp_path: Path, model_directories: Callable[[str], Path], tcompress: Callable
) -> None:
    rows = [f"the film {'good ' * (i % 9)}{i},good,{i % 2},{i % 3}" for i in range(60)]
    (tmp_path / "d.csv").write_text("\n".join(["text,label,half,third", *rows]))
    shared = ("init", model_directories("bert"), "--data", tmp_path / "d.csv")
    named = ("--slice-column", "half", "--slice-column", "third")
    result = tcompress(*shared, *named, "--workspace", tmp_path)
    assert result.exit_code == 0, result.output
    assert Workspace.open(tmp_path).config.data.slice_columns == ("half", "third")
    result = tcompress(*shared, "--slice-column", "writer", "--workspace", tmp_path / "other")
    assert result.exit_code == 5
    assert "no column 'writer'; it has: text, label, half, third" in result.stderr


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        pytest.param(None, set(), id="a command that does not judge needs none"),
        pytest.param((), {"half"}, id="the workspace's"),
        pytest.param(("third",), {"third"}, id="typed ones instead"),
    ],
)
def test_slices_of_named_data_are_those_asked_for(
    tmp_path: Path, typed: tuple[str, ...] | None, expected: set[str]
) -> None:
    (tmp_path / "d.csv").write_text("text,label,half,third\na,x,0,0\n")
    config = WorkspaceConfig("model", DataConfig(file="d.csv", slice_columns=("half",)))
    options = DataOptions(tmp_path / "d.csv", None, None, None, typed)
    examples = DataSource(Workspace.create(tmp_path, config), options).examples("test")
    assert set(examples.slices) == expected


SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": "the film was great",
                    "qas": [
                        {
                            "id": "a",
                            "question": "was it good",
                            "answers": [{"text": "great", "answer_start": 13}],
                        },
                        {"id": "b", "question": "a plot", "answers": [], "is_impossible": True},
                    ],
                }
            ]
        }
    ]
}
CONLL = "-DOCSTART- -X- O\n\nthe DT O\nfilm NN B-work\n\n\ngood\u00a0plot\tO\n"
SENTENCES = (("the", "film"), ("good\u00a0plot",))
TAGS = (("O", "B-work"), ("O",))


def _lines(*records: dict[str, object]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _write(path: Path, content: str) -> Path:
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("d.conll", CONLL, id="conll"),
        pytest.param("d.bio", CONLL.replace("\n", "\r\n"), id="carriage returns"),
        pytest.param("d.txt.gz", CONLL, id="compressed"),
        pytest.param(
            "d.jsonl",
            _lines(*({"tokens": w, "ner_tags": t} for w, t in zip(SENTENCES, TAGS, strict=True))),
            id="jsonl",
        ),
    ],
)
def test_words_are_read_with_their_tags(tmp_path: Path, name: str, content: str) -> None:
    examples = read_examples(_write(tmp_path / name, content), Columns())
    assert (examples.words, examples.tags, examples.texts) == (SENTENCES, TAGS, None)
    assert examples.label_names == {"O", "B-work"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("d.json", json.dumps(SQUAD), id="squad"),
        pytest.param(
            "d.jsonl.gz",
            _lines(
                {
                    "id": "a",
                    "question": "was it good",
                    "context": "the film was great",
                    "answers": {"text": ["great"], "answer_start": [13]},
                },
                {
                    "id": "b",
                    "question": "a plot",
                    "context": "the film was great",
                    "answers": {"text": [], "answer_start": []},
                },
            ),
            id="jsonl",
        ),
    ],
)
def test_questions_are_read_with_contexts_and_answers(
    tmp_path: Path, name: str, content: str
) -> None:
    examples = read_examples(_write(tmp_path / name, content), Columns())
    assert examples.ids == ("a", "b")
    assert examples.texts == ("was it good", "a plot")
    assert examples.text_pairs == ("the film was great",) * 2
    assert examples.answers == ((Answer("great", 13),), ())


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        pytest.param(
            "d.jsonl",
            _lines({"text": "a", "label": ["x", "y"]}, {"text": "b", "label": []}),
            Columns(),
            id="lists",
        ),
        pytest.param(
            "d.csv.gz",
            "text,label\na,x; y\nb,\n",
            Columns(label_separator=";"),
            id="separator",
        ),
        pytest.param(
            "d.csv", "text,x,y\na,1,1\nb,0,0\n", Columns(label_columns=("x", "y")), id="columns"
        ),
    ],
)
def test_an_example_may_have_several_labels_or_none(
    tmp_path: Path, name: str, content: str, columns: Columns
) -> None:
    examples = read_examples(_write(tmp_path / name, content), columns)
    assert examples.label_sets == (("x", "y"), ())
    assert examples.labels is None
    assert examples.take([1]).label_sets == ((),)


def test_images_and_several_labels_are_carried_as_arrays(tmp_path: Path) -> None:
    images = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    np.savez(tmp_path / "d.npz", inputs=images, labels=np.array([[1, 0, 1], [0, 0, 0]]))
    examples = read_examples(tmp_path / "d.npz", Columns())
    assert examples.inputs is not None
    assert np.array_equal(examples.inputs, images)
    assert examples.label_sets == (("0", "2"), ())


def test_numbers_are_labels_that_must_be_finite(tmp_path: Path) -> None:
    path = _write(tmp_path / "d.csv", "text,label\na,1.5\nb,-2\nc,nan\n")
    examples = read_examples(path, Columns())
    assert examples.take([0, 1]).numbers.tolist() == [1.5, -2.0]
    with pytest.raises(DataError, match="label of example '2' is 'nan', not a number"):
        _ = examples.numbers


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        pytest.param("d.conll", "film O\nplot\n", {}, "line 2 has no tag: 'plot'", id="no tag"),
        pytest.param(
            "d.jsonl",
            _lines({"tokens": ["a", "b"], "tags": ["O"]}),
            {},
            "column 'tags' has 1 tags for 2 words in row 1",
            id="tags",
        ),
        pytest.param(
            "d.json",
            json.dumps(SQUAD).replace("13", "12"),
            {},
            "says 'great' at 12, where the context has ' grea' in row 1",
            id="answer elsewhere",
        ),
        pytest.param("d.json", "{}", {}, "neither a list of records nor questions", id="json"),
        pytest.param(
            "d.csv",
            "text,x\na,2\n",
            {"label_columns": ("x",)},
            "column 'x' has '2', and --label-columns hold 0 or 1 in row 1",
            id="flags",
        ),
        pytest.param(
            "d.jsonl",
            _lines({"text": ["a"], "label": ["x"]}, {"text": 5, "label": ["x"]}),
            {},
            "column 'text' has 5 where other rows have lists of words in row 2",
            id="text among words",
        ),
        pytest.param(
            "d.jsonl",
            _lines({"text": "a", "label": "x"}, {"text": ["b"], "label": "x"}),
            {},
            r"column 'text' has \['b'\], which is no text or number, in row 2",
            id="words among texts",
        ),
        pytest.param(
            "d.json",
            json.dumps(SQUAD).replace("13", '"abc"'),
            {},
            "has an answer that starts at 'abc', which is no whole number, in row 1",
            id="answer at a word",
        ),
        pytest.param(
            "d.jsonl",
            _lines({"question": "a", "context": "b", "answers": {"text": ["b"], "start": 0}}),
            {},
            "column 'answers' has the start 0 for 1 texts in row 1",
            id="answers without a list of starts",
        ),
        pytest.param(
            "d.csv", "text,label\na,x\nb,x,y\n", {}, "row 2 has 3 cells, the head has 2", id="long"
        ),
        pytest.param(
            "d.tsv", "text\tlabel\na\n", {}, "row 1 has 1 cells, the head has 2", id="short"
        ),
        pytest.param(
            "d.csv", "text,text\na,b\n", {}, "two columns have the name 'text'", id="twice"
        ),
        pytest.param("d.csv", 'text\n"a\nb\n', {}, "a quote opens and never closes", id="quote"),
        pytest.param(
            "d.jsonl",
            '{"text":"a"}\n[]\n',
            {},
            "line 2: it holds a list, expected an object",
            id="line",
        ),
    ],
)
def test_bad_values_are_named_with_their_place(
    tmp_path: Path, name: str, content: str, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=f"{name}: .*{message}"):
        read_examples(_write(tmp_path / name, content), Columns(**columns))


def test_what_depends_on_the_truth_changes_the_digest_and_what_does_not_keeps_it(
    tmp_path: Path,
) -> None:
    path = _write(tmp_path / "d.json", json.dumps(SQUAD))
    whole = read_examples(path, Columns())
    assert whole.take([0, 1]).digest == whole.digest
    assert read_examples(path, Columns(stride=7)).digest != whole.digest
    assert replace(whole, answers=((), ())).digest != whole.digest
    assert replace(whole, answers=((), ())).content_digests == whole.content_digests


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "conll", "parquet"])
def test_a_sample_of_a_large_file_is_drawn_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"d.{suffix}"
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
        pd.DataFrame({"text": [f"t{i}" for i in range(500)]}).to_parquet(path)
    else:
        lines = {"csv": "t{0}\n", "jsonl": '{{"text": "t{0}"}}\n', "conll": "t{0} O\n\n"}[suffix]
        head = "text\n" if suffix == "csv" else ""
        path.write_text(head + "".join(lines.format(i) for i in range(500)))
    for name in ("tables.CHUNK_ROWS", "documents.CHUNK_ROWS", "examples.SMALL", "reading.SMALL"):
        monkeypatch.setattr(f"tcompress.data.{name}", 20)
    whole = read_examples(path, Columns())
    left = whole.take(range(100, 500))
    held = []
    original = Examples.__init__

    def counting(self: Examples, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        held.append(len(self))

    monkeypatch.setattr(Examples, "__init__", counting)
    avoid = frozenset(whole.content_digests[:100])
    drawn = [read_examples(path, Columns(), 9, seed, avoid) for seed in range(40)]
    assert max(held) <= 40
    for seed, sample in enumerate(drawn):
        assert sample.digest == left.sample(9, seed).digest
        assert sample.ids == left.sample(9, seed).ids
    # the mean of 360 draws from 100 ... 499 has a standard error of 6
    rows = [int(i) for sample in drawn for i in sample.ids]
    assert np.mean(rows) == pytest.approx(299.5, abs=25)


def test_a_workspaces_sample_never_meets_a_later_split(tmp_path: Path) -> None:
    for name, texts in (("train", "abcdefgh"), ("validation", "ghij"), ("test", "aij")):
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(f"{t},x\n" for t in texts))
    data = DataConfig(**{name: f"{name}.csv" for name in ("train", "validation", "test")})
    workspace = Workspace.create(tmp_path, WorkspaceConfig("model", data))
    for split in ("train", "validation", "test"):
        sample = workspace.sample(split, 3, seed=1)
        assert sample.digest == getattr(workspace.splits(), split).sample(3, 1).digest


def test_data_sets_are_read_by_name_with_class_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = {"text": ["a", "b", "c"], "label": [1, 0, 1]}
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(tmp_path / "set" / f"{split}.parquet")
    name = f"hf:{tmp_path / 'set'}"
    examples = read_examples(f"{name}#test", Columns())
    assert examples.labels == ("good", "bad", "good")
    assert examples.texts == ("a", "b", "c")
    with pytest.raises(DataError, match="has several splits; name one of train, test, as in hf:"):
        read_examples(name, Columns())
    with pytest.raises(DataError, match="has no split 'dev'; name one of train, test"):
        read_examples(f"{name}#dev", Columns())


@pytest.mark.parametrize(
    "place",
    ["../outside.csv", "{root}/outside.csv", "hf://datasets/a/b/x.csv", "http://127.0.0.1:9/x.csv"],
)
def test_a_folder_is_read_without_what_its_page_names(tmp_path: Path, place: str) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "outside.csv").write_text("text\nsecret\n")
    path = place.format(root=tmp_path)
    page = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - path: {path}\n---\n"
    (tmp_path / "set" / "README.md").write_text(page)
    name = f"hf:{tmp_path / 'set'}"
    with pytest.raises(DataError, match=r"no data files in .*; name a folder of \.csv"):
        read_examples(name, Columns())
    for i in range(2):
        (tmp_path / "set" / f"part-{i}.csv").write_text(f"text\nfilm {i}\n")
    assert read_examples(name, Columns()).texts == ("film 0", "film 1")
    assert read_examples(f"{name}#train", Columns()).ids == ("0", "1")
    (tmp_path / "set" / "link.csv").symlink_to(tmp_path / "outside.csv")
    with pytest.raises(DataError, match="leads out of its directory"):
        read_examples(name, Columns())
    with pytest.raises(DataError, match=r"no folder .*, and .*set is one"):
        read_examples(f"{name}/default", Columns())


def test_the_splits_of_a_folder_are_told_by_its_names(tmp_path: Path) -> None:
    names = ("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl")
    for name in (*names, "data/dev_hard-00000-of-00001.jsonl", "val/b.jsonl", "my.test.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    for split, texts in {
        "train": names,
        "dev_hard": ("data/dev_hard-00000-of-00001.jsonl",),
        "validation": ("val/b.jsonl",),
        "test": ("my.test.jsonl",),
    }.items():
        assert read_examples(f"hf:{tmp_path}#{split}", Columns()).texts == texts


def test_without_the_extra_a_data_set_names_the_line_that_installs_it(
    tmp_path: Path, model_directories: Callable, tcompress: Callable, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    words = ("--data", "hf:glue/sst2#train", "--workspace", tmp_path)
    result = tcompress("init", model_directories("bert"), *words)
    assert result.exit_code == 6, result.output
    assert 'pip install "tcompress[datasets]"' in result.stderr


def test_numbers_for_named_labels_are_refused_until_they_are_mapped(
    tmp_path: Path, reviews_file: Path, model_directories: Callable, tcompress: Callable
) -> None:
    text = reviews_file.read_text().replace(",good", ",1").replace(",bad", ",0")
    (tmp_path / "d.csv").write_text(text)
    words = ("init", model_directories("bert"), "--data", tmp_path / "d.csv")
    refused = tcompress(*words, "--workspace", tmp_path)
    assert refused.exit_code == 5
    assert "labels are numbers (0, 1), the model's are named (bad, good)" in refused.stderr
    assert "--label-map 0=bad,1=good" in refused.stderr
    typed = tcompress(*words, "--workspace", tmp_path, "--label-map", "0=bad,1")
    assert typed.exit_code == 2
    assert "'1' is no pair data=model" in typed.stderr
    mapped = tcompress(*words, "--workspace", tmp_path, "--label-map", "0=bad, 1=good")
    assert mapped.exit_code == 0, mapped.output
    workspace = Workspace.open(tmp_path)
    assert workspace.config.data.label_map == {"0": "bad", "1": "good"}
    original = Workspace.create(
        tmp_path / "o", WorkspaceConfig("m", DataConfig(file=str(reviews_file)))
    )
    assert workspace.splits().test.digest == original.splits().test.digest


def test_a_separator_and_label_columns_are_refused_together(
    tmp_path: Path, reviews_file: Path, model_directories: Callable, tcompress: Callable
) -> None:
    words = ("init", model_directories("bert"), "--data", reviews_file, "--workspace", tmp_path)
    result = tcompress(*words, "--label-separator", ";", "--label-columns", "a,b")
    assert result.exit_code == 2
    assert "--label-columns and --label-separator exclude each other" in result.stderr


DATA_PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def test_the_page_about_data_tells_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in re.findall(r"^`([\w.]+)`\n\n```\w*\n(.*?)```", DATA_PAGE, re.M | re.S):
        Path(name).write_text(content)
    blocks = re.findall(r"^```python\n(.*?)```", DATA_PAGE, re.M | re.S)
    assert len(blocks) == 6
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)


@pytest.mark.parametrize("line", re.findall(r"^tcompress init (.*)$", DATA_PAGE, re.M))
def test_the_page_about_data_shows_commands_that_are_understood(line: str) -> None:
    command = cli.get_command(click.Context(cli), "init")
    assert command is not None
    model = command.make_context("init", shlex.split(line)).params["model"]
    assert model in (Path("my-bert"), Path("my-vit"))


def test_labels_of_every_form_are_matched_when_a_workspace_starts(
    tmp_path: Path, model_directories: Callable, tcompress: Callable
) -> None:
    rows = [{"text": f"the film {i}", "label": ["good", "dull"][: i % 3]} for i in range(60)]
    path = _write(tmp_path / "d.jsonl", _lines(*rows))
    words = ("init", model_directories("bert"), "--data", path, "--workspace", tmp_path)
    words += ("--task", "multi-label")
    refused = tcompress(*words)
    assert refused.exit_code == 5
    assert "label 'dull' is not known to the model, whose labels are: bad, good" in refused.stderr
    mapped = tcompress(*words, "--label-map", "dull=bad")
    assert mapped.exit_code == 0, mapped.output
    assert Workspace.open(tmp_path).splits().test.label_names == {"bad", "good"}


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zip"])
def test_what_unpacks_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr("tcompress.data.streams.ALWAYS_BYTES", 1 << 16)
    path = tmp_path / f"d.csv{suffix}"
    packers = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    for rows in (100, 1 << 19):
        content = b"text,label\n" + b"good,x\n" * rows
        if suffix == ".zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("d", content)
        else:
            path.write_bytes(packers[suffix](content))
        if rows == 100:
            assert len(read_examples(path, Columns())) == 100
    with pytest.raises(DataError, match="unpacks to more than"):
        read_examples(path, Columns())


@pytest.mark.parametrize(
    "name",
    ["d.csv.gz", "d.csv.bz2", "d.jsonl.xz", "d.csv.zip", "d.json.zip", "d.txt.zip", "d.json.gz"],
)
def test_compression_that_is_damaged_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"text,label\na,x\n" * 999)[:40])
    with pytest.raises(DataError, match=r"cannot be read as|neither a list of records"):
        read_examples(tmp_path / name, Columns())
