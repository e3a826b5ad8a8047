"""Where the time of one call goes, operator by operator."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .labels import CHARACTER_WIDTH
from .svg import (
    ACCENT,
    GOOD,
    INK,
    MUTED,
    PAGE,
    POINTS_PER_INCH,
    WARN,
    Picture,
    frame,
    style,
    to_svg,
)

_WIDTH, _BAR_HEIGHT = 7.6, 0.62
_TONES = ((ACCENT, 0.6), (MUTED, 0.35), (GOOD, 0.4), (WARN, 0.35), (ACCENT, 0.25), (GOOD, 0.2))
_REST = (MUTED, 0.12)
_REST_NAME = "other"


@dataclass(frozen=True)
class Bar:
    """The time of one artifact.

    Attributes:
        name: Its label.
        told: All of it, in words beside the bar.
        parts: Milliseconds by operator, largest first.
    """

    name: str
    told: str
    parts: tuple[tuple[str, float], ...]


def operators_svg(prefix: str, bars: Sequence[Bar], *, description: str) -> str:
    """Draw one stacked bar per artifact; the same operator has the same tone in all of them.

    Args:
        prefix: Start of every id in the picture; unique in the page.
        bars: The artifacts.
        description: What the picture shows, for those who cannot see it.

    Returns:
        The SVG element.
    """
    size = (_WIDTH, 0.5 + _BAR_HEIGHT * len(bars))
    tones = _tones(bars)
    with style(prefix):
        picture = Picture(Figure(figsize=size, dpi=POINTS_PER_INCH))
        axes = picture.figure.add_axes((0.02, 0.42 / size[1], 0.96, 1 - 0.5 / size[1]))
        frame(axes, grid=False)
        axes.spines[:].set_visible(False)
        longest = max((sum(ms for _, ms in bar.parts) for bar in bars), default=1.0)
        axes.set(xlim=(0, longest), ylim=(len(bars), 0), yticks=[], xlabel="ms per call")
        for row, bar in enumerate(bars):
            axes.annotate(f"{bar.name}, {bar.told}", (0, row + 0.32), color=INK, weight="bold")
            _draw_bar(picture, axes, row, bar, tones, longest)
        return to_svg(picture, prefix, "Latency by operator", description)


def _tones(bars: Sequence[Bar]) -> dict[str, tuple[str, float]]:
    totals: dict[str, float] = {}
    for bar in bars:
        for name, ms in bar.parts:
            totals[name] = totals.get(name, 0.0) + ms
    largest = sorted(totals, key=lambda name: -totals[name])[: len(_TONES)]
    return dict(zip(largest, _TONES, strict=False))


def _draw_bar(
    picture: Picture,
    axes: Axes,
    row: int,
    bar: Bar,
    tones: dict[str, tuple[str, float]],
    longest: float,
) -> None:
    start = 0.0
    rest = sum(ms for name, ms in bar.parts if name not in tones)
    named = [(name, ms) for name, ms in bar.parts if name in tones]
    for part, (name, ms) in enumerate([*named, *([(_REST_NAME, rest)] if rest else [])]):
        colour, alpha = tones.get(name, _REST)
        gid = f"part-{row}-{part}"
        axes.barh(
            row + 0.68,
            ms,
            left=start,
            height=0.5,
            color=colour,
            alpha=alpha,
            edgecolor=PAGE,
            linewidth=1.0,
        )[0].set_gid(gid)
        picture.tooltips[gid] = name
        if CHARACTER_WIDTH * (len(name) + 2) < ms / longest * 0.96 * _WIDTH * POINTS_PER_INCH:
            axes.annotate(name, (start + ms / 2, row + 0.68), ha="center", va="center")
        start += ms
