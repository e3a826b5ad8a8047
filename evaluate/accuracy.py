"""An artifact's answers to examples, asked on its own engine."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from tcompress.data import Examples
from tcompress.encoder import label_indices
from tcompress.errors import ModelError
from tcompress.tasks import Task

from .engine_info import Layout
from .engine_process import EngineProcess

# Examples of similar length share a batch. It is fixed, as dynamic int8 scales per batch.
BATCH_SIZE = 32

Watch = Callable[[Iterable[int]], Iterable[int]]
"""Passes items on and shows the progress."""


@dataclass(frozen=True)
class Predictions:
    """Answers of one artifact on one engine.

    Attributes:
        logits: `(rows, channels)` float32, in the order of the examples; a row is what is decided
            on its own, for most tasks an example.
        labels: Class names, in the order of the logits; none for vectors.
        truncated: How many examples were longer than the model's positions.
        tokens: Tokens of each example after truncation, `(examples,)`; None where not known.
        task: What the logits mean.
        layout: Which rows belong to what; None where a row is an example.
    """

    logits: npt.NDArray[np.float32]
    labels: tuple[str, ...]
    truncated: int
    tokens: npt.NDArray[np.int64] | None = None
    task: Task = Task.CLASSIFICATION
    layout: Layout | None = None

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
        MeasurementError: If the engine fails.
        ModelError: If it answers with a value that is not finite.
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
        MeasurementError: If the engine fails.
        ModelError: If it answers with a value that is not finite.
    """
    info = engine.info
    asked = asked_inputs(engine, examples)
    batches, truncated = engine.encode(asked, BATCH_SIZE)
    layout = engine.layout()
    rows = len(asked) if layout is None else len(layout.owners)
    logits = np.empty((rows, 0), dtype=np.float32)
    for positions, answer in engine.predict(watch(range(batches))):
        expected = (len(positions), len(info.labels) or answer.shape[-1])
        if answer.shape != expected:
            msg = (
                f"{engine.name}: logits must have shape (rows, channels)={expected}, "
                f"got {answer.shape}"
            )
            raise ModelError(msg)
        if not logits.size:
            logits = np.full((rows, expected[1]), np.nan, dtype=np.float32)
        logits[positions] = answer
    bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if bad and require_finite:
        msg = f"{engine.name}: {bad} of {rows} answers are not finite; it is broken"
        raise ModelError(msg)
    return Predictions(
        logits, info.labels, truncated, _tokens(engine, len(examples)), info.task, layout
    )


def asked_inputs(engine: EngineProcess, examples: Examples) -> Examples:
    """Return what an engine is asked about examples: of vectors the texts of pairs one by one.

    Args:
        engine: The engine.
        examples: The examples.

    Returns:
        The examples; pairs that are taken apart have all first texts before all second ones.
    """
    texts, pairs = examples.texts, examples.text_pairs
    if engine.info.task is not Task.EMBEDDING or texts is None or pairs is None:
        return examples
    both = examples.take([*range(len(examples))] * 2)
    return replace(both, texts=texts + pairs, text_pairs=None)


def input_lengths(
    engine: EngineProcess, asked: Examples
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the tokens and the example of each input that examples make, `(inputs,)` each.

    Args:
        engine: The engine, which is handed the examples.
        asked: The examples.
    """
    engine.encode(asked, BATCH_SIZE)
    lengths, layout = engine.tokens(), engine.layout()
    if layout is None or len(lengths) == len(asked):
        return lengths, np.arange(len(asked))
    return lengths, layout.owners[np.unique(layout.windows, return_index=True)[1]]


def _tokens(engine: EngineProcess, examples: int) -> npt.NDArray[np.int64] | None:
    """Return the tokens per example; None where examples are asked about in several inputs."""
    tokens = engine.tokens()
    return tokens if len(tokens) == examples else None


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
