"""The report of `evaluate`: one page that can be mailed, a text for a pull request, the numbers.

What is read here came from models and data of unknown origin. HTML is escaped by the template
engine, Markdown shows names as code, and characters that steer a terminal or the direction of the
text are replaced in both; the JSON holds everything as it was.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from tcompress.artifact import write_text_atomically
from tcompress.console import printable

from .charts import Point, Standing, head_map_svg, structure_svg, tradeoff_svg

ACCEPTED_DROP = 0.01
"""Drop in accuracy, or in agreement, up to which a measurement may be recommended."""

# That of the range of five rounds; from fewer nothing is concluded.
_LEAST_CONFIDENCE = 0.9
_TEMPLATE = "report.html.j2"
_MOST_PICTURES = 4
_LONGEST_NAME = 32
_CELLS_WITHOUT_PICTURE = 1200


Quote = Callable[[Any], str]
Setting = tuple[str, int, int]
"""Device, batch and tokens; what is compared shares them."""


@dataclass(frozen=True)
class Row:
    """One measurement as the report shows it.

    Attributes:
        number: Its number in the tables, from 1.
        raw: The measurement as it stands in the document, with text cleaned.
        is_baseline: Whether it is the baseline on its device.
    """

    number: int
    raw: dict[str, Any]
    is_baseline: bool

    @property
    def name(self) -> str:
        """Name of the artifact, shortened."""
        return _shortened(str(self.raw["artifact"]))

    @property
    def setting(self) -> Setting:
        """Device, batch and tokens."""
        return self.raw["device"], self.raw["batch"], self.raw["tokens"]

    @property
    def latency_ms(self) -> float:
        """Median latency."""
        return float(self.raw["latency_ms"]["median"])

    @property
    def quality(self) -> float:
        """Accuracy, or agreement with the baseline where there are no labels."""
        metrics = self.raw["metrics"]
        return float(metrics["accuracy"] if "accuracy" in metrics else metrics["agreement"])

    @property
    def drop(self) -> float:
        """Drop in accuracy, or part of the answers that differ from the baseline's."""
        drop = self.raw["accuracy_drop"]
        if drop is not None:
            return float(drop)
        return 0.0 if "accuracy" in self.raw["metrics"] else 1 - self.quality

    @property
    def is_accepted(self) -> bool:
        """Whether its drop is small enough to be recommended."""
        return self.drop <= ACCEPTED_DROP + 1e-9

    @property
    def is_faster(self) -> bool:
        """Whether it was shown to be faster than the baseline."""
        return not self.is_baseline and self.is_timed and self.raw["speedup"]["low"] > 1

    @property
    def is_timed(self) -> bool:
        """Whether there were enough rounds for its speed-up to have an interval."""
        return _is_sure(self.raw["speedup"])


@dataclass(frozen=True)
class Summary:
    """A document as the report tells it.

    Attributes:
        document: The document, with text cleaned.
        rows: Every measurement.
    """

    document: dict[str, Any]
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """Read a document of `evaluate`."""
        clean = _cleaned(document)
        return cls(
            clean,
            tuple(
                Row(number, raw, raw["artifact"] == clean["baseline"])
                for number, raw in enumerate(clean["measurements"], start=1)
            ),
        )

    @property
    def baseline(self) -> Row | None:
        """The baseline in the first setting it was measured in."""
        return next((row for row in self.rows if row.is_baseline), None)

    @property
    def chosen(self) -> Row | None:
        """The recommended measurement in that setting; None where nothing faster is good enough."""
        return None if self.baseline is None else self.chosen_at(self.baseline.setting)

    @cached_property
    def all_chosen(self) -> list[Row]:
        """The recommended measurement of every setting that has one."""
        found = (self.chosen_at(setting) for setting in self.settings)
        return [row for row in found if row is not None]

    def chosen_at(self, setting: Setting) -> Row | None:
        """Return the fastest measurement that is good enough and was shown to be faster."""
        fitting = [
            row
            for row in self.rows_at(setting)
            if row.is_faster and row.is_accepted and not row.raw["stale"]
        ]
        return min(fitting, key=lambda row: row.latency_ms, default=None)

    @property
    def has_labels(self) -> bool:
        """Whether accuracy was measured, not only agreement."""
        return all("accuracy" in row.raw["metrics"] for row in self.rows)

    @property
    def quality_name(self) -> str:
        """What tells good answers from bad ones here."""
        return "accuracy" if self.has_labels else "agreement with the baseline"

    @property
    def settings(self) -> list[Setting]:
        """Every combination of device, batch and tokens; that of `baseline` comes first."""
        first = [self.baseline] if self.baseline else []
        return list(dict.fromkeys(row.setting for row in (*first, *self.rows)))

    @property
    def compressed(self) -> Row | None:
        """The recommended encoder if it was pruned, or else the smallest one that was."""
        if self.baseline is None:
            return None
        whole = _shape(self.baseline)
        pruned = [row for row in self.rows if _shape(row) != whole and not row.raw["stale"]]
        if self.chosen in pruned:
            return self.chosen
        return min(pruned, key=lambda row: (row.raw["macs"], row.number), default=None)

    def rows_at(self, setting: Setting) -> list[Row]:
        """Return the measurements of one setting."""
        return [row for row in self.rows if row.setting == setting]


