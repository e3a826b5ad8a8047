from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def operator_choices() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import operator_choices

        return operator_choices


@pytest.mark.parametrize("title", ["attention", "sum, norm"])
def test_the_ways_of_a_piece_compute_the_same(title: str, operator_choices: ModuleType) -> None:
    first, other = operator_choices.PIECES[title].values()
    width = 2 * 32 if title == "attention" else 384
    x = np.random.default_rng(0).standard_normal((2, 5, width)).astype(np.float32)
    inputs = {"x": x, "mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)}
    (a,), (b,) = (
        operator_choices.session_of(way, heads=2, threads=1).run(None, inputs)
        for way in (first, other)
    )
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_every_way_is_timed(operator_choices: ModuleType) -> None:
    words = ["--settings", "1x4", "--turns", "1", "--heads", "2", "--threads", "1"]
    result = CliRunner().invoke(operator_choices.main, words)
    assert result.exit_code == 0, result.output
    for ways in operator_choices.PIECES.values():
        assert all(name in result.output for name in ways)
