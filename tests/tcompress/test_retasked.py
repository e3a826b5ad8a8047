"""What `init --task` says of a model whose files do not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tcompress import load
from tcompress.encoder import copy_carried_files
from tcompress.errors import RequestError
from tcompress.tasks import Task


@pytest.fixture
def label_sets(tmp_path: Path) -> Path:
    words = ("good", "bad", "great", "dull", "plot", "scene", "very")
    rows = [
        {"text": f"the {a} film was {b} and {c}", "label": ["bad", "good"][: len(a + b) % 3]}
        for a in words
        for b in words
        for c in words[:2]
    ]
    path = tmp_path / "sets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def single_labels(tmp_path: Path) -> Path:
    path = tmp_path / "single.csv"
    rows = (f"the plot was {i},{('good', 'bad')[i % 2]}\n" for i in range(40))
    path.write_text("text,label\n" + "".join(rows))
    return path


@pytest.fixture
def other_model(tmp_path: Path, model_directories: Callable[[str], Path]) -> Path:
    source, target = model_directories("bert"), tmp_path / "other"
    target.mkdir()
    copy_carried_files(source, target)
    state = load_file(source / "model.safetensors")
    save_file({n: 1.1 * w for n, w in state.items()}, target / "model.safetensors")
    return target


def test_every_stage_and_artifact_knows_the_task(
    label_sets: Path, tmp_path: Path, model_directories: Callable, tcompress: Callable
) -> None:
    place = ("--workspace", tmp_path / "w")
    words = ("init", model_directories("bert"), "--data", label_sets, "--task", "multi-label")
    started = tcompress(*words, *place)
    assert "bert for multi-label" in started.stdout
    assert load(tmp_path / "w" / "model").task is Task.MULTI_LABEL
    assert tcompress("prune", "--heads", "0.3", *place).exit_code == 0
    shown = tcompress("export", "--format", "onnx", *place).stdout
    assert "clear decisions agree in 100.0%" in shown
    for stage in ("prune", "export/onnx"):
        assert load(tmp_path / "w" / "artifacts" / stage).task is Task.MULTI_LABEL
    document = tcompress("inspect", tmp_path / "w" / "model", "--json").stdout
    assert json.loads(document)["task"] == "multi-label"


def test_a_head_for_another_task_is_refused_in_one_line(
    label_sets: Path, tmp_path: Path, model_directories: Callable, tcompress: Callable
) -> None:
    words = ("init", model_directories("bert"), "--data", label_sets, "--workspace", tmp_path)
    result = tcompress(*words, "--task", "question-answering")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "its head is for classification, not for question-answering" in line


def test_a_model_is_replaced_only_when_allowed_and_never_by_a_refused_start(
    label_sets: Path,
    single_labels: Path,
    other_model: Path,
    tmp_path: Path,
    model_directories: Callable,
    tcompress: Callable,
) -> None:
    place = ("--task", "multi-label", "--workspace", tmp_path / "w")
    first = ("init", model_directories("bert"), "--data", label_sets, *place)
    weights = tmp_path / "w" / "model" / "model.safetensors"
    assert tcompress(*first).exit_code == tcompress(*first).exit_code == 0
    refused = tcompress("init", other_model, "--data", label_sets, *place)
    assert refused.exit_code == 2
    assert "something else is here already; pass --force to replace it" in refused.stderr
    wrong = label_sets.with_name("wrong.jsonl")
    wrong.write_text(label_sets.read_text().replace('"bad"', '"sad"'))
    assert tcompress("init", other_model, "--data", wrong, *place, "--force").exit_code == 5
    assert weights.samefile(model_directories("bert") / weights.name)
    assert tcompress("init", other_model, "--data", label_sets, *place, "--force").exit_code == 0
    assert weights.samefile(other_model / weights.name)
    again = ("init", weights.parent, "--data", single_labels, *place[2:], "--force")
    refused = tcompress(*again, "--task", "classification")
    assert refused.exit_code == 2, refused.output
    assert "name the model that it was made from" in refused.stderr
    assert weights.samefile(other_model / weights.name)


def test_files_of_others_stay_where_a_model_is_to_stand(
    label_sets: Path, tmp_path: Path, model_directories: Callable, tcompress: Callable
) -> None:
    kept = tmp_path / "w" / "model"
    kept.mkdir(parents=True)
    (kept / "model.safetensors.index.json").write_text("mine")
    words = ("init", model_directories("bert"), "--data", label_sets, "--task", "multi-label")
    refused = tcompress(*words, "--workspace", tmp_path / "w", "--force")
    assert refused.exit_code == 2
    assert "with model.safetensors.index.json in it: move it away" in refused.stderr
    assert [path.read_text() for path in (tmp_path / "w").rglob("*.*")] == ["mine"]


def test_a_refused_start_leaves_no_model_behind(
    single_labels: Path,
    label_sets: Path,
    tmp_path: Path,
    model_directories: Callable,
    tcompress: Callable,
) -> None:
    words = ("init", model_directories("bert"), "--workspace", tmp_path / "w", "--data")
    assert tcompress(*words, single_labels).exit_code == 0
    refused = tcompress(*words, label_sets, "--task", "multi-label")
    assert "a workspace is here already" in refused.stderr
    assert not (tmp_path / "w" / "model").exists()


def test_a_task_named_to_load_is_checked(model_directories: Callable[[str], Path]) -> None:
    directory = model_directories("bert")
    assert load(directory, task="multi-label").task is Task.MULTI_LABEL
    with pytest.raises(RequestError, match="regression needs a model with 1 output, it has 2"):
        load(directory, task="regression")
    with pytest.raises(RequestError, match="unknown task 'poetry'; known are: classification"):
        load(directory, task="poetry")