def write_report(document: dict[str, Any], directory: Path) -> list[Path]:
    """Write `report.html`, `report.md` and `report.json`.

    Args:
        document: The document of `evaluate`.
        directory: Where; created when missing.

    Returns:
        The three files.

    Raises:
        StorageError: If the file system refuses.
    """
    texts = {
        "report.html": render_html(document),
        "report.md": render_markdown(document),
        # ASCII, as a name from a file may hold what UTF-8 cannot.
        "report.json": json.dumps(document, indent=2, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        write_text_atomically(directory / name, text)
    return [directory / name for name in texts]


def render_html(document: dict[str, Any]) -> str:
    """Return the page: one file that needs nothing from outside.

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
    environment.filters |= {
        "bytes": format_bytes,
        "macs": format_macs,
        "ms": format_ms,
        "setting": setting_words,
    }
    summary = Summary.of(document)
    return environment.get_template(_TEMPLATE).render(
        summary=summary,
        document=summary.document,
        recommendations=recommendations(summary),
        accepted_points=100 * ACCEPTED_DROP,
        pictures=_tradeoff_pictures(summary),
        structure=_structure_picture(summary),
        head_map=_head_picture(summary),
        machine=machine_facts(summary.document["environment"]),
        noise=noise_sentence(summary.document["environment"]),
    )


def render_markdown(document: dict[str, Any]) -> str:
    """Return the text for a pull request.

    Args:
        document: The document of `evaluate`.

    Returns:
        The text of the file.
    """
    summary = Summary.of(document)
    clean, lines = summary.document, []
    (_, lead), *others = recommendations(summary, quote=_code)
    lines += [f"**{lead}**", ""]
    lines += [f"- {words}: {sentence}" for words, sentence in others]
    lines += [*([""] if others else []), *_markdown_table(summary), ""]
    data, facts = clean["data"], machine_facts(clean["environment"])
    split = f", {_code(data['split'])} split" if data["split"] else ""
    lines.append(f"Data: {_code(data['origin'])}{split}, {data['examples']:,} examples.")
    told = "; ".join(f"{fact} {_code(value)}" for fact, value in facts.items())
    lines += ["", f"Machine: {told}."]
    if noise := noise_sentence(clean["environment"]):
        lines += ["", noise]
    if notes := [note for note in (clean["gpu"], *clean["notes"]) if note]:
        lines += ["", *(f"- {_code(note)}" for note in notes)]
    return "\n".join(lines) + "\n"


def recommendation(summary: Summary, setting: Setting, quote: Quote = str) -> str:
    """Say in one sentence what to ship in a setting.

    Args:
        summary: The document.
        setting: Device, batch and tokens.
        quote: Marks a name as one.

    Returns:
        The sentence.
    """
    rows = summary.rows_at(setting)
    base, best = next((row for row in rows if row.is_baseline), None), summary.chosen_at(setting)
    if base is None:
        return "Nothing can be recommended, as the baseline was not measured."
    if best is None:
        others = "nothing else" if len(rows) == 1 else f"none of the {len(rows) - 1} others"
        return (
            f"Keep {quote(base.name)}: {others} was shown to be faster at a cost of at most "
            f"{100 * ACCEPTED_DROP:g} point of {summary.quality_name}.{_too_costly(rows, quote)}"
        )
    examples = summary.document["data"]["examples"]
    where = f"{best.raw['backend']}, {best.raw['precision']}"
    return (
        f"Ship {quote(best.name)} ({quote(where)}): {best.raw['speedup']['value']:.2f} times as "
        f"fast as {quote(base.name)} ({format_ms(best.latency_ms)} ms instead of "
        f"{format_ms(base.latency_ms)} ms) at {_quality_clause(best, summary)}, "
        f"on {examples:,} examples."
    )


def recommendations(summary: Summary, quote: Quote = str) -> list[tuple[str, str]]:
    """Return every setting in words, and what to ship there; the baseline's first one leads.

    Args:
        summary: The document.
        quote: Marks a name as one.

    Returns:
        Pairs of a setting and a sentence.
    """
    return [
        (setting_words(setting), recommendation(summary, setting, quote))
        for setting in summary.settings
    ]


def setting_words(setting: Setting) -> str:
    """Return a setting as a reader would say it."""
    device, batch, tokens = setting
    return f"{device}, batch {batch}, {tokens} tokens"


def machine_facts(environment: dict[str, Any]) -> dict[str, str]:
    """Return what a reader has to know about the machine, as short texts.

    Args:
        environment: The document's `environment`; what is missing in it is left out.

    Returns:
        Short texts by name.
    """
    features = [name for name, there in environment.get("cpu_features", {}).items() if there]
    versions = environment.get("versions", {})
    shown = ("tcompress", "torch", "transformers", "onnxruntime", "python")
    facts = {
        "CPU": environment.get("cpu"),
        "instruction sets": ", ".join(features),
        "CPUs usable": environment.get("cpus_usable"),
        "threads": environment.get("threads"),
        "memory": _optional(format_bytes, environment.get("memory_bytes")),
        "GPU": environment.get("gpu"),
        "system": environment.get("system"),
        "load before": _load(environment.get("load_before")),
        "load after": _load(environment.get("load_after")),
        "versions": ", ".join(f"{name} {versions[name]}" for name in shown if name in versions),
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def noise_sentence(environment: dict[str, Any]) -> str | None:
    """Say how much two timings of the same model differ here.

    Args:
        environment: The document's `environment`.

    Returns:
        The sentence; None where the noise was not measured.
    """
    floor = environment.get("noise_floor")
    if not floor:
        return None
    if not _is_sure(floor):
        return "Noise floor: not known, as there were too few rounds."
    width = max(abs(floor["high"] - 1), abs(1 - floor["low"]))
    return (
        f"Noise floor: the baseline timed against itself came out {floor['value']:.3f} times as "
        f"fast ({floor['low']:.3f} to {floor['high']:.3f}), so a difference below "
        f"{100 * width:.1f} % says nothing."
    )


def format_ms(value: float) -> str:
    """Return milliseconds with three significant digits."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def format_bytes(value: float) -> str:
    """Return a size in decimal units."""
    return _scaled(value, ("B", "kB", "MB", "GB", "TB"))


def format_macs(value: float) -> str:
    """Return a number of multiply-accumulates in decimal units."""
    return _scaled(value, ("", "k", "M", "G", "T"))


def _scaled(value: float, units: Sequence[str]) -> str:
    position = 0
    while value >= 999.5 and position < len(units) - 1:
        value, position = value / 1000, position + 1
    return f"{value:.3g} {units[position]}".rstrip()


def _too_costly(rows: Sequence[Row], quote: Quote) -> str:
    """Name what would be won, and given up, by the fastest measurement of all."""
    faster = [row for row in rows if row.is_faster and not row.raw["stale"]]
    if not faster:
        return ""
    best = min(faster, key=lambda row: row.latency_ms)
    return (
        f" The fastest, {quote(best.name)}, is {best.raw['speedup']['value']:.2f} times as fast "
        f"and gives up {100 * best.drop:.2f} points."
    )


def _quality_clause(row: Row, summary: Summary) -> str:
    if not summary.has_labels:
        return f"the same answer in {100 * row.quality:.2f} % of the cases"
    points = 100 * abs(row.drop)
    side = "below" if row.drop > 0 else "above"
    distance = f"{points:.2f} points {side} it" if points >= 0.005 else "the same as it"
    return f"{100 * row.quality:.2f} % accuracy, {distance}"


def _markdown_table(summary: Summary) -> list[str]:
    quality = "accuracy" if summary.has_labels else "agreement"
    texts = ("artifact", "backend", "device", "precision")
    numbers = ("batch × tokens", "latency, ms", "speed-up", f"{quality}, %", "drop, points", "size")
    rows = [(*texts, *numbers), ("---",) * len(texts) + ("---:",) * len(numbers)]
    rows += [tuple(_markdown_cells(row)) for row in summary.rows]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _markdown_cells(row: Row) -> list[str]:
    raw, speedup = row.raw, row.raw["speedup"]
    interval = f" ({speedup['low']:.2f}–{speedup['high']:.2f})" if row.is_timed else " (?)"
    drop = raw["accuracy_drop"]
    return [
        _code(row.name) + (" (out of date)" if raw["stale"] else ""),
        _code(raw["backend"]),
        _code(raw["device"]),
        _code(raw["precision"]),
        f"{raw['batch']} × {raw['tokens']}",
        format_ms(row.latency_ms),
        f"{speedup['value']:.2f}{'' if row.is_baseline else interval}",
        f"{100 * row.quality:.2f}",
        "–" if drop is None else f"{100 * drop:+.2f}",
        format_bytes(raw["size_bytes"]),
    ]


def _code(text: Any) -> str:
    """Return text as Markdown code, which neither links, nor mentions, nor ends a cell."""
    return "`" + str(text).replace("`", "'").replace("|", "¦") + "`"


def _tradeoff_pictures(summary: Summary) -> list[tuple[Setting, list[Row], str]]:
    """One picture per setting in which there is something to compare."""
    settings = [s for s in summary.settings if len(summary.rows_at(s)) > 1]
    return [
        (setting, summary.rows_at(setting), _tradeoff_picture(summary, setting, f"tradeoff{i}"))
        for i, setting in enumerate(settings[:_MOST_PICTURES])
    ]


def _tradeoff_picture(summary: Summary, setting: Setting, prefix: str) -> str:
    rows = summary.rows_at(setting)
    base = next((row for row in rows if row.is_baseline), None)
    chosen = summary.chosen_at(setting)
    points = [_point(row, base, chosen=row is chosen) for row in rows]
    told = "; ".join(f"{p.name}: {p.latency_ms:.3g} ms, {p.quality:.2f} %" for p in points)
    limit = 100 * (base.quality - ACCEPTED_DROP) if base and summary.has_labels else None
    return tradeoff_svg(
        prefix,
        points,
        quality=summary.quality_name,
        limit=limit,
        description=f"Measured on {setting_words(setting)}. {told}.",
    )


def _point(row: Row, base: Row | None, *, chosen: bool) -> Point:
    """Place a measurement; its latency interval is that of the speed-up, in milliseconds."""
    middle, speedup = row.latency_ms, row.raw["speedup"]
    low, high = speedup["value"] / speedup["high"], speedup["value"] / speedup["low"]
    interval = row.raw["accuracy_interval"] or {"low": row.quality, "high": row.quality}
    standing = Standing.WITHIN if row.is_accepted else Standing.WORSE
    return Point(
        name=row.name,
        latency_ms=middle,
        latency_low=middle * low,
        latency_high=middle * high,
        quality=100 * row.quality,
        quality_low=100 * interval["low"],
        quality_high=100 * interval["high"],
        standing=Standing.BASELINE if row is base else standing,
        chosen=chosen,
    )


def _structure_picture(summary: Summary) -> str | None:
    base, row = summary.baseline, summary.compressed
    if base is None or row is None:
        return None
    source, kept = _shape(base), _shape(row)
    layers = "; ".join(
        f"layer {i}: {heads} heads, {neurons} neurons"
        for i, (heads, neurons) in enumerate(zip(*kept, strict=True))
    )
    return structure_svg(
        "structure", source, kept, description=f"What {row.name} keeps of {base.name}. {layers}."
    )


def _head_picture(summary: Summary) -> str | None:
    heads = summary.document["heads"]
    if heads is None or sum(map(len, heads["scores"])) > _CELLS_WITHOUT_PICTURE:
        return None
    total = sum(map(len, heads["scores"]))
    removed = total - sum(map(len, heads["kept"]))
    return head_map_svg(
        "heads",
        heads["scores"],
        heads["kept"],
        description=f"Scores by {heads['criterion']}; {removed} of {total} heads are removed. "
        "The numbers are in the table below.",
    )


def _is_sure(interval: dict[str, Any]) -> bool:
    return bool(interval.get("confidence", 1.0) >= _LEAST_CONFIDENCE)


def _shape(row: Row) -> tuple[list[int], list[int]]:
    return row.raw["heads"], row.raw["neurons"]


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else f"…{text[1 - _LONGEST_NAME :]}"


def _load(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        return ", ".join(f"{part:.2f}" for part in value)
    return None if value is None else f"{value:.2f}"


def _optional(function: Any, value: Any) -> Any:
    return None if value is None else function(value)


def _cleaned(value: Any) -> Any:
    """Return a document whose texts are one line each and steer nothing."""
    if isinstance(value, str):
        return printable(" ".join(value.split()))
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(item) for item in value]
    return value
