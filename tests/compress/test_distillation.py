import shutil
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tcompress.artifact import Manifest
from tcompress.compress.checkpoint import Checkpoint
from tcompress.compress.distillation import (
    Distillation,
    Teacher,
    compared_tokens,
    outputs_of,
    token_losses,
    token_scales,
)
from tcompress.compress.finetuning import (
    Epoch,
    FinetuneRecipe,
    Split,
    finetune_,
    kept_epoch,
)
from tcompress.compress.judging import predict_all
from tcompress.compress.objective import Objective
from tcompress.compress.progress import Progress
from tcompress.compress.pruning import prune_
from tcompress.console import Console
from tcompress.data import Columns, read_examples
from tcompress.encoder import Encoder, label_indices, open_encoder
from tcompress.errors import RequestError
from tcompress.plan import CompressionPlan
from tcompress.preprocessing import Encoded
from tcompress.staging import STAGING_PREFIX
from tcompress.transformer import Pooling
from tcompress.workspace import Workspace

RECIPE = FinetuneRecipe(epochs=3, learning_rate=3e-3, batch_size=16, seed=3)
Splits = tuple[Split, Split]


@pytest.fixture
def splits(bert: Encoder, reviews_file: Path) -> Splits:
    examples = read_examples(reviews_file, Columns())

    def split(rows: range) -> Split:
        part = examples.take(rows)
        return Split(bert.preprocessor.encode(part), label_indices(bert.labels, part))

    return split(range(100)), split(range(100, 150))


@pytest.fixture
def teacher(bert: Encoder) -> Teacher:
    return Teacher(open_encoder(bert.directory))


def unlabelled(splits: Splits) -> Splits:
    train, validation = splits
    return replace(train, labels=None), replace(validation, labels=None)


def passing(batches: Iterable[list[int]], _what: str, _total: int) -> Iterable[list[int]]:
    return batches


def killed_in_epoch_2(batches: Iterable[list[int]], what: str, _total: int) -> Iterable[list[int]]:
    for done, rows in enumerate(batches):
        if "epoch 2" in what and done:
            raise KeyboardInterrupt("in epoch 2")
        yield rows


def weights(encoder: Encoder) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in encoder.model.state_dict().items()}


def random_encoded(encoder: Encoder, count: int) -> Encoded:
    """Examples of 9 tokens, the last `row % 4` of them padding."""
    batch = encoder.preprocessor.random_batch(count, 9)
    for row in range(count):
        batch["attention_mask"][row, 9 - row % 4 :] = 0
    lengths = batch["attention_mask"].sum(1)
    return Encoded(lengths, 0, lambda rows: {name: v[list(rows)] for name, v in batch.items()})


def test_an_encoder_has_no_distance_from_itself(any_encoder: Encoder) -> None:
    encoded = random_encoded(any_encoder, 12)
    teacher = Teacher(open_encoder(any_encoder.directory))
    objective = Objective(any_encoder, encoded, None, teacher)
    (part,) = objective.parts(list(range(12)), 12)
    losses = objective.losses(part)
    assert {name: float(value.detach()) for name, value in losses.items()} == {
        "logits": 0.0,
        "tokens": 0.0,
        "loss": 0.0,
    }


def test_tokens_are_compared_in_units_of_the_teacher(any_encoder: Encoder) -> None:
    encoded = random_encoded(any_encoder, 12)
    teacher = Teacher(any_encoder)
    batch = encoded.collate(range(12))
    compared = compared_tokens(any_encoder.anatomy, batch)
    with torch.no_grad():
        layers = outputs_of(any_encoder, any_encoder.anatomy, batch).layers
    assert [layer.shape for layer in layers] == [(12, 9, 32)] * 3
    silent = [torch.zeros_like(layer) for layer in layers]
    distances = token_losses(silent, layers, compared, token_scales(teacher, encoded))
    torch.testing.assert_close(distances, torch.ones(3))


