from pathlib import Path

import pytest
from transformers import BertConfig, ViTConfig

from tcompress.errors import ModelError
from tcompress.intake import TensorInfo
from tcompress.intake.configs import Sizes, check_sizes, sizes_of

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


@pytest.mark.parametrize("size", [5, [], [None], {}, "../..", 1e308])
def test_what_a_model_of_texts_says_of_images_means_nothing(size: object) -> None:
    plain, strange = BertConfig(), BertConfig(image_size=size, patch_size=size)
    assert sizes_of(PATH, strange) == sizes_of(PATH, plain)


@pytest.mark.parametrize("key", ["image_size", "patch_size"])
@pytest.mark.parametrize("size", [0, -4, [], [4, 4, 4], [4, 0]])
def test_sizes_of_images_are_one_whole_number_or_two(key: str, size: object) -> None:
    config = ViTConfig()
    setattr(config, key, size)
    with pytest.raises(ModelError, match=rf"config.json: '{key}' must be a whole number from 1"):
        sizes_of(PATH, config)


def test_patches_and_their_values_count_as_rows() -> None:
    config = ViTConfig(image_size=[32, 64], patch_size=8, num_channels=3)
    assert sizes_of(PATH, config).rows == 4 * 8 + 3 * 8 * 8 + config.num_labels
