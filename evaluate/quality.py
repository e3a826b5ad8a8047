"""How good a candidate's answers are, and what became of the baseline's."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tcompress.data import Examples
from tcompress.encoder import label_indices

from .accuracy import Predictions, correctness
from .answers import read_answers
from .calibration import calibration_error, divergences, negative_log_likelihood
from .flips import Flip, flipped_examples
from .metrics import CLASSIFICATION, confusion
from .noninferiority import PairedCounts, damage_bounds
from .slices import ClassRecall, PartQuality, Right, length_buckets, slices_of
from .statistics import Interval, accuracy_interval, bootstrap_intervals

METRICS = ("accuracy", "macro_f1", "mcc", "balanced_accuracy")
"""What is reported of a classifier; better when higher."""


@dataclass(frozen=True)
class Displacement:
    """How far the candidate's answers moved from the baseline's, right or wrong.

    Attributes:
        agreement: Fraction of the examples that both answer alike.
        changed: Number of the others.
        divergence: Mean KL(baseline || candidate) in nats; None if the classes differ.
        divergence_p99: 99th percentile of it over the examples, likewise.
    """

    agreement: float
    changed: int
    divergence: float | None
    divergence_p99: float | None

    @classmethod
    def between(cls, baseline: Predictions, candidate: Predictions) -> "Displacement":
        """Compare answers to the same examples, classes by name.

        Args:
            baseline: The baseline's answers.
            candidate: The candidate's answers.
        """
        changed = int(np.sum(candidate.names != baseline.names))
        agreement = 1 - changed / len(candidate.logits)
        if sorted(baseline.labels) != sorted(candidate.labels):
            return cls(agreement, changed, None, None)
        order = [candidate.labels.index(label) for label in baseline.labels]
        moved = divergences(baseline.log_probabilities, candidate.log_probabilities[:, order])
        return cls(agreement, changed, float(moved.mean()), float(np.quantile(moved, 0.99)))


@dataclass(frozen=True)
class Likelihood:
    """How well the probabilities fit the labels; lower is better for all.

    Attributes:
        calibration_error: Expected calibration error, a fraction.
        calibration_error_baseline: That of the baseline.
        negative_log_likelihood: Mean, in nats.
    """

    calibration_error: float
    calibration_error_baseline: float
    negative_log_likelihood: float


@dataclass(frozen=True)
class Parts:
    """The same comparison on parts of the examples.

    Attributes:
        classes: Recall of each class, in the order of the candidate's labels.
        slices: Column, value and quality of each slice.
        lengths: Fewest and most tokens, and quality, of each bucket.
    """

    classes: tuple[ClassRecall, ...] = ()
    slices: tuple[tuple[str, str, PartQuality], ...] = ()
    lengths: tuple[tuple[int, int, PartQuality], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return `classes`, `slices` and `lengths`, each a list."""
        return {
            "classes": [asdict(part) for part in self.classes],
            "slices": [
                {"column": column, "value": value} | asdict(part)
                for column, value, part in self.slices
            ],
            "lengths": [
                {"tokens_from": fewest, "tokens_to": most} | asdict(part)
                for fewest, most, part in self.lengths
            ],
        }


@dataclass(frozen=True)
class Quality:
    """How good the answers are, and what became of the baseline's.

    Attributes:
        metrics: `accuracy`, `macro_f1`, `mcc` and `balanced_accuracy`; without labels `agreement`
            with the baseline.
        displacement: How far the answers moved.
        intervals: 95 % interval of each metric; empty without labels.
        pairs: Right and wrong answers beside the baseline's; None without labels.
        drop_interval: Bounds of the drop in accuracy, each with an error of 0.05; of the baseline
            itself exactly 0. None without labels.
        likelihood: How well the probabilities fit; None without labels.
        parts: The same on parts of the examples; empty without labels.
        flipped: Examples that flipped, the most confident ones.
    """

    metrics: dict[str, float]
    displacement: Displacement
    intervals: dict[str, Interval] = field(default_factory=dict)
    pairs: PairedCounts | None = None
    drop_interval: Interval | None = None
    likelihood: Likelihood | None = None
    parts: Parts = Parts()
    flipped: tuple[Flip, ...] = ()

    @property
    def interval(self) -> Interval | None:
        """Interval of the accuracy; None without labels."""
        return self.intervals.get("accuracy")

    @property
    def accuracy_drop(self) -> float | None:
        """Accuracy of the baseline minus this one, a fraction; positive is worse."""
        return None if self.pairs is None else self.pairs.damage

    def to_json(self) -> dict[str, Any]:
        """Return everything but the flipped examples, which stand in the document by artifact."""
        pairs, moved, likelihood = self.pairs, self.displacement, self.likelihood
        flips = None if pairs is None else {"lost": pairs.lost, "gained": pairs.gained}
        return {
            "metrics": self.metrics,
            "metric_intervals": {name: asdict(found) for name, found in self.intervals.items()},
            "accuracy_interval": None if self.interval is None else asdict(self.interval),
            "accuracy_drop": self.accuracy_drop,
            "accuracy_drop_interval": self.drop_interval and asdict(self.drop_interval),
            "flips": flips and flips | {"changed": moved.changed},
            "agreement": moved.agreement,
            "divergence": moved.divergence,
            "divergence_p99": moved.divergence_p99,
            **dict.fromkeys(Likelihood.__annotations__),
            **({} if likelihood is None else asdict(likelihood)),
            **self.parts.to_json(),
        }


