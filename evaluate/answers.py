"""Answers that are kept, one JSON line per example, so that anything can be recomputed.

A line has what a model answered, its logits, and what is right. Where rows are words or tokens it
also has what these stand for: words, or a context; other inputs stay in the data.

They stand under a digest of everything they depend on: the artifact's files, the examples, the
device, the threads, the versions of the libraries and the CPU. So answers are found again only
where asking again would give the same ones.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompress.artifact import Artifact, is_artifact
from tcompress.data import Answer, Examples
from tcompress.digests import document_digest
from tcompress.errors import DataError
from tcompress.intake import parse_json
from tcompress.machine import cpu_features, gpu_name, library_versions, usable_cpus
from tcompress.staging import write_text_atomically
from tcompress.tasks import Task
from tcompress.workspace import reference_to

from .accuracy import Predictions
from .decoding import decoded
from .engine_info import Layout

SCHEMA_VERSION = 4
_SEAL = "seal"
_TRUTHS = ("labels", "label_sets", "tags", "answers")


@dataclass(frozen=True)
class Question:
    """Who is asked about what.

    Attributes:
        artifact: Digest of the artifact or model.
        examples: Digest of the examples.
        device: `cpu` or `cuda`.
        precision: Precision that an encoder is run in on a GPU; `plan` on the CPU.
        threads: Threads of the engine.
    """

    artifact: str
    examples: str
    device: str
    precision: str
    threads: int

    @classmethod
    def about(
        cls,
        directory: Path,
        examples: Examples,
        *,
        device: str = "cpu",
        precision: str = "plan",
        threads: int | None = None,
    ) -> "Question":
        """Ask an artifact, whose files are checked first, about examples.

        Args:
            directory: A model directory or an artifact.
            examples: The examples.
            device: `cpu` or `cuda`.
            precision: As for `EngineProcess`; on the CPU the plan alone counts.
            threads: As for `EngineProcess`.

        Raises:
            ArtifactError: If a file of the artifact is not as it was written.
        """
        reference = Artifact.open(directory).as_parent() if is_artifact(directory) else None
        digest = (reference or reference_to(directory)).digest
        precision = "plan" if device == "cpu" else precision
        return cls(digest, examples.digest, device, precision, threads or usable_cpus())

    def key(self) -> dict[str, Any]:
        """Return everything that the answers depend on."""
        return asdict(self) | {
            "schema_version": SCHEMA_VERSION,
            "versions": library_versions(),
            "cpu_features": cpu_features(),
            "gpu": None if self.device == "cpu" else gpu_name(),
        }


class AnswerBook:
    """Kept answers in a directory.

    Args:
        directory: Where they are; created with the first answers.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def find(self, question: Question, examples: Examples) -> Predictions | None:
        """Return kept answers; None where there are none that fit.

        Args:
            question: Who was asked about what.
            examples: The examples.
        """
        key = question.key()
        try:
            found, answers, kept = _parse(self._path(key))
        except (OSError, ValueError, KeyError, TypeError, IndexError, DataError):
            return None
        return answers if found == key and kept.ids == examples.ids else None

    def keep(self, question: Question, examples: Examples, answers: Predictions) -> None:
        """Keep answers, unless one of them is not finite.

        Args:
            question: Who was asked about what.
            examples: The examples.
            answers: The answers, in the order of the examples.
        """
        if np.isfinite(answers.logits).all():
            key = question.key()
            write_text_atomically(self._path(key), _text(key, answers, examples))

    def _path(self, key: dict[str, Any]) -> Path:
        return self.directory / f"{document_digest(key)[:24]}.jsonl"


def read_answers(path: Path, like: Examples | None = None) -> tuple[Predictions, Examples]:
    """Read kept answers.

    Args:
        path: A file of an `AnswerBook`.
        like: Examples that the answers must be to, by id and label; None for any.

    Returns:
        The answers, and the examples without their inputs.

    Raises:
        DataError: If the file is missing or damaged, or answers other examples.
    """
    try:
        _, answers, examples = _parse(path)
    except (OSError, ValueError, KeyError, TypeError, IndexError, DataError) as error:
        msg = f"{path}: no kept answers that can be read ({error}); run `tcompress evaluate` again"
        raise DataError(msg) from error
    if like is not None and _truths(like) != _truths(examples):
        msg = f"{path}: answers other examples than {like.origin}; compare files of one evaluation"
        raise DataError(msg)
    return answers, examples


def _truths(examples: Examples) -> tuple[Any, ...]:
    return (examples.ids, *(getattr(examples, name) for name in _TRUTHS))


