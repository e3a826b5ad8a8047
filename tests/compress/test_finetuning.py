from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tcompress.compress.finetuning import FinetuneRecipe, Split, finetune_
from tcompress.compress.pruning import prune_
from tcompress.data import Columns, read_examples
from tcompress.encoder import Encoder, label_indices
from tcompress.errors import RequestError
from tcompress.loading import open_encoder
from tcompress.plan import CompressionPlan

RECIPE = FinetuneRecipe(epochs=8, learning_rate=3e-3, batch_size=16, seed=3)


@pytest.fixture
def splits(bert: Encoder, reviews_file: Path) -> tuple[Split, Split]:
    examples = read_examples(reviews_file, Columns())

    def split(rows: range) -> Split:
        part = examples.take(rows)
        return Split(bert.preprocessor.encode(part), label_indices(bert.labels, part))

    return split(range(100)), split(range(100, 150))


def test_finetuning_recovers_a_pruned_encoder(
    bert: Encoder, splits: tuple[Split, Split], uneven_plan: CompressionPlan
) -> None:
    prune_(bert, uneven_plan)
    history = finetune_(bert, *splits, RECIPE)
    assert [epoch.number for epoch in history] == list(range(9))
    assert max(epoch.accuracy for epoch in history) > history[0].accuracy + 0.1
    assert bert.anatomy.head_counts == (3, 0, 1)
    assert not bert.model.training


def test_frozen_layers_do_not_change_by_a_bit(bert: Encoder, splits: tuple[Split, Split]) -> None:
    before = {name: value.clone() for name, value in bert.model.state_dict().items()}
    finetune_(bert, *splits, replace(RECIPE, freeze_layers=1))
    changed = {
        name
        for name, value in bert.model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed
    assert not [n for n in changed if "embeddings" in n or "layer.0." in n]
    assert all(parameter.requires_grad for parameter in bert.model.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_equal_seeds_give_equal_weights(
    bert: Encoder, splits: tuple[Split, Split], precision: str
) -> None:
    recipe = replace(RECIPE, epochs=1, precision=precision)
    other = open_encoder(bert.directory)
    for encoder in (bert, other):
        torch.rand(7)  # the state of the generator before must not matter
        finetune_(encoder, *splits, recipe)
    for name, value in bert.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    assert all(parameter.dtype == torch.float32 for parameter in bert.model.parameters())


def test_zero_epochs_change_nothing(bert: Encoder, splits: tuple[Split, Split]) -> None:
    before = {name: value.clone() for name, value in bert.model.state_dict().items()}
    history = finetune_(bert, *splits, replace(RECIPE, epochs=0))
    assert len(history) == 1
    assert all(torch.equal(v, before[n]) for n, v in bert.model.state_dict().items())


def test_a_harmful_epoch_is_not_kept(bert: Encoder, splits: tuple[Split, Split]) -> None:
    train, validation = splits
    learned = finetune_(bert, train, validation, RECIPE)
    best = max(epoch.accuracy for epoch in learned)
    wrong = Split(train.encoded, 1 - train.labels)
    history = finetune_(bert, wrong, validation, replace(RECIPE, learning_rate=5e-3))
    assert history[0].accuracy == best
    assert min(epoch.accuracy for epoch in history) < best
    assert finetune_(bert, train, validation, replace(RECIPE, epochs=0))[0].accuracy == best


def test_fp16_on_a_cpu_is_refused(bert: Encoder, splits: tuple[Split, Split]) -> None:
    with pytest.raises(RequestError, match="--precision fp16 trains on a GPU only"):
        finetune_(bert, *splits, replace(RECIPE, precision="fp16"))


def test_more_frozen_layers_than_there_are_is_refused(
    bert: Encoder, splits: tuple[Split, Split]
) -> None:
    with pytest.raises(RequestError, match="--freeze-layers 9: the encoder has 3 layers"):
        finetune_(bert, *splits, replace(RECIPE, freeze_layers=9))