def judge(candidate: Predictions, baseline: Predictions, examples: Examples) -> Quality:
    """Compute the metrics of a candidate, in pairs with the baseline's answers.

    Args:
        candidate: The candidate's answers; the very object `baseline` for the baseline itself.
        baseline: The baseline's answers to the same examples.
        examples: The examples; without labels, only how far the answers moved is known.

    Raises:
        DataError: If a label is not known to one of the models.
    """
    moved = Displacement.between(baseline, candidate)
    if examples.labels is None:
        return Quality({"agreement": moved.agreement}, moved)
    truth = label_indices(candidate.labels, examples).numpy()
    before, right = correctness(baseline, examples), correctness(candidate, examples)
    pairs = PairedCounts.from_correct(before, right)
    counts = confusion(truth, candidate.classes, len(candidate.labels))
    metrics = {name: CLASSIFICATION[name] for name in METRICS}
    wilson = accuracy_interval(int(right.sum()), len(right))
    return Quality(
        metrics={name: float(metric(counts)) for name, metric in metrics.items()},
        displacement=moved,
        intervals=bootstrap_intervals(counts, metrics) | {"accuracy": wilson},
        pairs=pairs,
        drop_interval=Interval(0, 0, 1) if candidate is baseline else damage_bounds(pairs),
        likelihood=_likelihood(candidate, baseline, examples),
        parts=_parts(candidate, examples, before, right),
        flipped=tuple(flipped_examples(candidate, baseline, examples)),
    )


def quality_from_answers(candidate_file: Path, baseline_file: Path) -> Quality:
    """Judge by nothing but two files of kept answers; gives what `evaluate` reported.

    Only the texts of flipped examples are not in the files.

    Args:
        candidate_file: The candidate's answers, below `report/answers`.
        baseline_file: The baseline's answers.

    Raises:
        DataError: If a file is damaged, or the two do not answer the same examples.
    """
    baseline, examples = read_answers(baseline_file)
    candidate = baseline
    if candidate_file != baseline_file:
        candidate, _ = read_answers(candidate_file, like=examples)
    return judge(candidate, baseline, examples)


def _likelihood(candidate: Predictions, baseline: Predictions, examples: Examples) -> Likelihood:
    sides = [
        (side.log_probabilities, label_indices(side.labels, examples).numpy())
        for side in (candidate, baseline)
    ]
    error, error_before = (calibration_error(*side) for side in sides)
    return Likelihood(error, error_before, negative_log_likelihood(*sides[0]))


def _parts(candidate: Predictions, examples: Examples, before: Right, right: Right) -> Parts:
    truth = label_indices(candidate.labels, examples).numpy()
    masks = {label: truth == i for i, label in enumerate(candidate.labels)}
    buckets = [] if candidate.tokens is None else length_buckets(candidate.tokens)
    return Parts(
        tuple(ClassRecall.of(name, before[m], right[m]) for name, m in masks.items()),
        tuple(
            (part.column, part.value, PartQuality.of(before[part.members], right[part.members]))
            for part in slices_of(examples)
        ),
        tuple(
            (b.tokens_from, b.tokens_to, PartQuality.of(before[b.members], right[b.members]))
            for b in buckets
        ),
    )