def _parse(path: Path) -> tuple[dict[str, Any], Predictions, Examples]:
    """Return the question, the answers and the examples of a file; raises many kinds."""
    head, _, body = path.read_text(encoding="utf-8").partition("\n")
    lines = (head, *body.splitlines())
    header, *rows = (parse_json(line.encode(), "line", error=DataError) for line in lines)
    if header.pop(_SEAL, None) != _seal(header, body):
        msg = "they are not as they were written"
        raise ValueError(msg)
    labels, truncated = tuple(header.pop("labels")), int(header.pop("truncated"))
    task = Task(header.pop("task"))
    examples = _examples(path, rows)
    of_rows = [np.asarray(row["logits"], dtype=np.float32) for row in rows]
    if not all(np.isfinite(part).all() for part in of_rows):
        msg = "a logit is not finite"
        raise ValueError(msg)
    tokens = [row["tokens"] for row in rows]
    known = None if None in tokens else np.asarray(tokens, dtype=np.int64)
    if "spans" in rows[0]:
        layout = _layout(rows, of_rows)
        logits = np.concatenate([part.reshape(-1, len(labels)) for part in of_rows])
        return header, Predictions(logits, labels, truncated, known, task, layout), examples
    # of pairs that were asked apart, all first texts come before all second ones
    logits = np.stack(of_rows)
    logits = logits.swapaxes(0, 1).reshape(-1, logits.shape[-1]) if logits.ndim == 3 else logits
    if logits.ndim != 2 or (labels and logits.shape[1] != len(labels)):
        msg = f"logits must have shape (examples, labels), got {logits.shape}"
        raise ValueError(msg)
    return header, Predictions(logits, labels, truncated, known, task), examples


def _layout(rows: list[dict[str, Any]], of_rows: list[npt.NDArray[np.float32]]) -> Layout:
    counts = [len(part) for part in of_rows]
    spans = [np.asarray(row["spans"], dtype=np.int64).reshape(-1, 2) for row in rows]
    windows = [np.asarray(row["windows"], dtype=np.int64) for row in rows]
    return Layout(
        np.repeat(np.arange(len(rows)), counts), np.concatenate(windows), np.concatenate(spans)
    )


def _examples(path: Path, rows: list[dict[str, Any]]) -> Examples:
    def column(name: str, make: Callable[[Any], Any] = str) -> tuple[Any, ...] | None:
        values = [row.get(name) for row in rows]
        return None if None in values else tuple(make(value) for value in values)

    return Examples(
        origin=str(path),
        ids=tuple(row["id"] for row in rows),
        labels=column("label"),
        texts=column("text"),
        text_pairs=column("text_pair"),
        label_sets=column("label_set", tuple),
        words=column("words", tuple),
        tags=column("tags", tuple),
        answers=column("answers", lambda found: tuple(Answer(*answer) for answer in found)),
        slices={name: tuple(row["slices"][name] for row in rows) for name in rows[0]["slices"]},
    )


def _text(key: dict[str, Any], answers: Predictions, examples: Examples) -> str:
    labels, task = list(answers.labels), answers.task.value
    header = key | {"labels": labels, "truncated": answers.truncated, "task": task}
    body = "".join(f"{line}\n" for line in _lines(answers, examples))
    return f"{json.dumps(header | {_SEAL: _seal(header, body)}, sort_keys=True)}\n{body}"


def _seal(header: dict[str, Any], body: str) -> str:
    """Return a digest by which a change of any byte shows: answers decide what passes a gate."""
    return document_digest([header, body])


def _lines(answers: Predictions, examples: Examples) -> Iterator[str]:
    predicted = decoded(answers, examples)
    parts = _parts(answers, len(examples))
    for i in range(len(examples)):
        line = {
            "id": examples.ids[i],
            "label": None if examples.labels is None else examples.labels[i],
            "predicted": predicted[i] if predicted else None,
            **parts[i],
            **_right(answers.task, examples, i),
            "tokens": None if answers.tokens is None else int(answers.tokens[i]),
            "slices": {column: values[i] for column, values in examples.slices.items()},
        }
        yield json.dumps(line)


def _parts(answers: Predictions, examples: int) -> list[dict[str, Any]]:
    """Return the logits of each example, and what its rows stand for where it has several."""
    layout, logits = answers.layout, answers.logits
    if layout is None:
        times = len(logits) // examples
        pairs = logits.reshape(times, examples, -1).swapaxes(0, 1)
        rows = pairs[:, 0] if times == 1 else pairs
        return [{"logits": row.tolist()} for row in rows]
    starts = np.searchsorted(layout.owners, np.arange(examples + 1))
    return [
        {
            "logits": logits[first:last].tolist(),
            "spans": layout.spans[first:last].tolist(),
            "windows": layout.windows[first:last].tolist(),
        }
        for first, last in pairwise(starts)
    ]


def _right(task: Task, examples: Examples, i: int) -> dict[str, Any]:
    """Return what it takes to score an answer again, besides a single label."""
    found: dict[str, Any] = {}
    if examples.label_sets is not None:
        found["label_set"] = list(examples.label_sets[i])
    if task is Task.TOKEN_CLASSIFICATION:
        found["words"] = list((examples.words or ())[i])
        found |= {} if examples.tags is None else {"tags": list(examples.tags[i])}
    if task in (Task.QUESTION_ANSWERING, Task.EMBEDDING) and examples.texts is not None:
        found["text"] = examples.texts[i]
        found |= {} if examples.text_pairs is None else {"text_pair": examples.text_pairs[i]}
    if examples.answers is not None:
        found["answers"] = [list(answer) for answer in examples.answers[i]]
    return found
