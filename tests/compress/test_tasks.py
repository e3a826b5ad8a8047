"""Every stage on every task, on tiny BERT models."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from click.testing import Result
from safetensors.torch import save_file

from tcompress.compress.calibration import BATCH_SIZE
from tcompress.compress.criteria import Criterion
from tcompress.compress.distillation import Distillation, Teacher
from tcompress.compress.evidence import LabelledBatch
from tcompress.compress.finetuning import FinetuneRecipe, Split, finetune_
from tcompress.compress.gating import masked
from tcompress.compress.judging import Judge, Selection, predict_all
from tcompress.compress.pruning import prune_
from tcompress.compress.questions import Questions, batch_rows, targets_of
from tcompress.compress.reconstruction import reconstruct_
from tcompress.compress.scoring import score_units
from tcompress.compress.surgeon import Surgeon
from tcompress.data import Answer, Examples
from tcompress.encoder import Encoder, copy_carried_files, open_encoder
from tcompress.errors import CalibrationError
from tcompress.plan import CompressionPlan
from tcompress.tasks import Task

WORDS = [
    "a",
    "the",
    "film",
    "was",
    "good",
    "bad",
    "great",
    "dull",
    "plot",
    "scene",
    "very",
    "not",
    "and",
    "or",
    "but",
    "it",
]
LABELS = {
    Task.MULTI_LABEL: ("funny", "sad", "long"),
    Task.REGRESSION: ("score",),
    Task.TOKEN_CLASSIFICATION: ("O", "B-JUDGEMENT"),
    Task.QUESTION_ANSWERING: ("start", "end"),
    Task.EMBEDDING: ("none",),
}
_CLASSES = {
    Task.TOKEN_CLASSIFICATION: "BertForTokenClassification",
    Task.QUESTION_ANSWERING: "BertForQuestionAnswering",
    Task.EMBEDDING: "BertModel",
}
TASKS = tuple(LABELS)


def write_model(task: Task, directory: Path, tokenizer_from: Path) -> Path:
    """Write a tiny seeded BERT for a task."""
    directory.mkdir()
    copy_carried_files(tokenizer_from, directory)
    torch.manual_seed(0)
    name = _CLASSES.get(task, "BertForSequenceClassification")
    problem = "multi_label_classification" if task is Task.MULTI_LABEL else None
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=20,
        max_position_embeddings=40,
        pad_token_id=1,
        initializer_range=0.3,
        id2label=dict(enumerate(LABELS[task])),
        problem_type=problem,
        architectures=[name],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = getattr(transformers, name)(config)
    config.to_json_file(str(directory / "config.json"), use_diff=False)
    document = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(document | {"model_type": "bert"}))
    save_file(model.state_dict(), directory / "model.safetensors")
    return directory


def examples_of(task: Task, count: int = 48, seed: int = 0) -> Examples:
    """Sentences of the tiny vocabulary, with what is right in them by a rule."""
    rng = np.random.default_rng(seed)
    rows = [tuple(map(str, rng.choice(WORDS, size=rng.integers(4, 10)))) for _ in range(count)]
    texts = tuple(" ".join(row) for row in rows)
    base = Examples(origin="test", ids=tuple(map(str, range(count))), texts=texts)
    fields: dict[str, object] = {}
    if task is Task.MULTI_LABEL:
        marks = {"funny": "great", "sad": "dull", "long": "very"}
        fields["label_sets"] = tuple(
            tuple(label for label, word in marks.items() if word in row) for row in rows
        )
    elif task is Task.REGRESSION:
        fields["labels"] = tuple(str(float(row.count("good") - row.count("bad"))) for row in rows)
    elif task is Task.TOKEN_CLASSIFICATION:
        named = {"good", "bad", "great", "dull"}
        fields["texts"], fields["words"] = None, tuple(rows)
        fields["tags"] = tuple(tuple("B-JUDGEMENT" if w in named else "O" for w in r) for r in rows)
    elif task is Task.QUESTION_ANSWERING:
        fields["texts"], fields["text_pairs"] = ("the film was",) * count, texts
        fields["answers"] = tuple(
            (Answer(row[-1], len(text) - len(row[-1])),)
            for row, text in zip(rows, texts, strict=True)
        )
    return replace(base, **fields)  # type: ignore[arg-type]


@pytest.fixture(params=TASKS, ids=str)
def encoder(request: pytest.FixtureRequest, tmp_path: Path, model_directories: Callable) -> Encoder:
    return open_encoder(write_model(request.param, tmp_path / "model", model_directories("bert")))


def rows_of(encoder: Encoder, examples: Examples) -> torch.Tensor:
    return predict_all(encoder, encoder.preprocessor.encode(examples), batch_size=7)


def test_the_task_is_read_off_the_files(encoder: Encoder) -> None:
    examples = examples_of(encoder.task, 5)
    encoded = encoder.preprocessor.encode(examples)
    rows = predict_all(encoder, encoded)
    width = 32 if encoder.task is Task.EMBEDDING else len(LABELS[encoder.task])
    assert rows.shape == (len(encoded.row_owners), width)
    words = {Task.TOKEN_CLASSIFICATION: examples.words}.get(encoder.task)
    if words is not None:
        assert len(rows) == sum(map(len, words))


def test_masked_equals_pruned(encoder: Encoder, uneven_plan: CompressionPlan) -> None:
    examples = examples_of(encoder.task, 12)
    with masked(encoder, uneven_plan):
        wanted = rows_of(encoder, examples)
    prune_(encoder, uneven_plan)
    assert (rows_of(encoder, examples) - wanted).abs().max() < 1e-5


def test_a_pruned_encoder_is_refitted_towards_its_own_answers(
    encoder: Encoder, uneven_plan: CompressionPlan
) -> None:
    encoded = encoder.preprocessor.encode(examples_of(encoder.task, 200))
    asked, wanted = Questions.of(encoder, encoded), predict_all(encoder, encoded)
    student = copy.deepcopy(encoder)
    prune_(student, uneven_plan)
    before = asked.divergence(wanted, predict_all(student, encoded))
    reconstruct_(student, encoder, encoded)
    assert asked.divergence(wanted, predict_all(student, encoded)) < 0.6 * before


def test_importance_by_what_the_answers_depend_on(encoder: Encoder) -> None:
    encoded = encoder.preprocessor.encode(examples_of(encoder.task))
    batches = (batch for _, batch in encoded.batches(BATCH_SIZE))
    found = Surgeon.of(encoder, batches, {}).scores
    for layer in (*found.heads, *found.neurons):
        assert np.isfinite(layer).all()
        assert max(layer) > 0


@pytest.mark.parametrize("criterion", [Criterion.CURVATURE, Criterion.LEAVE_ONE_OUT])
def test_importance_by_other_criteria_is_that_of_the_tasks_own_divergence(
    criterion: Criterion, encoder: Encoder
) -> None:
    encoded = encoder.preprocessor.encode(examples_of(encoder.task, 16))
    batches = [
        LabelledBatch(batch, None, lambda out, p=positions: batch_rows(encoded, p, out))
        for positions, batch in encoded.batches(8)
    ]
    scores = score_units(encoder, criterion, batches)
    values = np.concatenate([np.asarray(layer) for layer in scores.heads])
    assert np.isfinite(values).all()
    assert values.max() > 0


def test_losses_without_labels_are_asked_only_where_they_have_a_slope(encoder: Encoder) -> None:
    encoded = encoder.preprocessor.encode(examples_of(encoder.task, 8))
    batches = [(batch, None) for _, batch in encoded.batches(8)]
    if encoder.task in (Task.REGRESSION, Task.EMBEDDING):
        with pytest.raises(CalibrationError, match="flat at the encoder's own answers"):
            score_units(encoder, Criterion.GATE_GRADIENT, batches)
    else:
        assert max(map(max, score_units(encoder, Criterion.GATE_GRADIENT, batches).heads)) > 0


def test_fine_tuning_learns_the_task_from_labels_or_a_teacher(encoder: Encoder) -> None:
    splits = []
    for seed in (0, 1):
        examples = examples_of(encoder.task, 96, seed)
        encoded = encoder.preprocessor.encode(examples)
        splits.append(Split(encoded, targets_of(encoder, examples, encoded)))
    teacher = None
    if encoder.task is Task.EMBEDDING:
        teacher = Teacher(copy.deepcopy(encoder), Distillation())
        with torch.no_grad():
            for layer in encoder.anatomy.layers:
                layer.ffn_out.weight.mul_(0.7)
    recipe = FinetuneRecipe(epochs=6, learning_rate=3e-3, batch_size=16)
    history = finetune_(encoder, *splits, recipe, teacher=teacher)
    losses = [epoch.loss for epoch in history[1:]]
    assert losses[-1] < losses[0]
    assert max(epoch.rank for epoch in history) > history[0].rank


def test_a_changed_encoder_is_judged_by_the_tasks_score(encoder: Encoder) -> None:
    examples = examples_of(encoder.task, 40)
    encoded = encoder.preprocessor.encode(examples)
    judge = Judge(encoder, Selection(encoded, targets_of(encoder, examples, encoded)))
    same = judge.verdict(encoder.predict)
    assert same.divergence == pytest.approx(0, abs=1e-9)
    assert same.accuracy == pytest.approx(judge.accuracy)
    worse = judge.verdict(lambda batch: -encoder.predict(batch))
    assert worse.divergence > 10 * judge.bound(0.001)
    assert worse.accuracy <= judge.accuracy


@pytest.fixture(params=[Task.EMBEDDING, Task.REGRESSION], ids=str)
def unlabelled(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    model_directories: Callable,
    tcompress: Callable[..., Result],
) -> Path:
    """A workspace on a model without classes and texts without labels."""
    model = write_model(request.param, tmp_path / "model", model_directories("bert"))
    texts = examples_of(Task.EMBEDDING, 120).texts or ()
    data = tmp_path / "texts.csv"
    data.write_text("\n".join(("text", *dict.fromkeys(texts))) + "\n")
    started = tcompress("init", model, "--data", data, "--workspace", tmp_path / "work")
    assert started.exit_code == 0, started.output
    return tmp_path / "work"


def test_score_leaves_out_what_follows_a_loss_that_is_flat_without_labels(
    unlabelled: Path, tcompress: Callable[..., Result]
) -> None:
    scored = tcompress("score", "--json", "--workspace", unlabelled)
    assert "without gate-gradient, fisher, hies, which need labels" in scored.stderr
    assert {"curvature", "activation"} <= set(json.loads(scored.stdout)["criteria"])
    refused = tcompress("score", "--criterion", "fisher", "--workspace", unlabelled)
    assert refused.exit_code == 5
    assert "flat at the encoder's own answers; use --criterion curvature" in refused.stderr


@pytest.mark.slow
def test_encoders_without_classes_are_lowered_sublayer_by_sublayer(
    unlabelled: Path, tcompress: Callable[..., Result]
) -> None:
    words = ("--precision", "mixed", "--tokens", "16", "--workspace", unlabelled)
    lowered = tcompress("quantize", *words)
    assert lowered.exit_code == 0, lowered.output
