from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tcompress.data import Columns, read_examples, split_examples
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


def test_parquet_is_read(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
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
        pytest.param("d.jsonl", "{broken", "cannot be read as jsonl", id="json"),
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


def test_arrays_with_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", inputs=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="allow_pickle=False"):
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
