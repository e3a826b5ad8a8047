import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from safetensors.torch import load_file, save_file

from tcompress.encoder import Encoder, model_digest, open_encoder
from tcompress.intake.weights import read_headers, read_weights, weight_names
from tcompress.retasked import retasked
from tcompress.tasks import Task


@pytest.fixture
def parts(bert: Encoder, tmp_path: Path) -> Path:
    """The tiny BERT with its weights in three files."""
    model = Path(shutil.copytree(bert.directory, tmp_path / "parts"))
    state = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    weight_map = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(state)}
    for part in set(weight_map.values()):
        held = {name: value for name, value in state.items() if weight_map[name] == part}
        save_file(held, model / part)
    index = {"metadata": {}, "weight_map": weight_map}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return model


def test_weights_in_parts_are_those_of_one_file(bert: Encoder, parts: Path) -> None:
    opened = open_encoder(parts)
    batch = bert.preprocessor.random_batch(3, 9)
    assert np.array_equal(opened.predict(batch), bert.predict(batch))
    assert read_headers(parts).keys() == read_headers(bert.directory).keys()
    assert set(read_weights(parts)) == set(read_headers(parts))


def test_digest_follows_every_part(parts: Path) -> None:
    names = weight_names(parts)
    assert len(names) == 4
    before = model_digest(parts)
    for name in names[1:]:
        state = load_file(parts / name)
        save_file({n: value + 1 for n, value in state.items()}, parts / name)
        assert before != (before := model_digest(parts))


def test_parts_become_one_file_where_a_stage_writes(
    parts: Path, reviews_file: Path, tmp_path: Path, tcompress: Callable[..., Result]
) -> None:
    place = ("--workspace", tmp_path / "w")
    assert tcompress("init", parts, "--data", reviews_file, *place).exit_code == 0
    assert tcompress("prune", "--heads", "0.3", *place).exit_code == 0
    pruned = tmp_path / "w" / "artifacts" / "prune"
    assert weight_names(pruned) == ("model.safetensors",)
    assert not list(pruned.glob("*index*"))


def test_another_task_gets_second_names_of_all_parts(parts: Path, tmp_path: Path) -> None:
    with retasked(parts, Task.MULTI_LABEL, tmp_path / "w") as target:
        assert open_encoder(target).task is Task.MULTI_LABEL
        for name in weight_names(parts):
            assert (target / name).samefile(parts / name)
            assert not (target / name).is_symlink()