def test_padding_does_not_count(any_encoder: Encoder) -> None:
    encoded = random_encoded(any_encoder, 8)
    batch = encoded.collate(range(8))
    compared = compared_tokens(any_encoder.anatomy, batch)
    with torch.no_grad():
        layers = outputs_of(any_encoder, any_encoder.anatomy, batch).layers
    padding = torch.from_numpy(batch["attention_mask"] == 0)
    noisy = [layer + 100 * padding[..., None] for layer in layers]
    assert torch.equal(token_losses(noisy, layers, compared, torch.ones(3)), torch.zeros(3))
    everywhere = [layer + 1 for layer in layers]
    torch.testing.assert_close(
        token_losses(everywhere, layers, compared, torch.ones(3)), torch.ones(3)
    )


def test_behind_the_last_layer_only_what_the_head_reads_counts(any_encoder: Encoder) -> None:
    batch = random_encoded(any_encoder, 8).collate(range(8))
    compared = compared_tokens(any_encoder.anatomy, batch)
    mask = torch.from_numpy(batch["attention_mask"]).float()
    assert torch.equal(compared[:-1], mask.expand(2, -1, -1))
    if any_encoder.anatomy.head.pooling is Pooling.FIRST:
        mask[:, 1:] = 0
    assert torch.equal(compared[-1], mask)


def test_without_labels_a_pruned_encoder_comes_closer_to_its_teacher(
    bert: Encoder, teacher: Teacher, splits: Splits, uneven_plan: CompressionPlan
) -> None:
    prune_(bert, uneven_plan)
    before = weights(teacher.encoder)
    history = finetune_(bert, *unlabelled(splits), replace(RECIPE, epochs=8), teacher=teacher)
    first, kept = history[0], kept_epoch(history)
    assert first.agreement is not None
    assert kept.agreement is not None
    assert kept.agreement >= first.agreement + 0.1
    assert kept.divergence < first.divergence
    assert history[-1].parts["tokens"] < 0.7 * history[1].parts["tokens"]
    assert all(epoch.accuracy is None for epoch in history)
    assert all(torch.equal(value, before[name]) for name, value in weights(teacher.encoder).items())


def test_equal_accuracies_are_told_apart_by_closeness_to_the_teacher() -> None:
    history = [
        Epoch(0, None, accuracy=0.8, agreement=0.8, divergence=0.5),
        Epoch(1, 1.0, accuracy=0.8, agreement=0.8, divergence=0.4),
        Epoch(2, 1.0, accuracy=0.7, agreement=0.9, divergence=0.1),
    ]
    assert kept_epoch(history).number == 1
    assert kept_epoch([replace(epoch, accuracy=None) for epoch in history]).number == 2


def test_accumulated_batches_are_one_large_batch(
    model_directories: Callable, teacher: Teacher, splits: Splits, uneven_plan: CompressionPlan
) -> None:
    """Dropout is off while distilling, and the batches' lengths and padding differ."""
    logits, losses = [], []
    for sizes in ({"batch_size": 24}, {"batch_size": 8, "accumulate": 3}):
        encoder = open_encoder(model_directories("bert"))
        prune_(encoder, uneven_plan)
        recipe = replace(RECIPE, epochs=1, learning_rate=1e-3, **sizes)
        history = finetune_(encoder, *splits, recipe, teacher=teacher)
        assert kept_epoch(history).number == 1
        logits.append(predict_all(encoder, splits[1].encoded))
        losses.append(history[1].parts)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("taught", [False, True])
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    model_directories: Callable,
    teacher: Teacher,
    splits: Splits,
    uneven_plan: CompressionPlan,
    tmp_path: Path,
    taught: bool,
) -> None:
    checkpoint = Checkpoint(tmp_path / "state", "key")
    taught_by = replace(teacher, recipe=Distillation(dropout=True)) if taught else None

    def train(progress: Progress, checkpoint: Checkpoint | None) -> tuple[list[Epoch], Encoder]:
        encoder = open_encoder(model_directories("bert"))
        prune_(encoder, uneven_plan)
        options = {"teacher": taught_by, "checkpoint": checkpoint}
        return finetune_(encoder, *splits, RECIPE, progress, **options), encoder

    whole, expected = train(passing, None)
    with pytest.raises(KeyboardInterrupt, match="in epoch 2"):
        train(killed_in_epoch_2, checkpoint)
    torch.rand(7)  # the state of the generator in the new process must not matter
    resumed, encoder = train(passing, checkpoint)
    assert resumed == whole
    assert kept_epoch(whole).number > 1
    wanted = weights(expected)
    assert all(torch.equal(value, wanted[name]) for name, value in weights(encoder).items())


