"""Texts that fine-tuning makes for a teacher to answer."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tcompress import load
from tcompress.compress.augmentation import check_variable, varied
from tcompress.compress.checkpoint import Checkpoint
from tcompress.compress.distillation import Teacher
from tcompress.compress.finetuning import FinetuneRecipe, Split, finetune_
from tcompress.compress.progress import silent
from tcompress.compress.pruning import prune_
from tcompress.data import Examples
from tcompress.encoder import Encoder, open_encoder
from tcompress.errors import RequestError
from tcompress.plan import CompressionPlan

from .conftest import random_examples

TEXTS = tuple(f"w{i}a w{i}b w{i}c w{i}d w{i}e w{i}f" for i in range(400))


@pytest.fixture
def examples() -> Examples:
    return Examples("x.csv", tuple(map(str, range(400))), ("yes",) * 400, TEXTS)


def test_new_texts_are_made_of_old_ones_and_have_no_label(examples: Examples) -> None:
    new = varied(examples, 0.5, (0, 1))
    changed = [(a, b) for a, b in zip(TEXTS, new.texts, strict=True) if a != b]
    assert new.labels is None
    assert 150 < len(changed) < 230  # of those to be thinned some keep all their words
    assert all(not Counter(b.split()) - Counter(" ".join(TEXTS).split()) for _, b in changed)
    kinds = Counter(
        "join" if len({word[:-1] for word in b.split()}) > 1 else "run" if b in a else "thin"
        for a, b in changed
    )
    assert min(kinds[kind] for kind in ("join", "run", "thin")) > 20


def test_each_epoch_has_texts_of_its_own_and_the_same_every_time(examples: Examples) -> None:
    assert varied(examples, 0.5, (0, 1)) == varied(examples, 0.5, (0, 1))
    assert varied(examples, 0.5, (0, 2)).texts != varied(examples, 0.5, (0, 1)).texts
    assert varied(examples, 0.0, (0, 1)).texts == TEXTS


def test_a_run_on_new_texts_resumes_to_the_bit(
    bert: Encoder, uneven_plan: CompressionPlan, tmp_path: Path
) -> None:
    texts = random_examples(bert, 48)
    encoded = bert.preprocessor.encode(texts)

    seen = Split(
        encoded, None, lambda number: bert.preprocessor.encode(varied(texts, 0.7, (0, number)))
    )

    def dies_in_the_second_epoch(batches: Iterable, what: str, total: int | None) -> Iterable:
        if "epoch 2" in what:
            raise KeyboardInterrupt
        return batches

    def trained(progress: Callable = silent, checkpoint: Checkpoint | None = None) -> Encoder:
        student = open_encoder(bert.directory)
        prune_(student, uneven_plan)
        recipe = FinetuneRecipe(3, 1e-3, vary_texts=0.7)
        validation, teacher = Split(encoded, None), Teacher(bert)
        finetune_(
            student, seen, validation, recipe, progress, teacher=teacher, checkpoint=checkpoint
        )
        return student

    kept = Checkpoint(tmp_path / "state.pt", "key", lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        trained(dies_in_the_second_epoch, kept)
    resumed, whole = trained(checkpoint=kept), trained()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_only_single_texts_can_be_varied(examples: Examples) -> None:
    with pytest.raises(RequestError, match=r"for single texts, which x\.csv does not hold"):
        check_variable(replace(examples, text_pairs=TEXTS))


def test_new_texts_need_a_teacher(
    model_directories: Callable, reviews_file: Path, tmp_path: Path, tcompress: Callable
) -> None:
    place = ("--workspace", tmp_path / "w")
    assert tcompress("init", model_directories("bert"), "--data", reviews_file, *place)
    refused = tcompress("finetune", "--vary-texts", "0.5", *place)
    assert refused.exit_code == 2
    assert "fine-tuning on varied texts needs a teacher" in refused.stderr
    assert tcompress("prune", "--heads", "0.3", *place).exit_code == 0
    done = tcompress("finetune", "--vary-texts", "0.5", *place)
    assert done.exit_code == 0, done.stderr
    assert not load(tmp_path / "w" / "artifacts" / "finetune").plan.is_dense
