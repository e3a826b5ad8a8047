"""Answers that are kept, one JSON line per example, so that anything can be recomputed.

They stand under a digest of everything they depend on: the artifact's files, the examples, the
device, the threads, the versions of the libraries and the CPU. So answers are found again only
where asking again would give the same ones.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tcompress.artifact import Artifact, is_artifact, write_text_atomically
from tcompress.data import Examples
from tcompress.digests import document_digest
from tcompress.errors import DataError
from tcompress.machine import cpu_features, gpu_name, library_versions, usable_cpus
from tcompress.workspace import reference_to

from .accuracy import Predictions

SCHEMA_VERSION = 2


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
        except (OSError, ValueError, KeyError, TypeError):
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
            text = "\n".join(_lines(key, answers, examples))
            write_text_atomically(self._path(key), text + "\n")

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
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path}: no kept answers that can be read ({error}); run `tcompress evaluate` again"
        raise DataError(msg) from error
    if like is not None and (like.ids, like.labels) != (examples.ids, examples.labels):
        msg = f"{path}: answers other examples than {like.origin}; compare files of one evaluation"
        raise DataError(msg)
    return answers, examples


def _parse(path: Path) -> tuple[dict[str, Any], Predictions, Examples]:
    """Return the question, the answers and the examples of a file; raises many kinds."""
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    header, rows = json.loads(head), [json.loads(line) for line in lines]
    labels, truncated = tuple(header.pop("labels")), int(header.pop("truncated"))
    logits = np.asarray([row["logits"] for row in rows], dtype=np.float32)
    if logits.shape != (len(rows), len(labels)) or not rows:
        msg = f"logits must have shape (examples, labels), got {logits.shape}"
        raise ValueError(msg)
    tokens, names = ([row[key] for row in rows] for key in ("tokens", "label"))
    examples = Examples(
        origin=str(path),
        ids=tuple(row["id"] for row in rows),
        labels=None if None in names else tuple(names),
        slices={name: tuple(row["slices"][name] for row in rows) for name in rows[0]["slices"]},
    )
    known = None if None in tokens else np.asarray(tokens, dtype=np.int64)
    return header, Predictions(logits, labels, truncated, known), examples


def _lines(key: dict[str, Any], answers: Predictions, examples: Examples) -> Iterator[str]:
    header = {"labels": list(answers.labels), "truncated": answers.truncated}
    yield json.dumps(key | header, sort_keys=True)
    for i, (name, logits) in enumerate(zip(answers.names, answers.logits, strict=True)):
        line = {
            "id": examples.ids[i],
            "label": None if examples.labels is None else examples.labels[i],
            "predicted": str(name),
            "logits": [float(value) for value in logits],
            "tokens": None if answers.tokens is None else int(answers.tokens[i]),
            "slices": {column: values[i] for column, values in examples.slices.items()},
        }
        yield json.dumps(line)