def test_an_epoch_from_before_the_kill_can_be_the_best(
    bert: Encoder, splits: Splits, tmp_path: Path
) -> None:
    """Where every label is the one answer not yet given, epoch 1 gives it, and none is better."""
    answers = predict_all(bert, splits[1].encoded).argmax(-1)
    train, validation = (
        replace(split, labels=torch.full((len(split),), 1 - int(answers.mode().values)))
        for split in splits
    )
    checkpoint = Checkpoint(tmp_path / "state", "key")
    history = finetune_(bert, train, validation, RECIPE)
    assert kept_epoch(history).number == 1
    other = open_encoder(bert.directory)
    with pytest.raises(KeyboardInterrupt, match="in epoch 2"):
        finetune_(other, train, validation, RECIPE, killed_in_epoch_2, checkpoint=checkpoint)
    resumed = open_encoder(bert.directory)
    finetune_(resumed, train, validation, RECIPE, checkpoint=checkpoint)
    wanted = weights(bert)
    assert all(torch.equal(value, wanted[name]) for name, value in weights(resumed).items())


@pytest.mark.parametrize("content", ["another key", "damaged", "cut off"])
def test_a_checkpoint_that_does_not_belong_to_the_run_is_replaced(
    tmp_path: Path, content: str
) -> None:
    checkpoint = Checkpoint(tmp_path / "state", "key")
    other = Checkpoint(checkpoint.path, "another")
    other.write({"epoch": 3})
    if content == "damaged":
        checkpoint.path.write_bytes(b"not a checkpoint")
    if content == "cut off":
        checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:300])
    assert checkpoint.read() is None
    checkpoint.write({"epoch": 1})
    assert checkpoint.read() == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_checkpoint_that_could_run_code_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "state"
    torch.save({"key": "key", "state": Path("anything but tensors")}, path)
    told: list[str] = []
    assert Checkpoint(path, "key", told.append).read() is None
    assert told == [f"{path}: damaged, or not tcompress's; the run starts from the beginning"]


def test_patience_stops_a_run_that_no_longer_improves(bert: Encoder, splits: Splits) -> None:
    train, validation = splits
    finetune_(bert, train, validation, replace(RECIPE, epochs=8))
    wrong = replace(train, labels=1 - train.labels)
    history = finetune_(bert, wrong, validation, replace(RECIPE, epochs=8, patience=2))
    assert len(history) - 1 == kept_epoch(history).number + 2 < 8


def test_without_labels_and_teacher_there_is_nothing_to_learn(
    bert: Encoder, splits: Splits
) -> None:
    with pytest.raises(RequestError, match="without labels needs a teacher: --distill"):
        finetune_(bert, *unlabelled(splits), RECIPE)


def test_a_teacher_of_another_shape_is_refused(
    bert: Encoder, splits: Splits, model_directories: Callable
) -> None:
    other = Teacher(open_encoder(model_directories("electra")))
    with pytest.raises(RequestError, match=r"its input table: \(20, 16\), the encoder's: \(20, 32"):
        finetune_(bert, *splits, RECIPE, teacher=other)


@pytest.fixture
def pruned_workspace(text_workspace: Path, tcompress: Callable) -> Path:
    """A workspace whose source model may be changed, and which is pruned."""
    model = text_workspace / "source"
    config = text_workspace / "tcompress.toml"
    document = tomllib.loads(config.read_text())
    shutil.copytree(document["model"], model)
    config.write_text(config.read_text().replace(document["model"], str(model)))
    words = ("--heads", "0.5", "--criterion", "magnitude", "--workspace", text_workspace)
    assert tcompress("prune", *words).exit_code == 0
    return text_workspace


