"""Evaluating models of every task, on tiny BERT models."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from safetensors.torch import load_file, save_file

from tcompress.compress.judging import predict_all
from tcompress.compress.pruning import prune_
from tcompress.console import Console
from tcompress.data import Answer, Examples
from tcompress.encoder import Encoder, open_encoder
from tcompress.evaluate import workloads
from tcompress.evaluate.accuracy import Predictions
from tcompress.evaluate.answers import AnswerBook, Question
from tcompress.evaluate.document import measure_document
from tcompress.evaluate.engine_info import Layout
from tcompress.evaluate.entry import metric_of
from tcompress.evaluate.history import PastPoint, points_of
from tcompress.evaluate.quality import Quality, judge, quality_from_answers
from tcompress.evaluate.reporting.html import render_html
from tcompress.evaluate.reporting.markdown import render_markdown
from tcompress.evaluate.showing import show_document
from tcompress.evaluate.subjects import compared_subjects
from tcompress.evaluate.tradeoff import Settings
from tcompress.plan import CompressionPlan
from tcompress.tasks import Task

from ..compress.test_tasks import TASKS, examples_of, write_model

SCHEMA = Path(__file__).parents[2] / "docs" / "schema" / "report.schema.json"
MAIN = {
    Task.MULTI_LABEL: "micro_f1",
    Task.REGRESSION: "pearson",
    Task.TOKEN_CLASSIFICATION: "entity_f1",
    Task.QUESTION_ANSWERING: "f1",
    Task.EMBEDDING: "cosine",
}
Sides = tuple[Predictions, Predictions, Examples]


def long_contexts(count: int = 12) -> Examples:
    """Questions whose contexts take several windows of the tiny models."""
    some = examples_of(Task.QUESTION_ANSWERING, 8 * count)
    assert some.text_pairs is not None
    contexts = [" ".join(some.text_pairs[8 * i : 8 * i + 8]) for i in range(count)]
    answers = tuple((Answer(text[-4:], len(text) - 4),) for text in contexts)
    base = replace(some.take(range(count)), stride=8)
    return replace(base, text_pairs=tuple(contexts), answers=answers)


def ask(encoder: Encoder, examples: Examples) -> Predictions:
    """Answer as the engines do, in this process."""
    encoded = encoder.preprocessor.encode(examples)
    layout = None
    if encoded.cuts is not None:
        layout = Layout(encoded.row_owners, encoded.row_windows, encoded.spans)
    tokens = encoded.lengths if encoded.windows is None else None
    logits = predict_all(encoder, encoded).numpy()
    return Predictions(logits, encoder.labels, 0, tokens, encoder.task, layout)


@pytest.fixture(params=TASKS, ids=str)
def sides(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    model_directories: Callable[[str], Path],
    uneven_plan: CompressionPlan,
) -> Sides:
    """Answers of a source and of what is left of it, the pruned one's second."""
    task = request.param
    encoder = open_encoder(write_model(task, tmp_path / "model", model_directories("bert")))
    examples = long_contexts() if task is Task.QUESTION_ANSWERING else examples_of(task)
    examples = replace(examples, slices={"half": ("one", "other") * (len(examples) // 2)})
    before = ask(encoder, examples)
    prune_(encoder, uneven_plan)
    return before, ask(encoder, examples), examples


def kept_and_judged(sides: Sides, source: Path, directory: Path) -> Quality:
    """Judge by nothing but files of answers."""
    before, after, examples = sides
    book, question = AnswerBook(directory), Question.about(source, examples)
    files = []
    for digest, answers in (("0" * 64, before), ("1" * 64, after)):
        asked = replace(question, artifact=digest)
        book.keep(asked, examples, answers)
        found = book.find(asked, examples)
        assert found is not None
        np.testing.assert_array_equal(found.logits, answers.logits)
        files += [path for path in directory.iterdir() if path not in files]
    return quality_from_answers(files[1], files[0])


def test_answers_of_every_task_are_judged_and_kept_whole(
    sides: Sides, source: Path, tmp_path: Path
) -> None:
    before, after, examples = sides
    quality = judge(after, before, examples)
    assert quality.main == MAIN[before.task]
    assert quality.drop_interval is not None
    assert quality.drop is not None
    assert quality.drop_interval.low <= quality.drop <= quality.drop_interval.high
    itself = judge(before, before, examples).to_json()
    assert (itself["metric_drop"], itself["accuracy_drop"]) == (0, None)
    json.dumps(quality.to_json(), allow_nan=False)
    again = kept_and_judged(sides, source, tmp_path / "answers")
    without_texts = [replace(flip, text=None) for flip in again.flipped]
    assert without_texts == [replace(flip, text=None) for flip in quality.flipped]
    assert again.to_json() == quality.to_json()


def test_flips_are_told_where_answers_can_be_quite_right(sides: Sides) -> None:
    before, after, examples = sides
    quality = judge(after, before, examples)
    if before.task in (Task.REGRESSION, Task.EMBEDDING):
        assert (quality.pairs, quality.flipped) == (None, ())
        return
    assert quality.pairs is not None
    # What is wrong in the source and changed to the truth was gained.
    truth = {
        Task.MULTI_LABEL: lambda i: ", ".join(examples.label_sets[i]),
        Task.TOKEN_CLASSIFICATION: lambda i: None,
        Task.QUESTION_ANSWERING: lambda i: examples.answers[i][0].text,
    }[before.task]
    for flip in quality.flipped:
        assert flip.text
        right = truth(examples.ids.index(flip.id))
        assert right is None or flip.label == (right or "nothing")
    assert {part[1] for part in quality.parts.slices} == {"one", "other"}


def test_pairs_with_numbers_are_held_against_them_and_kept_whole(
    tmp_path: Path,
    source: Path,
    model_directories: Callable[[str], Path],
    uneven_plan: CompressionPlan,
) -> None:
    directory = write_model(Task.EMBEDDING, tmp_path / "model", model_directories("bert"))
    encoder = open_encoder(directory)
    first, second = (examples_of(Task.EMBEDDING, 40, seed) for seed in (0, 1))
    numbers = tuple(str(i % 5) for i in range(40))
    pairs = replace(first, text_pairs=second.texts, labels=numbers)
    apart = replace(first.take([*range(40)] * 2), texts=first.texts + second.texts)
    before = ask(encoder, apart)
    prune_(encoder, uneven_plan)
    after = ask(encoder, apart)
    before, after = (replace(side, tokens=None) for side in (before, after))
    queries = tuple(first.texts[i // 4] for i in range(40))
    for examples, main in ((pairs, "pearson"), (replace(pairs, texts=queries), "ndcg_at_10")):
        quality = judge(after, before, examples)
        assert (quality.main, "cosine" in quality.metrics) == (main, True)
        again = kept_and_judged((before, after, examples), source, tmp_path / main)
        assert again.to_json() == quality.to_json()


def test_numbers_without_right_ones_are_held_against_the_sources() -> None:
    logits = np.arange(8, dtype=np.float32)[:, None]
    before = Predictions(logits, ("score",), 0, None, Task.REGRESSION)
    examples = Examples("test", tuple("12345678"), texts=tuple("abcdefgh"))
    quality = judge(replace(before, logits=-logits), before, examples)
    assert (quality.metrics, quality.main) == ({"correlation": -1.0}, "correlation")
    assert judge(before, before, examples).metrics == {"correlation": pytest.approx(1.0)}
    assert (quality.drop, quality.to_json()["agreement"]) == (None, None)


def test_a_constant_candidate_has_numbers_that_json_can_hold() -> None:
    truth = np.arange(40, dtype=np.float32)
    before = Predictions(truth[:, None], ("score",), 0, None, Task.REGRESSION)
    ids = tuple(map(str, range(40)))
    examples = Examples("test", ids, labels=tuple(map(str, truth)), texts=ids)
    quality = judge(replace(before, logits=0 * before.logits), before, examples)
    assert quality.metrics["pearson"] == 0
    assert quality.drop == pytest.approx(1)
    assert quality.drop_interval is not None
    assert (quality.drop_interval.low, quality.drop_interval.high) == (-2, 2)  # nothing is known
    json.dumps(quality.to_json(), allow_nan=False)


def test_questions_are_measured_by_their_windows_and_the_report_names_their_metric(
    tmp_path: Path,
    model_directories: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workloads, "_affordable", lambda mix, *_: mix)  # however slow the machine
    source = write_model(Task.QUESTION_ANSWERING, tmp_path / "source", model_directories("bert"))
    shutil.copytree(source, tmp_path / "other")
    state = load_file(source / "model.safetensors")
    save_file({k: v * 1.1 for k, v in state.items()}, tmp_path / "other" / "model.safetensors")
    baseline, candidate = compared_subjects(source, tmp_path / "other")
    settings = Settings(tmp_path / "answers", budget_s=0.1, threads=1)
    examples, console = long_contexts(), Console(quiet=True)
    document = measure_document(baseline, [candidate], examples, settings, console, margin=0.01)
    validator = Draft202012Validator(json.loads(SCHEMA.read_text("utf-8")))
    assert [error.message for error in validator.iter_errors(document)] == []
    assert document["data"]["labelled"]
    assert {metric_of(entry) for entry in document["measurements"]} == {"f1"}
    single, *_, offline = document["mixes"]
    assert (single["scenario"], offline["scenario"]) == ("single_stream", "offline")
    assert offline["batch"] > len(examples)  # windows, of which there are more
    assert PastPoint.from_line(points_of(document)[1].to_line())
    show_document(Console(), document)
    for text in (capsys.readouterr().out, render_html(document), render_markdown(document)):
        assert "answer F1" in text
        assert "accuracy" not in text
