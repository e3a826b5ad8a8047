from pathlib import Path

import pytest

from tcompress.errors import ModelError
from tcompress.intake import TensorInfo
from tcompress.intake.configs import Sizes, check_sizes

PATH = Path("config.json")


def _weights(elements: int) -> dict[str, TensorInfo]:
    return {"table": TensorInfo("F32", (elements,), (0, 4 * elements))}


def test_a_model_may_be_much_larger_than_what_pruning_left_of_it_but_not_without_bound() -> None:
    whole = Sizes(layers=24, width=1024, neurons=4096, rows=30_522 + 512)
    assert whole.parameters == pytest.approx(335e6, rel=0.02)  # BERT-large's encoder
    check_sizes(PATH, whole, _weights(whole.parameters // 50))
    with pytest.raises(ModelError, match=r"describes a model of 333,.* its weights hold 1,000"):
        check_sizes(PATH, whole, _weights(1_000))


def test_layers_that_share_weights_may_outnumber_the_tensors() -> None:
    check_sizes(PATH, Sizes(layers=48, width=32, neurons=64, rows=0), _weights(10_000))
    with pytest.raises(ModelError, match="300 layers, its weights are 1 tensors"):
        check_sizes(PATH, Sizes(layers=300, width=1, neurons=1, rows=0), _weights(10_000))
