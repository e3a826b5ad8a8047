"""The page: one file that needs nothing from outside, built around four questions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import speedups
from ..entry import MetricWords, words_of
from .figures import (
    Mix,
    Plane,
    ShapeTable,
    head_picture,
    mixes,
    operator_picture,
    planes,
    shape_tables,
    width_picture,
)
from .summary import Row, Summary, shortened
from .wording import (
    condition_facts,
    data_name,
    format_bytes,
    format_macs,
    format_ms,
    interval_words,
    lead_of,
    machine_facts,
    margin_words,
    noise_sentence,
    recommendations,
    setting_words,
)

_TEMPLATE = "report.html.j2"
_MOST_LINES = 40
_MOST_ROWS = 60
_MOST_FLIP_GROUPS = 6
_MOST_OPERATORS = 12


class Move(NamedTuple):
    """A column on how far answers moved.

    Attributes:
        key: Key in an entry.
        title: Head of the column.
        pattern: Form of its numbers.
        scale: By what they are multiplied.
    """

    key: str
    title: str
    pattern: str
    scale: int = 1


_MOVES = (
    Move("agreement", "same answer, %", "%.2f", 100),
    Move("divergence", "divergence, nats", "%.4f"),
    Move("divergence_p99", "its p99", "%.3f"),
    Move("calibration_error", "calibration error", "%.3f"),
    Move("negative_log_likelihood", "log-loss, nats", "%.3f"),
)
_FILTERS: dict[str, Callable[..., Any]] = {
    "bounds": speedups.bounds,
    "bytes": format_bytes,
    "data_name": data_name,
    "macs": format_macs,
    "ms": format_ms,
    "setting": setting_words,
    "short": shortened,
    "times": speedups.estimate,
}
_TESTS: dict[str, Callable[..., bool]] = {
    "of_baseline": speedups.is_of_baseline,
    "sure": speedups.is_sure,
    "wide": speedups.is_wide,
}


@dataclass(frozen=True)
class View:
    """What the template shows.

    Attributes:
        summary: The document.
        planes: Accuracy against latency, per setting.
        head_map: Picture of the importance of every head, or None.
        widths: Picture of what is left in each layer, or None.
        operators: Picture of the time by operator, or None.
        shapes: Latencies by batch and length, per device.
        mixes: Time on the real lengths.
    """

    summary: Summary
    planes: list[Plane]
    head_map: str | None
    widths: str | None
    operators: str | None
    shapes: list[ShapeTable]
    mixes: list[Mix]

    @classmethod
    def of(cls, summary: Summary) -> "View":
        """Draw the pictures of a document."""
        return cls(
            summary,
            planes(summary),
            head_picture(summary),
            width_picture(summary),
            operator_picture(summary),
            shape_tables(summary),
            mixes(summary),
        )

    @property
    def subject(self) -> Row | None:
        """The measurement whose losses are shown in detail."""
        others = [row for row in self.summary.rows if not row.is_baseline]
        found = self.summary.candidate or self.summary.compressed
        return found or (others[-1] if others else None)

    @property
    def rows(self) -> list[Row]:
        """Measurements of the long tables; the others are in the JSON."""
        return list(self.summary.rows[:_MOST_ROWS])

    @property
    def on_gpu(self) -> bool:
        """Whether some calls were measured by a GPU's own clock."""
        return any("kernels" in row.raw["latency_ms"] for row in self.rows)

    @property
    def moves(self) -> list[Move]:
        """How far answers moved, as far as it is known for this task."""
        return [move for move in _MOVES if self.summary.knows(move.key)]

    @property
    def right_words(self) -> MetricWords:
        """How people read the share of right answers, which parts of the data are told by."""
        return words_of("accuracy")

    @property
    def harms_classes(self) -> bool:
        """Whether any class is found less often than before."""
        return any(_recall_change(part) < 0 for part in self.classes)

    @property
    def harms_slices(self) -> bool:
        """Whether fewer answers are right in any slice than before."""
        return any((part.get("drop") or 0) > 0 for part in self.slices)

    @property
    def head_span(self) -> tuple[float, float]:
        """Lowest and highest score of a head."""
        flat = [score for row in self.summary.document["heads"]["scores"] for score in row]
        return min(flat, default=0.0), max(flat, default=0.0)

    @property
    def classes(self) -> list[dict[str, Any]]:
        """Classes of the subject, most harmed first."""
        found = self.subject.raw["classes"] if self.subject else []
        return sorted(found, key=_recall_change)[:_MOST_LINES]

    @property
    def slices(self) -> list[dict[str, Any]]:
        """Slices of the subject, most harmed first."""
        found = self.subject.raw["slices"] if self.subject else []
        return sorted(found, key=lambda part: -(part.get("drop") or 0))[:_MOST_LINES]

    @property
    def lengths(self) -> list[dict[str, Any]]:
        """Lengths of the subject, shortest first."""
        found = self.subject.raw["lengths"] if self.subject else []
        return list(found[:_MOST_LINES])

    @property
    def flipped(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """Examples whose verdict changed, by artifact; the subject's come first."""
        groups: dict[str, list[dict[str, Any]]] = {}
        if self.subject:
            groups[self.subject.raw["artifact"]] = []
        for example in self.summary.document["flipped"]:
            groups.setdefault(example["artifact"], []).append(example)
        return [(name, found) for name, found in groups.items() if found][:_MOST_FLIP_GROUPS]

    @property
    def profiles(self) -> list[dict[str, Any]]:
        """Time by operator, with the slowest operators of each artifact."""
        return [
            entry | {"operators": (entry.get("operators") or [])[:_MOST_OPERATORS]}
            for entry in self.summary.document["operators"]
        ]


def render_html(document: dict[str, Any]) -> str:
    """Return the page.

    Args:
        document: The document of `evaluate`.

    Returns:
        The text of the file.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("tcompress.evaluate.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= _FILTERS
    environment.tests |= _TESTS
    view = View.of(Summary.of(document))
    facts = view.summary.document["environment"]
    return environment.get_template(_TEMPLATE).render(
        view=view,
        summary=view.summary,
        document=view.summary.document,
        intervals=interval_words(view.summary),
        lead=lead_of(view.summary),
        recommendations=recommendations(view.summary)[1:],
        machine=machine_facts(facts),
        conditions=condition_facts(facts),
        noise=noise_sentence(facts),
        margin=margin_words(view.summary),
    )


def _recall_change(part: dict[str, Any]) -> float:
    recalls: Sequence[float | None] = part["recall"], part["recall_baseline"]
    before, after = (value or 0.0 for value in reversed(recalls))
    return after - before
