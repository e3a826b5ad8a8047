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
from tcompress.machine import cpu_features, gpu_name, library_versions, usable_cpus
from tcompress.workspace import reference_to

from .accuracy import Predictions

SCHEMA_VERSION = 1


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
            head, *lines = self._path(key).read_text(encoding="utf-8").splitlines()
            header = json.loads(head)
            labels, truncated = tuple(header.pop("labels")), int(header.pop("truncated"))
            rows = [json.loads(line) for line in lines]
            logits = np.asarray([row["logits"] for row in rows], dtype=np.float32)
            fits = header == key and [row["id"] for row in rows] == list(examples.ids)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not fits or logits.shape != (len(examples), len(labels)):
            return None
        return Predictions(logits, labels, truncated)

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


def _lines(key: dict[str, Any], answers: Predictions, examples: Examples) -> Iterator[str]:
    header = {"labels": list(answers.labels), "truncated": answers.truncated}
    yield json.dumps(key | header, sort_keys=True)
    for i, (name, logits) in enumerate(zip(answers.names, answers.logits, strict=True)):
        line = {
            "id": examples.ids[i],
            "label": None if examples.labels is None else examples.labels[i],
            "predicted": str(name),
            "logits": [float(value) for value in logits],
        }
        yield json.dumps(line)
