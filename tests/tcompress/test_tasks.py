"""What right, loss, distance and curvature mean for each task, against other libraries' numbers."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import f1_score
from torch import Tensor
from torch.nn import functional

from tcompress.data import Answer, Examples
from tcompress.encoded import Encoded, Unit
from tcompress.encoder import open_encoder
from tcompress.errors import DataError, ModelError, RequestError
from tcompress.preprocessing import Preprocessor, open_preprocessor
from tcompress.tasks import Task, decision_of, infer_task, unit_of

CHANNELS = {Task.REGRESSION: 1, Task.QUESTION_ANSWERING: 2}
# rows of the three inputs where tokens are answers
ROWS = (2, 4, 1)
PER_TOKEN = (Task.TOKEN_CLASSIFICATION, Task.QUESTION_ANSWERING)
ALL = [pytest.param(task, id=task.value) for task in Task]


def asked(task: Task, seed: int = 0) -> tuple[Tensor, Tensor, int]:
    """Seeded logits of three inputs, the input of each row, and the number of inputs."""
    members = torch.arange(3)
    if task in PER_TOKEN:
        members = members.repeat_interleave(torch.tensor(ROWS))
    generator = torch.Generator().manual_seed(seed)
    shape = len(members), CHANNELS.get(task, 3)
    return torch.randn(shape, generator=generator, dtype=torch.float64), members, 3


@pytest.mark.parametrize("task", ALL)
def test_the_divergence_is_zero_at_equal_answers_and_positive_elsewhere(task: Task) -> None:
    decision, (rows, members, inputs) = decision_of(task), asked(task)
    same = decision.divergences(rows, rows, members, inputs)
    assert same.shape == (inputs,)
    assert same.abs().max() < 1e-12
    moved = decision.divergences(rows, asked(task, seed=1)[0], members, inputs)
    some = torch.tensor(ROWS) > 1 if task is Task.QUESTION_ANSWERING else torch.full((3,), True)
    assert (moved[some] > 1e-3).all()  # a softmax over one row says nothing


@pytest.mark.parametrize("task", ALL)
def test_drawn_directions_have_the_divergences_own_curvature(task: Task) -> None:
    decision, (rows, members, inputs) = decision_of(task), asked(task)

    def divergence(flat: Tensor) -> Tensor:
        return decision.divergences(rows, flat.view_as(rows), members, inputs).sum()

    # The clamp of rounding below 0 has a kink at the model's own answers, so next to them.
    beside = rows.flatten() + 1e-6 * torch.linspace(-1, 1, rows.numel(), dtype=rows.dtype)
    wanted = torch.autograd.functional.hessian(divergence, beside)
    generator = torch.Generator().manual_seed(0)
    draws = [decision.drawn(rows, members, generator).flatten() for _ in range(4000)]
    stacked = torch.stack(draws)
    found = stacked.T @ stacked / len(draws)
    assert (found - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize("task", ALL)
def test_own_answers_are_right_and_the_loss_has_a_slope_there_unless_it_says_not(
    task: Task,
) -> None:
    decision, (rows, members, inputs) = decision_of(task), asked(task)
    own = decision.own(rows, members)
    assert decision.score(rows, own, members) == pytest.approx(1.0)
    assert decision.score(-rows, own, members) < 0.9
    leaf = rows.clone().requires_grad_()
    (slope,) = torch.autograd.grad(decision.losses(leaf, own, members, inputs).sum(), leaf)
    assert (slope.abs().max() < 1e-6) == decision.flat_at_own


def test_an_input_of_many_words_weighs_as_much_as_one_of_few() -> None:
    decision, (rows, members, inputs) = decision_of(Task.TOKEN_CLASSIFICATION), asked(PER_TOKEN[0])
    targets = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    found = decision.losses(rows, targets, members, inputs)
    means = [
        functional.cross_entropy(rows[members == i].float(), targets[members == i])
        for i in range(inputs)
    ]
    assert torch.allclose(found, torch.stack(means))


def test_losses_of_label_sets_are_cross_entropies_of_every_class() -> None:
    decision, (rows, members, inputs) = decision_of(Task.MULTI_LABEL), asked(Task.MULTI_LABEL)
    targets = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]])
    wanted = functional.binary_cross_entropy_with_logits(rows.float(), targets)
    assert decision.losses(rows, targets, members, inputs).mean() == pytest.approx(3 * wanted)


def test_losses_of_spans_are_cross_entropies_over_the_tokens_of_a_window() -> None:
    task = Task.QUESTION_ANSWERING
    decision, (rows, members, inputs) = decision_of(task), asked(task)
    first, last = (0, 1, 0), (1, 3, 0)
    starts = torch.tensor([0, *ROWS]).cumsum(0)[:3]
    targets = torch.zeros_like(rows)
    for window, start in enumerate(starts.tolist()):
        targets[start + first[window], 0] = targets[start + last[window], 1] = 1.0
    wanted = [
        sum(
            functional.cross_entropy(rows[members == i, side], torch.tensor(ends[i]))
            for side, ends in enumerate((first, last))
        )
        for i in range(inputs)
    ]
    assert torch.allclose(decision.losses(rows, targets, members, inputs), torch.stack(wanted))


def test_scores_are_those_that_other_libraries_compute() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(50, 4, generator=generator)
    right = (torch.rand(50, 4, generator=generator) > 0.6).float()
    members = torch.arange(50)
    found = decision_of(Task.MULTI_LABEL).score(rows, right, members)
    assert found == pytest.approx(f1_score(right.numpy(), (rows > 0).numpy(), average="micro"))
    numbers = rows[:, :1] + 0.3 * rows[:, 1:2]
    correlation = pearsonr(rows[:, 0], numbers[:, 0]).statistic
    found = decision_of(Task.REGRESSION).score(rows[:, :1], numbers, members)
    assert found == pytest.approx(correlation, abs=1e-6)


def test_a_window_counts_only_where_both_ends_are_right() -> None:
    members = torch.tensor([0, 0, 0, 1, 1])
    rows = torch.tensor([[9.0, 0], [0, 0], [0, 9], [0, 9], [9, 0]])
    targets = torch.tensor([[1.0, 0], [0, 0], [0, 1], [0, 1], [0, 0]])
    assert decision_of(Task.QUESTION_ANSWERING).score(rows, targets, members) == 0.5


@pytest.fixture
def preprocessor(model_directories: Callable[[str], Path]) -> Callable[[Task], Preprocessor]:
    def opened(task: Task) -> Preprocessor:
        directory = model_directories("bert")
        return open_preprocessor(
            directory, max_positions=16, vocab_size=20, token_types=True, unit=unit_of(task)
        )

    return opened


def encode(preprocessor: Preprocessor, **fields: object) -> tuple[Examples, Encoded]:
    examples = Examples(origin="rows.jsonl", **fields)  # type: ignore[arg-type]
    return examples, preprocessor.encode(examples)


def test_tags_that_are_cut_off_with_their_words_are_not_asked_for(
    preprocessor: Callable[[Task], Preprocessor],
) -> None:
    task, words = Task.TOKEN_CLASSIFICATION, (("good", "film"), ("the",) * 30)
    tags = (("B", "O"), ("O",) * 29 + ("B",))
    examples, encoded = encode(preprocessor(task), ids=("0", "1"), words=words, tags=tags)
    found = decision_of(task).targets(("O", "B"), examples, encoded)
    assert found.tolist() == [1, 0] + [0] * (len(encoded.row_owners) - 2)
    assert len(found) < 32


def test_every_window_has_a_start_and_an_end_where_the_answer_is_or_nowhere(
    preprocessor: Callable[[Task], Preprocessor],
) -> None:
    task, context = Task.QUESTION_ANSWERING, " ".join(["the"] * 20 + ["good", "plot"])
    examples, encoded = encode(
        preprocessor(task),
        ids=("0", "1"),
        texts=("it was", "it was"),
        text_pairs=(context, context),
        answers=((Answer("good plot", context.index("good")),), ()),
        stride=4,
    )
    found = decision_of(task).targets(("start", "end"), examples, encoded).numpy()
    windows = np.unique(encoded.row_windows)
    assert len(windows) > 4
    texts = []
    for window in windows:
        rows = np.flatnonzero(encoded.row_windows == window)
        assert found[rows].sum(0).tolist() == [1, 1]
        first, last = (rows[found[rows, side].argmax()] for side in (0, 1))
        texts.append(encoded.answer_text(context, int(first), int(last)))
    answered = {text for text, owner in zip(texts, encoded.owners, strict=True) if owner == 0}
    assert answered == {"good plot", ""}
    assert {text for text, owner in zip(texts, encoded.owners, strict=True) if owner == 1} == {""}


@pytest.mark.parametrize("task", ALL)
def test_examples_without_right_answers_are_refused(
    task: Task, preprocessor: Callable[[Task], Preprocessor]
) -> None:
    contexts = ("good film",) if task is Task.QUESTION_ANSWERING else None
    words = (("good",),) if task is Task.TOKEN_CLASSIFICATION else None
    texts = ("good",) if words is None else None
    examples, encoded = encode(
        preprocessor(task), ids=("0",), texts=texts, text_pairs=contexts, words=words
    )
    message = "learned from a teacher" if task is Task.EMBEDDING else "no labels in it"
    with pytest.raises(DataError, match=message):
        decision_of(task).targets(("a", "b"), examples, encoded)


def config(architecture: str | None, **fields: object) -> SimpleNamespace:
    names = None if architecture is None else [architecture]
    return SimpleNamespace(architectures=names, **({"num_labels": 2} | fields))


@pytest.mark.parametrize(
    ("architecture", "fields", "task"),
    [
        ("BertForSequenceClassification", {}, Task.CLASSIFICATION),
        ("BertForSequenceClassification", {"num_labels": 1}, Task.REGRESSION),
        (
            "BertForSequenceClassification",
            {"problem_type": "multi_label_classification"},
            Task.MULTI_LABEL,
        ),
        (
            "BertForSequenceClassification",
            {"problem_type": "single_label_classification", "num_labels": 1},
            Task.CLASSIFICATION,
        ),
        ("RobertaForTokenClassification", {"num_labels": 1}, Task.TOKEN_CLASSIFICATION),
        ("ElectraForQuestionAnswering", {}, Task.QUESTION_ANSWERING),
        ("BertModel", {}, Task.EMBEDDING),
        ("ViTForImageClassification", {}, Task.CLASSIFICATION),
        (None, {}, Task.CLASSIFICATION),
    ],
)
def test_the_task_is_read_off_the_configuration(
    architecture: str | None, fields: dict[str, object], task: Task, tmp_path: Path
) -> None:
    assert infer_task(tmp_path, config(architecture, **fields)) is task


def test_a_head_for_no_known_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'BertForMaskedLM' is for no task that tcompress knows"):
        infer_task(tmp_path, config("BertForMaskedLM"))


def test_a_sequence_head_may_be_asked_for_what_its_outputs_allow_only(tmp_path: Path) -> None:
    several, one = (config("BertForSequenceClassification", num_labels=n) for n in (3, 1))
    assert infer_task(tmp_path, several, Task.MULTI_LABEL) is Task.MULTI_LABEL
    assert infer_task(tmp_path, one, Task.REGRESSION) is Task.REGRESSION
    with pytest.raises(RequestError, match="its head is for classification, not for embedding"):
        infer_task(tmp_path, several, Task.EMBEDDING)
    with pytest.raises(RequestError, match="regression needs a model with 1 output, it has 3"):
        infer_task(tmp_path, several, Task.REGRESSION)


def test_a_regression_of_several_numbers_is_refused(tmp_path: Path) -> None:
    vectors = config("BertForSequenceClassification", num_labels=3, problem_type="regression")
    with pytest.raises(ModelError, match="regression needs a model with 1 output, it has 3"):
        infer_task(tmp_path, vectors)


def test_a_classifier_is_not_opened_for_questions(
    model_directories: Callable[[str], Path],
) -> None:
    with pytest.raises(RequestError, match="not for question-answering; leave --task out"):
        open_encoder(model_directories("bert"), task=Task.QUESTION_ANSWERING)


def test_words_and_contexts_are_decided_on_by_token_alone() -> None:
    units = {task: unit_of(task) for task in Task}
    assert units.pop(Task.TOKEN_CLASSIFICATION) is Unit.WORD
    assert units.pop(Task.QUESTION_ANSWERING) is Unit.CONTEXT
    assert set(units.values()) == {Unit.EXAMPLE}
