"""The pictures of a document: which there are, and what each of them shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .pictures import bars, operators, shapes
from .pictures.heads import head_map_svg
from .pictures.tradeoff import Point, tradeoff_svg
from .pictures.widths import widths_svg
from .summary import Row, Setting, Summary, shortened
from .wording import format_ms, setting_words

_MOST_PICTURES = 4
_MOST_SETTINGS = 12
_MOST_LINES = 6
_MOST_EARLIER = 12
_CELLS_WITHOUT_PICTURE = 1200


@dataclass(frozen=True)
class Plane:
    """Quality against latency in one setting.

    Attributes:
        setting: Device, batch and tokens.
        rows: What was measured there; the baseline too.
        earlier: What former runs measured there.
        front: Names of the rows that nothing beats.
        picture: The picture; None where there is nothing to compare.
    """

    setting: Setting
    rows: list[Row]
    earlier: list[Row]
    front: list[Row]
    picture: str | None


@dataclass(frozen=True)
class ShapeTable:
    """Median latencies of one device by batch and length.

    Attributes:
        device: The device.
        settings: Its settings, the columns.
        rows: Per artifact the name and one measurement, or None, for every setting.
        picture: The picture.
    """

    device: str
    settings: list[Setting]
    rows: list[tuple[str, list[Row | None]]]
    picture: str


@dataclass(frozen=True)
class Mix:
    """Time on the real lengths in one scenario.

    Attributes:
        title: Scenario, device and batch in words.
        entries: One per artifact.
        picture: Examples per second, as bars.
    """

    title: str
    entries: list[dict[str, Any]]
    picture: str


def planes(summary: Summary) -> list[Plane]:
    """Return a plane for the first settings; beyond the first few they have a table only.

    Args:
        summary: The document.
    """
    found = []
    for number, setting in enumerate(summary.settings[:_MOST_SETTINGS]):
        rows, front = summary.rows_at(setting), summary.front_at(setting)
        earlier = [row for row in summary.earlier if row.setting == setting][:_MOST_EARLIER]
        drawn = len(rows) + len(earlier) > 1 and number < _MOST_PICTURES
        picture = _plane_picture(summary, setting, earlier, number) if drawn else None
        found.append(Plane(setting, rows, earlier, front, picture))
    return found


def head_picture(summary: Summary) -> str | None:
    """Draw the importance of every head; None without scores, or with too many for a picture.

    Args:
        summary: The document.
    """
    heads = summary.document["heads"]
    if heads is None or sum(map(len, heads["scores"])) > _CELLS_WITHOUT_PICTURE:
        return None
    return head_map_svg(
        "heads",
        heads["scores"],
        heads["kept"],
        description=f"Scores by {heads['criterion']}; removed heads are crossed out. "
        "The numbers are in the table below.",
    )


def width_picture(summary: Summary) -> str | None:
    """Draw heads and neurons per layer before and after; None where nothing was pruned.

    Args:
        summary: The document.
    """
    base, row = summary.baseline, summary.compressed
    if base is None or row is None or len(row.shape[0]) != len(base.shape[0]):
        return None
    layers = "; ".join(
        f"layer {i}: {heads} heads, {neurons} neurons"
        for i, (heads, neurons) in enumerate(zip(*row.shape, strict=True))
    )
    return widths_svg(
        "widths",
        base.shape,
        row.shape,
        description=f"What {row.name} keeps of {base.name}. {layers}.",
    )


def operator_picture(summary: Summary) -> str | None:
    """Draw the time by operator of the first few artifacts; None where no profile was taken.

    Args:
        summary: The document.
    """
    profiles = [p for p in summary.document["operators"] if p.get("operators")][:_MOST_LINES]
    if not profiles:
        return None
    drawn = [
        operators.Bar(
            shortened(profile["artifact"]),
            _profiled(profile),
            tuple((part["name"], part["ms"]) for part in profile["operators"]),
        )
        for profile in profiles
    ]
    told = "; ".join(f"{bar.name}: {bar.told}, most in {bar.parts[0][0]}" for bar in drawn)
    return operators.operators_svg("operators", drawn, description=f"{told}.")


def _profiled(profile: Mapping[str, Any]) -> str:
    """Tell the time of a call under the profiler, and what it takes without one where known."""
    told, timed_ms = f"{format_ms(profile['total_ms'])} ms", profile.get("timed_ms")
    return told if timed_ms is None else f"{told} under the profiler, {format_ms(timed_ms)} without"


def shape_tables(summary: Summary) -> list[ShapeTable]:
    """Return the latencies by batch and length of every device that was timed at several.

    Args:
        summary: The document.
    """
    tables = []
    for number, device in enumerate(dict.fromkeys(s[0] for s in summary.settings)):
        settings = sorted(s for s in summary.settings if s[0] == device)[:_MOST_SETTINGS]
        if len(settings) < 2:
            continue
        at = {(row.raw["artifact"], row.setting): row for row in summary.rows}
        artifacts = dict.fromkeys(row.raw["artifact"] for row in summary.rows)
        rows = [
            (shortened(name), [at.get((name, setting)) for setting in settings])
            for name in artifacts
        ]
        picture = _shape_picture(summary, settings, rows, f"shapes{number}")
        tables.append(ShapeTable(device, settings, rows, picture))
    return tables


def mixes(summary: Summary) -> list[Mix]:
    """Return the time on the real lengths, by device, scenario and batch.

    Args:
        summary: The document.
    """
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for entry in summary.document["mixes"]:
        groups.setdefault((entry["device"], entry["scenario"], entry["batch"]), []).append(entry)
    return [
        _mix(summary, f"{scenario.replace('_', ' ')}, {device}, batch {batch}", entries, number)
        for number, ((device, scenario, batch), entries) in enumerate(groups.items())
    ]


def _mix(summary: Summary, title: str, entries: list[dict[str, Any]], number: int) -> Mix:
    chosen = summary.candidate.raw["artifact"] if summary.candidate else None
    drawn = [
        bars.Bar(
            shortened(entry["artifact"]),
            entry["examples_per_s"],
            f"{entry['examples_per_s']:,.1f}",
            entry["artifact"] == chosen,
        )
        for entry in entries
    ]
    told = "; ".join(f"{bar.name}: {bar.words}" for bar in drawn)
    picture = bars.bars_svg(
        f"mix{number}",
        drawn,
        title=f"Examples per second on the real lengths: {title}",
        description=f"{told}.",
    )
    return Mix(title, entries, picture)


def _plane_picture(summary: Summary, setting: Setting, earlier: list[Row], number: int) -> str:
    base, front = summary.base_at(setting), summary.front_at(setting)
    best = summary.chosen_at(setting)
    words, rows = summary.words, [*summary.rows_at(setting), *earlier]
    points = [_point(row, on_front=row in front, chosen=row is best) for row in rows]
    told = "; ".join(
        f"{p.name}: {p.latency_ms[0]:.3g} ms, {words.shown(p.quality[0])}, {p.standing}"
        for p in points
    )
    limit = base.quality - summary.margin if base and summary.has_labels else None
    return tradeoff_svg(
        f"plane{number}",
        points,
        words=words,
        limit=limit,
        description=f"Measured on {setting_words(setting)}. {told}.",
    )


def _point(row: Row, *, on_front: bool, chosen: bool) -> Point:
    """Place a measurement; its latency interval is that of the speed-up, in milliseconds."""
    interval = row.quality_interval or {"low": row.quality, "high": row.quality}
    latency = row.latency_interval_ms if row.is_timed else (row.latency_ms, row.latency_ms)
    return Point(
        name=row.name,
        latency_ms=(row.latency_ms, *latency),
        quality=(row.quality, interval["low"], interval["high"]),
        standing=row.standing,
        on_front=on_front,
        chosen=chosen,
    )


def _shape_picture(
    summary: Summary,
    settings: list[Setting],
    rows: list[tuple[str, list[Row | None]]],
    prefix: str,
) -> str:
    by_tokens = len({tokens for _, _, tokens in settings}) > 1
    across, panel = (2, 1) if by_tokens else (1, 2)
    panels = sorted({setting[panel] for setting in settings})[:_MOST_PICTURES]
    lines = [_line(summary, name, found, across, panel, panels) for name, found in rows]
    lines.sort(key=lambda line: not (line.is_baseline or line.chosen))
    words = ("device", "batch", "tokens")
    told = "; ".join(
        f"{name}: "
        + ", ".join(f"{format_ms(row.latency_ms)} ms" for row in found if row is not None)
        for name, found in rows[:_MOST_LINES]
    )
    return shapes.shapes_svg(
        prefix,
        lines[:_MOST_LINES],
        [f"batch {value}" if by_tokens else f"{value} tokens" for value in panels],
        axis=words[across] if by_tokens else "examples per call",
        description=f"In the order of the table's columns. {told}.",
    )


def _line(
    summary: Summary,
    name: str,
    found: list[Row | None],
    across: int,
    panel: int,
    panels: list[Any],
) -> shapes.Line:
    rows = [row for row in found if row is not None]
    candidate = summary.candidate
    return shapes.Line(
        name,
        tuple(
            tuple(
                (int(row.setting[across]), row.latency_ms)
                for row in rows
                if row.setting[panel] == value
            )
            for value in panels
        ),
        is_baseline=any(row.is_baseline for row in rows),
        chosen=candidate is not None and candidate.name == name,
    )
