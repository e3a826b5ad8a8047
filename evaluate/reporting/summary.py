"""A document of `evaluate` as the report tells it: rows, settings, and what to ship.

What is read here came from models and data of unknown origin: every text is made one line without
characters that steer a terminal or the direction of the text.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Self

from tcompress.console import printable

from ..entry import (
    MetricWords,
    drop_interval_of,
    drop_of,
    interval_of,
    is_proved_by_examples,
    metric_of,
    value_of,
    words_of,
)
from ..pareto import beats
from ..speedups import is_decided, is_sure

DEFAULT_MARGIN = 0.01
"""Drop that may be shipped where the document names no margin."""

_LONGEST_NAME = 32
_SURE_STEP = 1e-9

# What a document by another version, or of data without labels, may lack.
_DOCUMENT_DEFAULTS: dict[str, Any] = {
    "gpu": None,
    "heads": None,
    "margin": None,
    "earlier": [],
    "flipped": [],
    "mixes": [],
    "notes": [],
    "operators": [],
}
_MEASUREMENT_DEFAULTS: dict[str, Any] = {
    "accuracy_drop": None,
    "accuracy_drop_interval": None,
    "accuracy_interval": None,
    "agreement": None,
    "calibration_error": None,
    "classes": [],
    "digest": None,
    "divergence": None,
    "divergence_p99": None,
    "flips": None,
    "heads": [],
    "lengths": [],
    "load_ms": None,
    "macs": None,
    "memory_peak_bytes": None,
    "metric_intervals": {},
    "negative_log_likelihood": None,
    "neurons": [],
    "not_inferior": None,
    "pareto": None,
    "size_bytes": None,
    "slices": [],
    "stale": False,
    "throughput_per_s": None,
}

Setting = tuple[str, int, int]
"""Device, batch and tokens; what is compared shares them."""


class Standing(StrEnum):
    """How a measurement compares with the baseline."""

    BASELINE = "baseline"
    PROVED = "loss proved small"
    UNPROVED = "loss not proved small"
    WORSE = "worse than the margin"
    EARLIER = "earlier run"


@dataclass(frozen=True)
class Row:
    """One measurement as the report shows it.

    Attributes:
        number: Its number in the tables, from 1.
        raw: The measurement as it stands in the document, with text cleaned and gaps filled.
        margin: Drop in the metric that decides, or in agreement, that may be shipped.
        is_baseline: Whether it is the baseline on its device.
        is_earlier: Whether it is of a former run, and its artifact gone or replaced.
    """

    number: int
    raw: dict[str, Any]
    margin: float
    is_baseline: bool = False
    is_earlier: bool = False

    @property
    def name(self) -> str:
        """Name of the artifact, shortened."""
        return shortened(str(self.raw["artifact"]))

    @property
    def setting(self) -> Setting:
        """Device, batch and tokens."""
        return self.raw["device"], self.raw["batch"], self.raw["tokens"]

    @property
    def latency_ms(self) -> float:
        """Median latency."""
        return float(self.raw["latency_ms"]["median"])

    @property
    def latency_interval_ms(self) -> tuple[float, float]:
        """Interval of the speed-up, as milliseconds around the median."""
        speedup = self.raw["speedup"]
        baseline_ms = self.latency_ms * speedup["value"]
        return baseline_ms / speedup["high"], baseline_ms / speedup["low"]

    @property
    def quality(self) -> float:
        """The metric that decides; without labels agreement with the baseline."""
        return value_of(self.raw)

    @property
    def quality_interval(self) -> dict[str, float] | None:
        """Interval of the metric that decides; None where there is none."""
        return interval_of(self.raw)

    @property
    def drop_interval(self) -> dict[str, float] | None:
        """Bounds of the drop; None where it is not known."""
        return drop_interval_of(self.raw)

    @property
    def known_drop(self) -> float | None:
        """Drop in the metric that decides; None where nothing says which answers are right."""
        return drop_of(self.raw)

    @property
    def drop(self) -> float:
        """Drop in the metric that decides, or how far the answers are from the baseline's."""
        if self.known_drop is not None:
            return self.known_drop
        return 0.0 if is_proved_by_examples(self.raw) else 1 - self.quality

    @property
    def standing(self) -> Standing:
        """How it compares with the baseline."""
        if self.is_earlier:
            return Standing.EARLIER
        if self.is_baseline:
            return Standing.BASELINE
        if self.raw["not_inferior"]:
            return Standing.PROVED
        interval = self.drop_interval
        shown = self.drop if interval is None else float(interval["low"])
        within = shown < self.margin + (_SURE_STEP if interval is None else 0)
        return Standing.UNPROVED if within else Standing.WORSE

    @property
    def is_faster(self) -> bool:
        """Whether it was shown to be faster than the baseline."""
        if self.is_baseline or not self.is_timed:
            return False
        speedup = self.raw["speedup"]
        return bool(speedup.get("verdict") in (None, "faster") and speedup["low"] > 1)

    @property
    def is_timed(self) -> bool:
        """Whether there were enough rounds for its speed-up to have an interval."""
        return is_sure(self.raw["speedup"])

    @property
    def is_placed(self) -> bool:
        """Whether it is known if it is faster than the baseline; else its place is a guess."""
        return self.is_baseline or is_decided(self.raw["speedup"])

    @property
    def shape(self) -> tuple[list[int], list[int]]:
        """Heads and neurons per layer."""
        return self.raw["heads"], self.raw["neurons"]


