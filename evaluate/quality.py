"""How good a candidate's answers are, and what became of the baseline's."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tcompress.data import Examples
from tcompress.encoder import label_indices
from tcompress.tasks import Task

from .accuracy import Predictions, correctness
from .answers import read_answers
from .calibration import calibration_error, divergences, negative_log_likelihood
from .flips import Flip, flipped_examples
from .metrics import CLASSIFICATION, confusion
from .noninferiority import PairedCounts, damage_bounds
from .scored import scored_numbers
from .scored_drop import metric_interval, scored_drop
from .slices import ClassRecall, PartQuality, Right, length_buckets, slices_of
from .statistics import Interval, accuracy_interval, bootstrap_intervals
from .task_quality import (
    ScoredPair,
    alike,
    found_by_class,
    score_beside,
    wholly_right,
)

METRICS = ("accuracy", "macro_f1", "mcc", "balanced_accuracy")
"""What is reported of a classifier; better when higher."""


@dataclass(frozen=True)
class Displacement:
    """How far the candidate's answers moved from the baseline's, right or wrong.

    Attributes:
        agreement: Fraction of the examples that both answer alike; None of numbers and vectors.
        changed: Number of the others, likewise.
        divergence: Mean KL(baseline || candidate) in nats; None if the classes differ.
        divergence_p99: 99th percentile of it over the examples, likewise.
    """

    agreement: float | None
    changed: int | None
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
        metrics: Of classes `accuracy`, `macro_f1`, `mcc` and `balanced_accuracy`, of other tasks
            those of `scored`; without labels `agreement` with the baseline, of numbers their
            `correlation` with the baseline's.
        main: The metric that decides.
        displacement: How far the answers moved.
        intervals: 95 % interval of each metric; empty without labels.
        pairs: Answers right in all their parts beside the baseline's; None without labels, and of
            numbers and vectors.
        drop: How far the deciding metric fell below the baseline's; None without labels.
        drop_interval: Bounds of it, each with an error of 0.05; of the baseline itself exactly 0.
            None without labels.
        likelihood: How well the probabilities fit; None without labels.
        parts: The same on parts of the examples; empty without labels.
        flipped: Examples that flipped, the most confident ones.
    """

    metrics: dict[str, float]
    main: str
    displacement: Displacement
    intervals: dict[str, Interval] = field(default_factory=dict)
    pairs: PairedCounts | None = None
    drop: float | None = None
    drop_interval: Interval | None = None
    likelihood: Likelihood | None = None
    parts: Parts = Parts()
    flipped: tuple[Flip, ...] = ()

    @property
    def interval(self) -> Interval | None:
        """Interval of the deciding metric; None without labels."""
        return self.intervals.get(self.main)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the flipped examples, which stand in the document by artifact."""
        pairs, moved, likelihood = self.pairs, self.displacement, self.likelihood
        flips = None if pairs is None else {"lost": pairs.lost, "gained": pairs.gained}
        bounds = self.drop_interval and asdict(self.drop_interval)
        of_classes = self.main == "accuracy"
        return {
            "metric": self.main,
            "metrics": self.metrics,
            "metric_drop": self.drop,
            "metric_drop_interval": bounds,
            "metric_intervals": {name: asdict(found) for name, found in self.intervals.items()},
            "accuracy_interval": asdict(self.interval) if self.interval and of_classes else None,
            "accuracy_drop": self.drop if of_classes else None,
            "accuracy_drop_interval": bounds if of_classes else None,
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
    if candidate.task is not Task.CLASSIFICATION:
        return _judge_task(candidate, baseline, examples)
    moved = Displacement.between(baseline, candidate)
    if examples.labels is None:
        return _without_labels(candidate, baseline, moved)
    truth = label_indices(candidate.labels, examples).numpy()
    before, right = correctness(baseline, examples), correctness(candidate, examples)
    pairs = PairedCounts.from_correct(before, right)
    counts = confusion(truth, candidate.classes, len(candidate.labels))
    metrics = {name: CLASSIFICATION[name] for name in METRICS}
    wilson = accuracy_interval(int(right.sum()), len(right))
    return Quality(
        metrics={name: float(metric(counts)) for name, metric in metrics.items()},
        main="accuracy",
        displacement=moved,
        intervals=bootstrap_intervals(counts, metrics) | {"accuracy": wilson},
        pairs=pairs,
        drop=pairs.damage,
        drop_interval=Interval(0, 0, 1) if candidate is baseline else damage_bounds(pairs),
        likelihood=_likelihood(candidate, baseline, examples),
        parts=_parts(candidate, baseline, examples, before, right),
        flipped=tuple(flipped_examples(candidate, baseline, examples)),
    )


def _without_labels(candidate: Predictions, baseline: Predictions, moved: Displacement) -> Quality:
    if moved.agreement is not None:
        return Quality({"agreement": moved.agreement}, "agreement", moved)
    numbers = scored_numbers(baseline.logits[:, 0], candidate.logits[:, 0])
    value = float(np.nan_to_num(numbers.values()["pearson"]))
    return Quality({"correlation": value}, "correlation", moved)


def _judge_task(candidate: Predictions, baseline: Predictions, examples: Examples) -> Quality:
    """Judge answers that are not classes."""
    same = alike(baseline, candidate, examples)
    changed = None if same is None else len(examples) - same
    agreement = None if same is None else same / len(examples)
    moved = Displacement(agreement, changed, None, None)
    pairs = score_beside(baseline, candidate, examples)
    if not pairs:
        return _without_labels(candidate, baseline, moved)
    first = pairs[0]
    metrics = {name: value for pair in pairs for name, value in pair.after.values().items()}
    drop, bounds = _task_drop(first, is_baseline=candidate is baseline)
    quality = Quality(
        # A constant side correlates with nothing.
        metrics={name: float(np.nan_to_num(value)) for name, value in metrics.items()},
        main=first.main,
        displacement=moved,
        intervals=_task_intervals(pairs),
        drop=drop,
        drop_interval=bounds,
    )
    before, right = (wholly_right(side, examples) for side in (baseline, candidate))
    if before is None or right is None:
        return quality
    return replace(
        quality,
        pairs=PairedCounts.from_correct(before, right),
        parts=_parts(candidate, baseline, examples, before, right),
        flipped=tuple(flipped_examples(candidate, baseline, examples)),
    )


def _task_intervals(pairs: Sequence[ScoredPair]) -> dict[str, Interval]:
    """Return the intervals of all metrics, but for those that the bootstrap has no answer to."""
    found = {
        name: metric_interval(pair.after, metric)
        for pair in pairs
        for name, metric in pair.after.metrics.items()
    }
    return {
        name: interval
        for name, interval in found.items()
        if np.isfinite([interval.low, interval.high]).all()
    }


def _task_drop(pair: ScoredPair, *, is_baseline: bool) -> tuple[float, Interval]:
    """Return how far the deciding metric dropped, and bounds that are never beyond the possible."""
    if is_baseline:
        return 0.0, Interval(0, 0, 1)
    found, most = scored_drop(pair.before, pair.after, pair.main), _largest_drop(pair.main)
    values = np.nan_to_num([found.before, found.after])
    low, high = np.clip([found.bounds.low, found.bounds.high], -most, most)
    bounds = Interval(float(low), float(high), found.bounds.confidence)
    return float(values[0] - values[1]), bounds


def _largest_drop(metric: str) -> float:
    """Return from how high to how low a metric can fall."""
    return 2.0 if metric in ("pearson", "cosine") else 1.0


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


def _parts(
    candidate: Predictions, baseline: Predictions, examples: Examples, before: Right, right: Right
) -> Parts:
    found, found_before = (found_by_class(side, examples) for side in (candidate, baseline))
    buckets = [] if candidate.tokens is None else length_buckets(candidate.tokens)
    return Parts(
        tuple(ClassRecall.of(name, found_before[name], now) for name, now in found.items()),
        tuple(
            (part.column, part.value, PartQuality.of(before[part.members], right[part.members]))
            for part in slices_of(examples)
        ),
        tuple(
            (b.tokens_from, b.tokens_to, PartQuality.of(before[b.members], right[b.members]))
            for b in buckets
        ),
    )
