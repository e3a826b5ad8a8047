import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tcompress.artifact import Artifact
from tcompress.data import Columns, read_examples
from tcompress.errors import ArtifactError, DataError
from tcompress.evaluate.accuracy import Predictions
from tcompress.evaluate.answers import AnswerBook, Question, read_answers
from tcompress.evaluate.quality import judge, quality_from_answers


@pytest.fixture
def kept(source: Path, data: Path, tmp_path: Path):
    """A book with random answers of the source to all examples."""
    examples = read_examples(data, Columns())
    logits = np.random.default_rng(0).standard_normal((len(examples), 3)).astype(np.float32)
    answers = Predictions(logits, ("cat", "dog", "owl"), truncated=2)
    book = AnswerBook(tmp_path / "answers")
    question = Question.about(source, examples)
    book.keep(question, examples, answers)
    return book, question, examples, answers


def test_kept_answers_come_back_to_the_bit(kept) -> None:
    book, question, examples, answers = kept
    found = book.find(question, examples)
    assert found is not None
    np.testing.assert_array_equal(found.logits, answers.logits)
    assert (found.labels, found.truncated) == (answers.labels, 2)
    rows = next(book.directory.iterdir()).read_text().splitlines()[1:]
    assert json.loads(rows[3])["predicted"] == answers.names[3]


def test_answers_of_anything_else_are_not_found(kept, source: Path, data: Path) -> None:
    book, question, examples, _ = kept
    for other in (
        replace(question, artifact="0" * 64),
        replace(question, examples="0" * 64),
        replace(question, threads=question.threads + 1),
        Question.about(source, examples, device="cuda", precision="bf16"),
    ):
        assert book.find(other, examples) is None
    reordered = examples.take(range(len(examples))[::-1])
    assert book.find(Question.about(source, reordered), reordered) is None


def test_damaged_answers_are_asked_again(kept) -> None:
    book, question, examples, _ = kept
    path = next(book.directory.iterdir())
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    assert book.find(question, examples) is None


def test_a_changed_digit_shows(kept) -> None:
    book, question, examples, _ = kept
    path = next(book.directory.iterdir())
    head, _, body = path.read_text().partition("\n")
    at = body.index('"logits": [') + len('"logits": [') + 3
    digit = "1" if body[at] != "1" else "2"
    for changed in (
        f"{head}\n{body[:at]}{digit}{body[at + 1 :]}",
        head.replace('"truncated": 2', '"truncated": 3') + f"\n{body}",
    ):
        path.write_text(changed)
        assert book.find(question, examples) is None
        with pytest.raises(DataError, match="not as they were written"):
            read_answers(path)


def test_answers_that_are_not_finite_are_not_kept(kept) -> None:
    book, question, examples, answers = kept
    broken = replace(answers, logits=answers.logits * np.nan)
    other = replace(question, artifact="1" * 64)
    book.keep(other, examples, broken)
    assert book.find(other, examples) is None


def test_a_changed_artifact_cannot_hide_behind_kept_answers(
    source: Path, data: Path, tmp_path: Path, write_encoder: Callable[..., Artifact]
) -> None:
    artifact = write_encoder(source, tmp_path / "a", "prune")
    examples = read_examples(data, Columns())
    Question.about(artifact.directory, examples)
    with (artifact.directory / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x7f")
    with pytest.raises(ArtifactError, match=r"model\.safetensors differs"):
        Question.about(artifact.directory, examples)


def test_the_files_alone_give_the_quality_that_was_judged(kept, tmp_path: Path) -> None:
    book, question, whole, baseline = kept
    count = len(whole)
    examples = replace(whole, slices={"half": ("one", "other") * (count // 2)})
    noise = np.random.default_rng(1).standard_normal((count, 3)).astype(np.float32)
    candidate = replace(baseline, logits=baseline.logits + noise, tokens=np.arange(count))
    questions = question, replace(question, artifact="1" * 64)
    for asked, answers in zip(questions, (baseline, candidate), strict=True):
        book.keep(asked, examples, answers)
    files = {read_header(path)["artifact"]: path for path in book.directory.iterdir()}
    before, after = (files[asked.artifact] for asked in questions)
    assert quality_from_answers(after, before) == judge(candidate, baseline, examples)
    assert quality_from_answers(before, before) == judge(baseline, baseline, examples)
    assert len(judge(candidate, baseline, examples).parts.lengths) == 4


def test_files_of_other_examples_or_damaged_ones_are_refused(kept, tmp_path: Path) -> None:
    book, question, examples, answers = kept
    path = next(book.directory.iterdir())
    fewer, chosen = examples.take(range(9)), replace(answers, logits=answers.logits[:9])
    AnswerBook(tmp_path / "fewer").keep(question, fewer, chosen)
    with pytest.raises(DataError, match=r"answers other examples than .*compare files of one"):
        quality_from_answers(next((tmp_path / "fewer").iterdir()), path)
    with pytest.raises(DataError, match=r"none\.jsonl: no kept answers that can be read"):
        read_answers(tmp_path / "none.jsonl")
    path.write_text(path.read_text().replace('"logits": [', '"logits": [0.5, ', 1))
    with pytest.raises(DataError, match=r"no kept answers that can be read.* evaluate` again"):
        read_answers(path)


def read_header(path: Path) -> dict[str, object]:
    with path.open() as stream:
        return json.loads(next(stream))