@dataclass(frozen=True)
class Summary:
    """A document as the report tells it.

    Attributes:
        document: The document, with text cleaned and gaps filled.
        rows: Every measurement.
        earlier: Measurements of former runs.
    """

    document: dict[str, Any]
    rows: tuple[Row, ...]
    earlier: tuple[Row, ...] = ()

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """Read a document of `evaluate`."""
        clean = _filled(cleaned(document), _DOCUMENT_DEFAULTS)
        margin = clean["margin"] or DEFAULT_MARGIN
        rows = tuple(
            Row(number, _filled(raw, _MEASUREMENT_DEFAULTS), margin, _is_baseline(raw, clean))
            for number, raw in enumerate(clean["measurements"], start=1)
        )
        earlier = tuple(
            Row(number, _filled(raw, _MEASUREMENT_DEFAULTS), margin, is_earlier=True)
            for number, raw in enumerate(clean["earlier"], start=len(rows) + 1)
        )
        return cls(clean, rows, earlier)

    @property
    def margin(self) -> float:
        """Drop that may be shipped, a fraction."""
        return float(self.document["margin"] or DEFAULT_MARGIN)

    @property
    def baseline(self) -> Row | None:
        """The baseline in the first setting it was measured in."""
        return next((row for row in self.rows if row.is_baseline), None)

    @cached_property
    def chosen(self) -> Row | None:
        """What to ship in that setting; None where nothing faster is proved good enough."""
        return None if self.baseline is None else self.chosen_at(self.baseline.setting)

    @cached_property
    def candidate(self) -> Row | None:
        """What to ship there, or else what would be if its accuracy were proved."""
        if self.baseline is None:
            return None
        return self.chosen or self.likely_at(self.baseline.setting)

    @cached_property
    def all_chosen(self) -> list[Row]:
        """The recommended measurement of every setting that has one."""
        found = (self.chosen_at(setting) for setting in self.settings)
        return [row for row in found if row is not None]

    def chosen_at(self, setting: Setting) -> Row | None:
        """Return the fastest measurement proved good enough, and faster than the baseline."""
        return self._fastest(setting, Standing.PROVED)

    def likely_at(self, setting: Setting) -> Row | None:
        """Return the fastest that only seems good enough, if it is faster than the proved ones."""
        likely, proved = self._fastest(setting, Standing.UNPROVED), self.chosen_at(setting)
        if likely and proved and likely.latency_ms >= proved.latency_ms:
            return None
        return likely

    def base_at(self, setting: Setting) -> Row | None:
        """Return the baseline of a setting."""
        return next((row for row in self.rows_at(setting) if row.is_baseline), None)

    @property
    def has_labels(self) -> bool:
        """Whether it was measured how good the answers are, not only how far they moved."""
        return all(is_proved_by_examples(row.raw) for row in self.rows)

    @cached_property
    def metric(self) -> str:
        """The metric that decides."""
        return metric_of(self.rows[0].raw)

    @cached_property
    def words(self) -> MetricWords:
        """How people read the metric that decides."""
        return words_of(self.metric)

    @cached_property
    def other_metrics(self) -> dict[str, MetricWords]:
        """How people read the other metrics, by name."""
        names = dict.fromkeys(name for row in self.rows for name in row.raw["metrics"])
        return {name: words_of(name) for name in names if name != self.metric}

    def knows(self, key: str) -> bool:
        """Tell whether any measurement has a value under a key."""
        return any(row.raw[key] is not None for row in self.rows)

    @cached_property
    def settings(self) -> list[Setting]:
        """Every combination of device, batch and tokens; that of `baseline` comes first."""
        first = [self.baseline] if self.baseline else []
        return list(dict.fromkeys(row.setting for row in (*first, *self.rows)))

    @cached_property
    def compressed(self) -> Row | None:
        """The candidate if it was pruned, or else the smallest one that was."""
        if self.baseline is None:
            return None
        whole = self.baseline.shape
        pruned = [row for row in self.rows if row.shape != whole and not row.raw["stale"]]
        if self.candidate in pruned:
            return self.candidate
        return min(pruned, key=lambda row: (row.raw["macs"], row.number), default=None)

    def rows_at(self, setting: Setting) -> list[Row]:
        """Return the measurements of one setting."""
        return [row for row in self.rows if row.setting == setting]

    def front_at(self, setting: Setting) -> list[Row]:
        """Return what nothing beats on both sides, among the baseline and what is proved."""
        rows = [r for r in self.rows_at(setting) if not r.raw["stale"]]
        if any(row.raw["pareto"] is not None for row in rows):
            return [row for row in rows if row.raw["pareto"]]
        fit = [r for r in rows if r.standing in (Standing.BASELINE, Standing.PROVED)]
        return [row for row in fit if not any(beats(other, row) for other in fit)]

    def _fastest(self, setting: Setting, standing: Standing) -> Row | None:
        fitting = [
            row
            for row in self.rows_at(setting)
            if row.is_faster and row.standing is standing and not row.raw["stale"]
        ]
        return min(fitting, key=lambda row: row.latency_ms, default=None)


def shortened(text: str) -> str:
    """Return the end of a long name."""
    return text if len(text) <= _LONGEST_NAME else f"…{text[1 - _LONGEST_NAME :]}"


def cleaned(value: Any) -> Any:
    """Return a document whose texts are one line each and steer nothing."""
    if isinstance(value, str):
        return printable(" ".join(value.split()))
    if isinstance(value, dict):
        return {cleaned(key): cleaned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(item) for item in value]
    return value


def _filled(entry: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return an entry in which absent keys, and null where a list belongs, are the default."""
    given = {key: value for key, value in entry.items() if value is not None}
    return entry | defaults | given


def _is_baseline(raw: dict[str, Any], document: dict[str, Any]) -> bool:
    """Tell the baseline from the same model in another format, which was raced against it."""
    return raw["artifact"] == document["baseline"] and not raw["speedup"].get("blocks")
