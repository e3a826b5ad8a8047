"""Scores of heads and neurons, and their JSON form."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tcompress.digests import document_digest
from tcompress.errors import ArtifactError
from tcompress.intake import read_json

from .criteria import Criterion

SCHEMA_VERSION = 1
Layers = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class HeadScores:
    """Importance per head and per neuron; higher means keep.

    Attributes:
        criterion: How it was measured.
        heads: One tuple per layer, in the order of the heads left.
        neurons: One tuple per layer, in the order of the neurons left; empty where the criterion
            scores heads only.
        calibration: What it was measured on: examples, digest, where the labels came from, seed.
        curvature: By `curvature`, the matrix F of all heads left, layer by layer: removing a set
            of them diverges by about half the sum of F over it. None by other criteria.
    """

    criterion: Criterion
    heads: Layers
    neurons: Layers
    calibration: dict[str, Any]
    curvature: Layers | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the scores as a JSON document."""
        return {
            "schema_version": SCHEMA_VERSION,
            "criterion": self.criterion.value,
            "direction": "higher means keep",
            "calibration": self.calibration,
            "heads": [list(layer) for layer in self.heads],
            "neurons": [list(layer) for layer in self.neurons],
            "curvature": None if self.curvature is None else [list(row) for row in self.curvature],
        }

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Read scores back from `to_json`'s document.

        Args:
            document: The parsed JSON.

        Raises:
            ArtifactError: If it is not such a document.
        """
        try:
            criterion = Criterion(document["criterion"])
            heads, neurons = (_layers(document[key]) for key in ("heads", "neurons"))
            curvature = None
            if criterion is Criterion.CURVATURE:
                curvature = _layers(document["curvature"])
                _check_square(curvature, sum(map(len, heads)))
            return cls(criterion, heads, neurons, dict(document["calibration"]), curvature)
        except (KeyError, TypeError, ValueError) as error:
            msg = f"not a document of head scores: {error!r}"
            raise ArtifactError(msg) from error


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document with its digest, by which a change shows.

    Args:
        document: What `score` is to write.
    """
    return document | {"digest": document_digest(document)}


def read_scores(path: Path) -> dict[str, Any]:
    """Return what `score` wrote, as it was written.

    Args:
        path: The file.

    Raises:
        ArtifactError: If it is damaged, or from before it had a digest.
    """
    remedy = "run `tcompress score` again"
    document: dict[str, Any] = read_json(path, error=ArtifactError, remedy=remedy)
    digest = document.pop("digest", None)
    if digest != document_digest(document):
        msg = f"{path}: changed since it was written, or older than its digest; {remedy}"
        raise ArtifactError(msg)
    HeadScores.from_json(document)
    if not all(isinstance(document.get(name), dict) for name in ("key", "model", "criteria")):
        msg = f"{path}: not a document that `tcompress score` wrote; {remedy}"
        raise ArtifactError(msg)
    return document | {"digest": digest}


def _layers(document: Any) -> Layers:
    layers = tuple(tuple(float(score) for score in layer) for layer in document)
    if not all(math.isfinite(score) for layer in layers for score in layer):
        msg = "a score is not finite"
        raise ValueError(msg)
    return layers


def _check_square(matrix: Layers, heads: int) -> None:
    if {len(matrix), *map(len, matrix)} != {heads}:
        msg = f"the curvature must be a square matrix over {heads} heads"
        raise ValueError(msg)
