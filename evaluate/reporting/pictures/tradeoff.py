"""Quality against latency: the plane in which compressed encoders are compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ...entry import MetricWords
from ..summary import Standing
from .labels import CHARACTER_WIDTH, Box, best_anchor, crowding, place_of
from .svg import (
    ACCENT,
    FONT_SIZE,
    INK,
    LINE,
    MUTED,
    PAGE,
    POINTS_PER_INCH,
    WARN,
    Picture,
    frame,
    style,
    to_svg,
)

_LIMIT_NAME = "margin"
_MOST_TICKS = 9
_TICK_STEPS = (
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9),
    (1, 1.5, 2, 3, 4, 5, 7),
    (1, 2, 5),
    (1, 3),
    (1,),
)
# What a name costs that covers a square point of a bar.
_BAR_WEIGHT = 0.5
_LOOKS = {
    Standing.BASELINE: ("D", INK, PAGE),
    Standing.PROVED: ("o", ACCENT, ACCENT),
    Standing.UNPROVED: ("o", ACCENT, PAGE),
    Standing.WORSE: ("v", MUTED, PAGE),
    Standing.EARLIER: ("x", MUTED, PAGE),
}


@dataclass(frozen=True)
class Point:
    """One measurement in the picture.

    Attributes:
        name: Its label.
        latency_ms: Median latency, with the ends of its interval.
        quality: The metric that decides, with the ends of its interval.
        standing: How it compares with the baseline.
        on_front: Whether nothing that is not inferior is both faster and better.
        chosen: Whether it is the recommended one.
    """

    name: str
    latency_ms: tuple[float, float, float]
    quality: tuple[float, float, float]
    standing: Standing
    on_front: bool = False
    chosen: bool = False

    @property
    def is_greyed(self) -> bool:
        """Whether it stands back: not proved to be good enough, and not the baseline."""
        return self.standing not in (Standing.BASELINE, Standing.PROVED, Standing.UNPROVED)


def tradeoff_svg(
    prefix: str,
    points: Sequence[Point],
    *,
    words: MetricWords,
    limit: float | None,
    description: str,
) -> str:
    """Draw quality against latency.

    Args:
        prefix: Start of every id in the picture; unique in the page.
        points: The measurements.
        words: How people read what the vertical axis shows.
        limit: Quality at the margin below the baseline; None draws no line.
        description: What the picture shows, for those who cannot see it.

    Returns:
        The SVG element.
    """
    with style(prefix):
        picture = Picture(Figure(figsize=(7.6, 4.2), dpi=POINTS_PER_INCH))
        axes = picture.figure.add_axes((0.085, 0.13, 0.895, 0.84))
        frame(axes)
        _scale_latency(axes, points)
        _scale_quality(axes, points, limit, words)
        axes.set_xlabel("median latency, ms (log scale; left is faster)")
        axes.set_ylabel(words.title)
        if limit is not None:
            axes.axhline(limit, color=WARN, linewidth=0.9, dashes=(4, 3), zorder=1)
        _draw_front(axes, points)
        for number, point in enumerate(points):
            _draw_point(picture, axes, number, point, words)
        _label_points(axes, points, limit)
        return to_svg(
            picture,
            prefix,
            f"{words.name[:1].upper()}{words.name[1:]} against latency",
            description,
        )


def log_ticks(low: float, high: float) -> list[float]:
    """Return as many round numbers as there is room for."""
    for steps in _TICK_STEPS:
        ticks = [step * 10.0**power for power in range(-9, 10) for step in steps]
        if len(shown := [tick for tick in ticks if low <= tick <= high]) <= _MOST_TICKS:
            break
    return shown


def _scale_latency(axes: Axes, points: Sequence[Point]) -> None:
    low, high = min(p.latency_ms[1] for p in points), max(p.latency_ms[2] for p in points)
    span = max(high / low, 1.2)
    low, high = low / span**0.12, high * span**0.12
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _scale_quality(
    axes: Axes, points: Sequence[Point], limit: float | None, words: MetricWords
) -> None:
    low, high = min(p.quality[1] for p in points), max(p.quality[2] for p in points)
    if limit is not None:
        low = min(low, limit)
    room = max(0.12 * (high - low), 0.003)
    axes.set_ylim(low - room, high + room)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{words.scale * value:g}"))


def _draw_front(axes: Axes, points: Sequence[Point]) -> None:
    front = sorted((p.latency_ms[0], p.quality[0]) for p in points if p.on_front)
    if len(front) > 1:
        latencies, qualities = zip(*front, strict=True)
        axes.plot(latencies, qualities, color=ACCENT, linewidth=0.9, alpha=0.6, zorder=2)


def _draw_point(
    picture: Picture, axes: Axes, number: int, point: Point, words: MetricWords
) -> None:
    shape, edge, face = _LOOKS[point.standing]
    (x, left, right), (y, bottom, top) = point.latency_ms, point.quality
    bars: Any = {
        "color": LINE if point.is_greyed else edge,
        "linewidth": 1.1,
        "alpha": 1.0 if point.is_greyed else 0.55,
        "solid_capstyle": "butt",
    }
    axes.plot([left, right], [y, y], **bars)
    axes.plot([x, x], [bottom, top], **bars)
    gid = f"point-{number}"
    axes.plot(
        x,
        y,
        marker=shape,
        markersize=9 if point.chosen else 6.5,
        markerfacecolor=face,
        markeredgecolor=edge,
        markeredgewidth=1.4,
        zorder=4,
        gid=gid,
    )
    picture.tooltips[gid] = f"{point.name}: {x:.3g} ms, {words.shown(y)}, {point.standing}"


def _label_points(axes: Axes, points: Sequence[Point], limit: float | None) -> None:
    """Put each name near its own point, where it covers no other point, name or much of a bar."""
    taken = [box for point in points for box in _boxes_of(axes, point)]
    places = [place_of(axes, point.latency_ms[0], point.quality[0]) for point in points]
    if limit is not None:
        height = place_of(axes, 1.0, limit)[1]
        edges = (float(axes.bbox.x0), height - 1, float(axes.bbox.x1), height + 1)
        taken.append(Box(*edges, weight=_BAR_WEIGHT))
    for point, place in sorted(zip(points, places, strict=True), key=lambda p: not p[0].chosen):
        others = [other for other in places if other != place]
        best = best_anchor(axes, place, point.name, taken, others)
        taken.append(best.box(*place, CHARACTER_WIDTH * len(point.name)))
        axes.annotate(
            point.name,
            (point.latency_ms[0], point.quality[0]),
            (best.x, best.y),
            textcoords="offset points",
            ha=best.side,
            weight="bold" if point.chosen else "normal",
            color=MUTED if point.is_greyed else INK,
            zorder=5,
        )
    if limit is not None:
        _label_limit(axes, limit, taken)


def _label_limit(axes: Axes, limit: float, taken: Sequence[Box]) -> None:
    """Name the margin where its line is free."""
    height = place_of(axes, 1.0, limit)[1]
    width = CHARACTER_WIDTH * len(_LIMIT_NAME)
    choices = [
        Box(x, height + dy, x + width, height + dy + FONT_SIZE)
        for x in np.arange(float(axes.bbox.x1) - width - 3, float(axes.bbox.x0), -8.0)
        for dy in (4, -4 - FONT_SIZE)
    ]
    best = min(choices, key=lambda box: crowding(axes, taken, box))
    axes.annotate(
        _LIMIT_NAME,
        (best.left, best.bottom),
        xycoords="figure pixels",
        color=WARN,
        fontsize=FONT_SIZE - 1,
    )


def _boxes_of(axes: Axes, point: Point) -> list[Box]:
    (latency, fastest, slowest), (quality, worst, best) = point.latency_ms, point.quality
    x, y = place_of(axes, latency, quality)
    left, bottom = place_of(axes, fastest, worst)
    right, top = place_of(axes, slowest, best)
    return [
        Box(x - 6, y - 6, x + 6, y + 6),
        Box(left, y - 1, right, y + 1, weight=_BAR_WEIGHT),
        Box(x - 1, bottom, x + 1, top, weight=_BAR_WEIGHT),
    ]
