"""Latency by batch and length, from measurements of several shapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .labels import CHARACTER_WIDTH
from .svg import (
    ACCENT,
    FONT_SIZE,
    INK,
    MUTED,
    PAGE,
    POINTS_PER_INCH,
    Picture,
    frame,
    style,
    to_svg,
)
from .tradeoff import log_ticks

_WIDTH = 7.6
_MARKERS = "Dosv^P"
_DASHES = ("-", "-", "--", ":", "-.", "--")


@dataclass(frozen=True)
class Line:
    """One artifact over the shapes.

    Attributes:
        name: Its label.
        points: By panel, places on the horizontal axis and median milliseconds.
        is_baseline: Whether it is the baseline.
        chosen: Whether it is the recommended one.
    """

    name: str
    points: tuple[tuple[tuple[int, float], ...], ...]
    is_baseline: bool = False
    chosen: bool = False


def shapes_svg(
    prefix: str, lines: Sequence[Line], panels: Sequence[str], *, axis: str, description: str
) -> str:
    """Draw latency over one side of the shape, in a panel for every value of the other.

    Args:
        prefix: Start of every id in the picture; unique in the page.
        lines: The artifacts.
        panels: What each panel shows.
        axis: What the horizontal axis shows.
        description: What the picture shows, for those who cannot see it.

    Returns:
        The SVG element.
    """
    with style(prefix):
        picture = Picture(Figure(figsize=(_WIDTH, 3.1), dpi=POINTS_PER_INCH))
        longest = max(len(line.name) for line in lines)
        names = min(0.4, CHARACTER_WIDTH * longest / (_WIDTH * POINTS_PER_INCH) + 0.03)
        width = (0.985 - max(0.185, names)) / len(panels)
        for number, title in enumerate(panels):
            left = 0.065 + number * width
            axes = picture.figure.add_axes((left, 0.16, width - 0.05, 0.7))
            frame(axes)
            _scale(axes, lines)
            axes.set_title(title, loc="left", color=INK, fontsize=FONT_SIZE + 1)
            axes.set_xlabel(axis)
            for rank, line in enumerate(lines):
                _draw_line(axes, line, number, rank)
            if number == len(panels) - 1:
                _label_ends(axes, lines, number)
        picture.figure.axes[0].set_ylabel("median latency, ms (log)")
        return to_svg(picture, prefix, "Latency by batch and length", description)


def _scale(axes: Axes, lines: Sequence[Line]) -> None:
    latencies = [ms for line in lines for points in line.points for _, ms in points]
    low, high = min(latencies) / 1.15, max(latencies) * 1.15
    axes.set(xscale="log", yscale="log", ylim=(low, high))
    places = sorted({x for line in lines for points in line.points for x, _ in points})
    axes.set_xlim(places[0] / 1.15, places[-1] * 1.15)
    for side, ticks in ((axes.xaxis, places), (axes.yaxis, log_ticks(low, high))):
        side.set_major_locator(FixedLocator(list(ticks)))
        side.set_minor_locator(NullLocator())
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_line(axes: Axes, line: Line, panel: int, rank: int) -> None:
    colour = INK if line.is_baseline else ACCENT if line.chosen else MUTED
    look: Any = {"marker": _MARKERS[rank % len(_MARKERS)], "linestyle": _DASHES[rank % 6]}
    xs, ys = zip(*line.points[panel], strict=True) if line.points[panel] else ((), ())
    axes.plot(
        xs,
        ys,
        color=colour,
        linewidth=1.4,
        markersize=5,
        markerfacecolor=colour if line.chosen else PAGE,
        **look,
    )


def _label_ends(axes: Axes, lines: Sequence[Line], panel: int) -> None:
    """Name every line behind its end, top to bottom and far enough apart to be read."""
    ends = [(line.points[panel][-1], line) for line in lines if line.points[panel]]
    lowest = float("inf")
    for (x, ms), line in sorted(ends, key=lambda end: -end[0][1]):
        _, height = axes.transData.transform((x, ms))
        lowest = min(float(height), lowest - FONT_SIZE - 2)
        axes.annotate(
            line.name,
            (x, ms),
            (8, lowest - float(height) - FONT_SIZE / 2.5),
            textcoords="offset points",
            weight="bold" if line.chosen else "normal",
            color=INK if line.is_baseline or line.chosen else MUTED,
            annotation_clip=False,
        )