def test_a_pruned_encoder_is_taught_by_its_last_unpruned_ancestor(
    text_workspace: Path, tcompress: Callable
) -> None:
    for words in (["finetune"], ["prune", "--heads", "0.3"], ["finetune"]):
        result = tcompress(*words, "--workspace", text_workspace)
        assert result.exit_code == 0, result.output
    artifacts = text_workspace / "artifacts"
    first, again = (Manifest.read(artifacts / name) for name in ("finetune", "finetune-again"))
    assert first.details["teacher"] is None
    assert again.details["teacher"]["path"] == str((artifacts / "finetune").resolve())
    assert again.recipe["distillation"]["teacher"] == first.digest
    assert set(again.details["epochs"][1]["parts"]) == {"task", "logits", "tokens"}
    assert not list(artifacts.glob(f"{STAGING_PREFIX}*"))


def test_a_teacher_that_changed_has_to_be_named(
    pruned_workspace: Path, tcompress: Callable
) -> None:
    words = ("finetune", "--workspace", pruned_workspace)
    source = pruned_workspace / "source"
    config = source / "config.json"
    config.write_text(config.read_text() + "\n")
    refused = tcompress(*words)
    assert refused.exit_code == 5
    assert "was moved or changed since; name the unpruned model with --teacher" in refused.stderr
    assert tcompress(*words, "--teacher", source).exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--no-distill", "--teacher", "{source}"], "--no-distill and --teacher contradict"),
        (["--distill", "--model", "{source}"], "is not pruned; name whom it learns from"),
    ],
    ids=["contradiction", "unpruned"],
)
def test_requests_that_make_no_sense_are_refused(
    pruned_workspace: Path, tcompress: Callable, words: list[str], message: str
) -> None:
    words = [word.format(source=pruned_workspace / "source") for word in words]
    result = tcompress("finetune", *words, "--workspace", pruned_workspace)
    assert result.exit_code == 2
    assert message in result.stderr


def test_zero_epochs_write_the_encoder_as_it_is(
    pruned_workspace: Path, tcompress: Callable
) -> None:
    words = ("finetune", "--epochs", "0", "--workspace", pruned_workspace)
    assert tcompress(*words).exit_code == 0
    before, after = (
        (pruned_workspace / "artifacts" / stage / "model.safetensors").read_bytes()
        for stage in ("prune", "finetune")
    )
    assert before == after


def test_without_labels_the_command_recovers_by_agreement(
    pruned_workspace: Path, tcompress: Callable
) -> None:
    config = pruned_workspace / "tcompress.toml"
    config.write_text(config.read_text().replace('label_column = "label"', 'label_column = "no"'))
    result = tcompress("finetune", "--workspace", pruned_workspace)
    assert result.exit_code == 0, result.output
    assert "has no labels; the teacher answers" in result.stderr
    assert "finetune: validation agreement with the teacher 0." in result.stdout
    refused = tcompress("finetune", "--no-distill", "--force", "--workspace", pruned_workspace)
    assert refused.exit_code == 5
    assert "no labels in it" in refused.stderr


def test_the_command_continues_where_it_was_killed(
    pruned_workspace: Path, tcompress: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ("finetune", "--epochs", "3", "--learning-rate", "3e-3")
    words = (*words, "--workspace", pruned_workspace)
    artifacts = pruned_workspace / "artifacts"
    assert tcompress(*words, "--output", tmp_path / "whole").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(Console, "track", lambda _self, *words: killed_in_epoch_2(*words))
        assert tcompress(*words).exit_code == 130
    (checkpoint,) = artifacts.glob(f"{STAGING_PREFIX}*")
    assert checkpoint.name.endswith(".epochs.checkpoint")
    assert len(Workspace.open(pruned_workspace).artifacts()) == 1
    result = tcompress(*words)
    assert "fine-tuning continues after epoch 1" in result.stderr
    assert not list(artifacts.glob(f"{STAGING_PREFIX}*"))
    whole, resumed = (Manifest.read(path) for path in (tmp_path / "whole", artifacts / "finetune"))
    assert whole.digest == resumed.digest
    assert whole.details == resumed.details
