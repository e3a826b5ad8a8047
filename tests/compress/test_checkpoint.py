from pathlib import Path

import pytest
import torch

from tcompress.compress.checkpoint import Phases

KEY, OTHER_KEY = "0" * 64, "1" * 64


def _written(output: Path, key: str = KEY) -> Phases:
    phases = Phases(output, key)
    phases.checkpoint("survey").write({"value": torch.ones(1)})
    return phases


def test_a_run_that_ends_removes_its_checkpoints_and_nobody_else_s(tmp_path: Path) -> None:
    other = _written(tmp_path / "prune.v2")
    mine = [tmp_path / ".tcompress-prune.mine.checkpoint", tmp_path / ".tcompress-prune.checkpoint"]
    for path in mine:
        path.write_text("mine")
    own = _written(tmp_path / "prune")
    with own.kept():
        assert own.checkpoint("survey").read() is not None
    assert own.checkpoint("survey").read() is None
    assert other.checkpoint("survey").read() is not None
    assert all(path.read_text() == "mine" for path in mine)


def test_what_a_run_of_another_key_left_goes_with_the_next_one(tmp_path: Path) -> None:
    stale = _written(tmp_path / "prune", OTHER_KEY)
    with Phases(tmp_path / "prune", KEY).kept():
        assert stale.checkpoint("survey").read() is None


@pytest.mark.parametrize("length", [231, 255])
def test_an_output_may_have_as_long_a_name_as_the_file_system_allows(
    tmp_path: Path, length: int
) -> None:
    phases = _written(tmp_path / ("n" * length))
    assert phases.checkpoint("survey").read() == {"value": torch.ones(1)}
