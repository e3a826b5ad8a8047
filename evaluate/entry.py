"""What an entry of the report says about quality, whatever the task and the version of it.

Entries by former versions know accuracy only, and agreement where there are no labels.
"""

from dataclasses import dataclass
from typing import Any

Entry = dict[str, Any]

UNPROVED_METRICS = ("agreement", "correlation")
"""Metrics that compare with the baseline's answers, where nothing says which are right."""


@dataclass(frozen=True)
class MetricWords:
    """How people read a metric.

    Attributes:
        name: What it is called in a sentence.
        short: The same in at most nine letters, for the head of a column.
        is_fraction: Whether it is told in per cent and points.
        right: What a right answer is, where `name` does not say it; else empty.
    """

    name: str
    short: str
    is_fraction: bool = True
    right: str = ""

    @property
    def scale(self) -> int:
        """By what values are multiplied to be shown."""
        return 100 if self.is_fraction else 1

    @property
    def title(self) -> str:
        """Head of a column of values."""
        return f"{self.name}, %" if self.is_fraction else self.name

    @property
    def drop_title(self) -> str:
        """Head of a column of drops."""
        return "drop, points" if self.is_fraction else "drop"

    def number(self, value: float) -> str:
        """Return a value as it stands in a column."""
        return f"{100 * value:.2f}" if self.is_fraction else f"{value:.4f}"

    def shown(self, value: float) -> str:
        """Return a value with its unit."""
        return f"{self.number(value)} %" if self.is_fraction else self.number(value)

    def change(self, value: float) -> str:
        """Return a drop with its sign, as it stands in a column."""
        return f"{100 * value:+.2f}" if self.is_fraction else f"{value:+.4f}"

    def distance(self, value: float) -> str:
        """Return a difference with its unit."""
        return f"{self.number(value)} points" if self.is_fraction else self.number(value)

    def margin(self, value: float) -> str:
        """Return a margin as a reader would say it."""
        if not self.is_fraction:
            return f"{value:g}"
        points = 100 * value
        return f"{points:g} point" + ("" if points == 1 else "s")


_ALL_TAGS = "an example is right where all of its tags are"
_WORDS = {
    "accuracy": MetricWords("accuracy", "accuracy"),
    "agreement": MetricWords("agreement", "agreement"),
    "correlation": MetricWords("correlation with the baseline", "correl.", is_fraction=False),
    "macro_f1": MetricWords("macro-F1", "macro F1"),
    "mcc": MetricWords("MCC", "MCC", is_fraction=False),
    "balanced_accuracy": MetricWords("balanced accuracy", "balanced"),
    "micro_f1": MetricWords(
        "micro F1", "micro F1", right="an example is right where exactly its labels were given"
    ),
    "exact_match": MetricWords("exact match", "exact"),
    "f1": MetricWords("answer F1", "answer F1", right="an answer is right where it matches one"),
    "entity_f1": MetricWords("entity F1", "entity F1", right=_ALL_TAGS),
    "entity_precision": MetricWords("entity precision", "precision"),
    "entity_recall": MetricWords("entity recall", "recall"),
    "word_accuracy": MetricWords("word accuracy", "words"),
    "pearson": MetricWords("Pearson correlation", "Pearson", is_fraction=False),
    "spearman": MetricWords("Spearman correlation", "Spearman", is_fraction=False),
    "mse": MetricWords("mean squared error", "MSE", is_fraction=False),
    "cosine": MetricWords("mean cosine with the baseline", "cosine", is_fraction=False),
    "neighbour_agreement": MetricWords("same nearest neighbour", "neighbour"),
    "ndcg_at_10": MetricWords("nDCG@10", "nDCG@10", is_fraction=False),
    "recall_at_10": MetricWords("recall@10", "recall@10"),
}


def words_of(metric: str) -> MetricWords:
    """Return how people read a metric.

    Args:
        metric: Its name in the report.
    """
    told = metric.replace("_", " ")
    return _WORDS.get(metric) or MetricWords(told, told[:9], is_fraction=False)


def metric_of(entry: Entry) -> str:
    """Return the name of the metric that decides.

    Args:
        entry: One of the `measurements`.
    """
    found: str | None = entry.get("metric")
    return found or ("accuracy" if "accuracy" in entry["metrics"] else "agreement")


def value_of(entry: Entry) -> float:
    """Return the value of the metric that decides.

    Args:
        entry: One of the `measurements`.
    """
    return float(entry["metrics"][metric_of(entry)])


def drop_of(entry: Entry) -> float | None:
    """Return how far that metric dropped; None where nothing says which answers are right.

    Args:
        entry: One of the `measurements`.
    """
    found: float | None = entry.get("metric_drop", entry.get("accuracy_drop"))
    return found


def drop_interval_of(entry: Entry) -> dict[str, float] | None:
    """Return the bounds of that drop, or None.

    Args:
        entry: One of the `measurements`.
    """
    found: dict[str, float] | None = entry.get(
        "metric_drop_interval", entry.get("accuracy_drop_interval")
    )
    return found


def interval_of(entry: Entry) -> dict[str, float] | None:
    """Return the interval of the metric that decides, or None.

    Args:
        entry: One of the `measurements`.
    """
    found: dict[str, float] | None = (entry.get("metric_intervals") or {}).get(metric_of(entry))
    return found or entry.get("accuracy_interval")


def is_proved_by_examples(entry: Entry) -> bool:
    """Tell whether the metric that decides tells good answers from bad ones.

    Args:
        entry: One of the `measurements`.
    """
    return metric_of(entry) not in UNPROVED_METRICS
