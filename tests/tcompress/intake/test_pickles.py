import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tcompress.encoder import open_encoder
from tcompress.errors import ModelError, OutputExistsError
from tcompress.intake.pickle_opcodes import TENSOR_GLOBALS, check_pickle
from tcompress.intake.pickles import PickledWeights, check_state_file
from tcompress.keeping import keep
from tcompress.unpickled import unpickled

WEIGHTS, PICKLED = "model.safetensors", "pytorch_model.bin"


@pytest.fixture
def model(model_directories: Callable, tmp_path: Path) -> Path:
    """A tiny BERT whose weights are a pickle."""
    directory = Path(shutil.copytree(model_directories("bert"), tmp_path / "bert"))
    torch.save(load_file(directory / WEIGHTS), directory / PICKLED)
    (directory / WEIGHTS).unlink()
    return directory


def test_pickled_weights_are_refused_with_both_ways_out(model: Path) -> None:
    ways = f"{PICKLED}, a pickle.* convert it to {WEIGHTS}, or .* --allow-pickle-weights"
    with pytest.raises(ModelError, match=ways):
        open_encoder(model)


def test_converted_weights_are_the_same(
    model: Path, model_directories: Callable, tmp_path: Path
) -> None:
    source = open_encoder(model_directories("bert"))
    with unpickled(model, tmp_path / "workspace") as made:
        kept = keep(made, tmp_path / "workspace" / "model", replace=False)
    assert [path.name for path in (tmp_path / "workspace").iterdir()] == ["model"]
    converted = open_encoder(kept)
    for name, value in source.model.state_dict().items():
        assert torch.equal(value, converted.model.state_dict()[name])
    assert not list(kept.glob("*.bin"))


def test_a_conversion_is_made_again_but_replaces_no_other_model(
    model: Path, model_directories: Callable, tmp_path: Path
) -> None:
    target = tmp_path / "workspace" / "model"
    for _ in range(2):
        with unpickled(model, target.parent) as made:
            keep(made, target, replace=False)
    (target / "notes.txt").write_text("mine")
    refused = pytest.raises(OutputExistsError, match=r"notes\.txt")
    with unpickled(model, target.parent) as made, refused:
        keep(made, target, replace=True)
    with unpickled(model_directories("bert"), target.parent) as same:
        assert same == model_directories("bert")


def test_half_and_shared_and_transposed_weights_stay_as_they_are(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    weights = {"a": whole, "b": whole, "c": whole.mT, "d": whole[1:].bfloat16(), "e": whole[0]}
    torch.save(weights, tmp_path / PICKLED)
    found = PickledWeights.find(tmp_path)
    assert found is not None
    found.convert(tmp_path / WEIGHTS)
    converted = load_file(tmp_path / WEIGHTS)
    assert {name: value.dtype for name, value in converted.items()} == {
        name: value.dtype for name, value in weights.items()
    }
    assert all(torch.equal(value, converted[name]) for name, value in weights.items())


def test_state_dicts_of_modules_pass_with_their_metadata(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / PICKLED)
    check_state_file(tmp_path / PICKLED)


def test_a_whole_module_is_no_state_dict(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 3), tmp_path / PICKLED)
    with pytest.raises(ModelError, match=r"names 'torch\.nn\..*Linear', which may run code"):
        check_state_file(tmp_path / PICKLED)


def test_a_training_checkpoint_is_told_from_weights(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}, "epoch": 3}, tmp_path / PICKLED)
    found = PickledWeights.find(tmp_path)
    assert found is not None
    with pytest.raises(ModelError, match="'state_dict', of type dict, expected dense tensors"):
        found.convert(tmp_path / WEIGHTS)
    assert not (tmp_path / WEIGHTS).exists()


@pytest.mark.parametrize("raw", [b"", b"\x80", b"\x80\x02X\xff\xff\xff\xff", b"(((", b"\x95" * 9])
def test_what_is_no_pickle_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match="pickle"):
        check_pickle(raw, TENSOR_GLOBALS.__contains__)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        pytest.param("import socket; socket.socket()", "", id="network"),
        pytest.param("import os; os.system('echo ran')", "", id="program"),
        pytest.param("import os; os.fork(); print('ran')", "", id="fork"),
        pytest.param("bytearray(4 << 30); print('ran')", "MemoryError", id="memory"),
    ],
)
def test_the_process_that_unpickles_can_do_little_else(code: str, said: str) -> None:
    limits = "from tcompress.intake.pickle_worker import limit; limit(1000); "
    ended = subprocess.run(
        [sys.executable, "-c", limits + code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert not ended.stdout
    assert said in ended.stderr
