"""Answers that are kept, one JSON line per example, so that anything can be recomputed.

They stand under a digest of everything they depend on: the artifact's files, the examples, the
engine with its versions, the device and the CPU. So an answer is found again only where asking
again would give the same one.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tcompress.artifact import write_text_atomically
from tcompress.data import Examples
from tcompress.digests import document_digest
from tcompress.machine import cpu_features
from tcompress.workspace import reference_to

from .accuracy import Predictions
from .engine_process import EngineProcess

SCHEMA_VERSION = 1


class AnswerBook:
    """Kept answers in a directory.

    Args:
        directory: Where they are; created with the first answers.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def ask(
        self, engine: EngineProcess, examples: Examples, ask: Callable[[], Predictions]
    ) -> tuple[Predictions, bool]:
        """Return an engine's answers: the kept ones where there are any, else by asking.

        Args:
            engine: The engine.
            examples: The examples.
            ask: Asks the engine about them.

        Returns:
            The answers, and whether they were kept ones.
        """
        key = _key(engine, examples)
        path = self.directory / f"{document_digest(key)[:24]}.jsonl"
        if (found := _read(path, key, examples)) is not None:
            return found, True
        answers = ask()
        if np.isfinite(answers.logits).all():
            write_text_atomically(path, "\n".join(_lines(key, answers, examples)) + "\n")
        return answers, False


def _key(engine: EngineProcess, examples: Examples) -> dict[str, Any]:
    info = engine.info
    return {
        "schema_version": SCHEMA_VERSION,
        "artifact": reference_to(engine.directory).digest,
        "precision": engine.precision,
        "backend": info.backend,
        "device": info.device,
        "threads": info.threads,
        "versions": info.versions,
        "cpu_features": cpu_features(),
        "labels": list(info.labels),
        "examples": examples.digest,
    }


def _lines(key: dict[str, Any], answers: Predictions, examples: Examples) -> Iterable[str]:
    yield json.dumps(key | {"truncated": answers.truncated}, sort_keys=True)
    for i, (name, logits) in enumerate(zip(answers.names, answers.logits, strict=True)):
        label = None if examples.labels is None else examples.labels[i]
        line = {
            "id": examples.ids[i],
            "label": label,
            "predicted": str(name),
            "logits": [float(value) for value in logits],
        }
        yield json.dumps(line)


def _read(path: Path, key: dict[str, Any], examples: Examples) -> Predictions | None:
    """Read kept answers; None where there are none, or none that fit."""
    try:
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        header = json.loads(head)
        truncated = int(header.pop("truncated"))
        rows = [json.loads(line) for line in lines]
        logits = np.asarray([row["logits"] for row in rows], dtype=np.float32)
        fits = header == key and [row["id"] for row in rows] == list(examples.ids)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    labels = tuple(key["labels"])
    if not fits or logits.shape != (len(examples), len(labels)):
        return None
    return Predictions(logits, labels, truncated)
