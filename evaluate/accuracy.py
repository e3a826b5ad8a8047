"""An artifact's answers to examples, asked on its own engine."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from tcompress.data import Examples
from tcompress.encoder import label_indices
from tcompress.errors import MeasurementError

from .engine_process import EngineProcess

# Examples of similar length share a batch. It is fixed, as dynamic int8 scales per batch.
BATCH_SIZE = 32

Watch = Callable[[Iterable[int]], Iterable[int]]
"""Passes items on and shows the progress."""


@dataclass(frozen=True)
class Predictions:
    """Answers of one artifact on one engine.

    Attributes:
        logits: `(examples, labels)` float32, in the order of the examples.
        labels: Class names, in the order of the logits.
        truncated: How many examples were longer than the model's positions.
        tokens: Tokens of each example after truncation, `(examples,)`; None where not known.
    """

    logits: npt.NDArray[np.float32]
    labels: tuple[str, ...]
    truncated: int
    tokens: npt.NDArray[np.int64] | None = None

    @property
    def classes(self) -> npt.NDArray[np.int64]:
        """Predicted class per example, `(examples,)`: an index into `labels`."""
        found: npt.NDArray[np.int64] = np.argmax(self.logits, axis=1)
        return found

    @property
    def names(self) -> npt.NDArray[np.str_]:
        """Predicted class per example, by name."""
        return np.asarray(self.labels)[self.classes]

    @property
    def log_probabilities(self) -> npt.NDArray[np.float64]:
        """Logarithm of each class's probability, `(examples, labels)`."""
        found: npt.NDArray[np.float64] = log_softmax(self.logits.astype(np.float64), axis=1)
        return found


def run_predictions(
    directory: Path,
    examples: Examples,
    *,
    device: str = "cpu",
    name: str | None = None,
    watch: Watch = iter,
) -> Predictions:
    """Ask an artifact about every example, on its own engine.

    Args:
        directory: A model directory or an artifact.
        examples: The examples.
        device: `cpu` or `cuda`.
        name: How errors call it; else the directory.
        watch: Shows the progress over the batches.

    Raises:
        ArtifactError: If the artifact is damaged.
        DataError: If the examples do not fit the model.
        MeasurementError: If the engine fails, or answers with a value that is not finite.
    """
    with EngineProcess(directory, name=name, device=device) as engine:
        return predict(engine, examples, watch=watch)


def predict(
    engine: EngineProcess,
    examples: Examples,
    *,
    watch: Watch = iter,
    require_finite: bool = True,
) -> Predictions:
    """Ask an engine that is already open about every example.

    Args:
        engine: The engine.
        examples: The examples.
        watch: Shows the progress over the batches.
        require_finite: Whether answers that are not finite are an error, and not passed on.

    Raises:
        DataError: If the examples do not fit the model.
        MeasurementError: If the engine fails, or answers with a value that is not finite.
    """
    labels = engine.info.labels
    batches, truncated = engine.encode(examples, BATCH_SIZE)
    logits = np.full((len(examples), len(labels)), np.nan, dtype=np.float32)
    for positions, answer in engine.predict(watch(range(batches))):
        if answer.shape != (len(positions), len(labels)):
            msg = (
                f"{engine.name}: logits must have shape (batch, labels)="
                f"{(len(positions), len(labels))}, got {answer.shape}"
            )
            raise MeasurementError(msg)
        logits[positions] = answer
    bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if bad and require_finite:
        msg = f"{engine.name}: {bad} of {len(examples)} answers are not finite; it is broken"
        raise MeasurementError(msg)
    return Predictions(logits, labels, truncated, engine.tokens())


def correctness(predictions: Predictions, examples: Examples) -> npt.NDArray[np.bool_]:
    """Say which examples were answered right.

    Args:
        predictions: Answers to these examples.
        examples: Labelled examples.

    Returns:
        `(examples,)` bool.

    Raises:
        DataError: If the examples have no labels, or one that the model does not know.
    """
    truth = label_indices(predictions.labels, examples).numpy()
    right: npt.NDArray[np.bool_] = predictions.classes == truth
    return right
