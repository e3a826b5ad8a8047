"""Pictures of a report: inline SVG whose colours follow the page, light or dark.

Everything is drawn in colours from `_COLOURS`, which stand for CSS variables of the page and are
replaced by them at the end. The same input gives the same bytes.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal
from xml.etree import ElementTree as ET

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

_INK, _MUTED, _LINE, _ACCENT, _WARN, _PAGE = (
    "#010101", "#020202", "#030303", "#040404", "#050505", "#060606",
)  # fmt: skip
_COLOURS = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
    _ACCENT: "var(--accent)",
    _WARN: "var(--warn)",
    _PAGE: "var(--page)",
}
_LIMIT_NAME = "1 point below the baseline"
_POINTS_PER_INCH = 72
_FONT_SIZE = 9.0
_CHARACTER_WIDTH = 0.58 * _FONT_SIZE
_MOST_TICKS = 9
_TICK_STEPS = (
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9),
    (1, 1.5, 2, 3, 4, 5, 7),
    (1, 2, 5),
    (1, 3),
    (1,),
)
_MOST_LAYERS_WITH_NUMBERS = 12

# What a name costs that covers a square point of a bar, and one that stands nearer to another
# measurement than to its own; what covers a marker or another name costs 1 per square point.
_BAR_WEIGHT = 0.5
_STRAY = 300.0


@dataclass(frozen=True)
class Box:
    """A part of the picture that is taken, in points.

    Attributes:
        left: Left edge.
        bottom: Lower edge.
        right: Right edge.
        top: Upper edge.
        weight: How bad it is to cover a square point of it.
    """

    left: float
    bottom: float
    right: float
    top: float
    weight: float = 1.0

    def overlap(self, other: "Box") -> float:
        """Area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)

    def distance(self, x: float, y: float) -> float:
        """Distance of a place from the nearest edge; 0 inside."""
        dx = max(self.left - x, 0.0, x - self.right)
        dy = max(self.bottom - y, 0.0, y - self.top)
        return math.hypot(dx, dy)


class Standing(StrEnum):
    """How a point compares with the baseline."""

    BASELINE = "baseline"
    WITHIN = "within"
    WORSE = "worse"


@dataclass(frozen=True)
class Point:
    """One measurement in the trade-off picture.

    Attributes:
        name: Its label.
        latency_ms: Median latency.
        latency_low: Lower end of its interval.
        latency_high: Upper end.
        quality: Accuracy or agreement, in per cent.
        quality_low: Lower end of its interval.
        quality_high: Upper end.
        standing: How it compares with the baseline.
        chosen: Whether it is the recommended one.
    """

    name: str
    latency_ms: float
    latency_low: float
    latency_high: float
    quality: float
    quality_low: float
    quality_high: float
    standing: Standing
    chosen: bool = False


@dataclass(frozen=True)
class _Anchor:
    """Where a name may stand: the side that faces its point, and the way there from the point."""

    side: Literal["left", "center", "right"]
    x: float
    y: float

    def box(self, x: float, y: float, width: float) -> Box:
        left = x + self.x - {"left": 0.0, "center": width / 2, "right": width}[self.side]
        return Box(left, y + self.y, left + width, y + self.y + _FONT_SIZE)


_BESIDE: tuple[tuple[Literal["left", "right"], float], ...] = (("left", 9.0), ("right", -9.0))
_ANCHORS = (
    *(_Anchor(side, x, y) for y in (4.0, -12.0, -4.0) for side, x in _BESIDE),
    *(_Anchor("center", 0.0, y) for y in (12.0, -20.0)),
    *(_Anchor(side, x, y) for y in (10.0, -18.0, 24.0, -32.0) for side, x in _BESIDE),
)


@dataclass
class _Picture:
    """A figure on its way to SVG, and the tooltip of each of its parts by gid."""

    figure: Figure
    tooltips: dict[str, str] = field(default_factory=dict)


def tradeoff_svg(
    prefix: str, points: Sequence[Point], *, quality: str, limit: float | None, description: str
) -> str:
    """Draw quality against latency.

    Args:
        prefix: Start of every id in the picture; unique in the page.
        points: The measurements.
        quality: What the vertical axis shows, for its label.
        limit: Quality below which a point counts as worse, in per cent; None draws no line.
        description: What the picture shows, for those who cannot see it.

    Returns:
        The SVG element.
    """
    with _style(prefix):
        picture = _Picture(Figure(figsize=(7.6, 4.2), dpi=_POINTS_PER_INCH))
        axes = picture.figure.add_axes((0.085, 0.13, 0.895, 0.84))
        _frame(axes)
        _scale_latency(axes, points)
        _scale_quality(axes, points, limit)
        axes.set_xlabel("median latency, ms (log scale; left is faster)")
        axes.set_ylabel(f"{quality}, %")
        if limit is not None:
            axes.axhline(limit, color=_WARN, linewidth=0.9, dashes=(4, 3), zorder=1)
        for number, point in enumerate(points):
            _draw_point(picture, axes, number, point)
        _label_points(axes, points, limit)
        return _to_svg(picture, prefix, f"{quality.capitalize()} against latency", description)


def head_map_svg(
    prefix: str,
    scores: Sequence[Sequence[float]],
    kept: Sequence[Sequence[int]],
    *,
    description: str,
) -> str:
    """Draw the importance of every head; removed heads are crossed out.

    Args:
        prefix: Start of every id in the picture; unique in the page.
        scores: One row per layer, one score per head; higher means keep.
        kept: Indices of the heads kept, per layer.
        description: What the picture shows, for those who cannot see it.

    Returns:
        The SVG element.
    """
    layers, heads = len(scores), max((len(row) for row in scores), default=1)
    flat = [score for row in scores for score in row]
    low, high = min(flat, default=0.0), max(flat, default=1.0)
    cell = min(0.36, 6.6 / heads)
    with _style(prefix):
        size = (max(3.0, heads * cell + 0.75), layers * cell + 0.62)
        picture = _Picture(Figure(figsize=size, dpi=_POINTS_PER_INCH))
        axes = picture.figure.add_axes(
            (0.55 / size[0], 0.5 / size[1], heads * cell / size[0], layers * cell / size[1])
        )
        _frame(axes, grid=False)
        axes.spines[:].set_visible(False)
        axes.set(xlim=(0, heads), ylim=(layers, 0), xlabel="head", ylabel="layer")
        axes.set_xticks([h + 0.5 for h in range(heads)], [str(h) for h in range(heads)])
        axes.set_yticks([i + 0.5 for i in range(layers)], [str(i) for i in range(layers)])
        for layer, row in enumerate(scores):
            for head, score in enumerate(row):
                share = (score - low) / (high - low) if high > low else 1.0
                removed = head not in kept[layer]
                _draw_cell(picture, axes, layer, head, share, removed=removed)
                state = ", removed" if removed else ""
                picture.tooltips[f"cell-{layer}-{head}"] = (
                    f"layer {layer}, head {head}: {score:.4g}{state}"
                )
        return _to_svg(picture, prefix, "Importance of every attention head", description)


def structure_svg(
    prefix: str,
    source: tuple[Sequence[int], Sequence[int]],
    kept: tuple[Sequence[int], Sequence[int]],
    *,
    description: str,
) -> str:
    """Draw heads and FFN neurons per layer, before and after.

    Args:
        prefix: Start of every id in the picture; unique in the page.
        source: Heads and neurons per layer of the baseline.
        kept: The same of the compressed encoder.
        description: What the picture shows, for those who cannot see it.

    Returns:
        The SVG element.
    """
    with _style(prefix):
        picture = _Picture(Figure(figsize=(7.6, 2.3), dpi=_POINTS_PER_INCH))
        for number, what in enumerate(("attention heads", "FFN neurons")):
            axes = picture.figure.add_axes((0.065 + 0.5 * number, 0.19, 0.425, 0.64))
            _frame(axes)
            axes.grid(visible=False, axis="x")
            _draw_layers(axes, source[number], kept[number])
            axes.set_title(f"{what} per layer", loc="left", color=_INK, fontsize=_FONT_SIZE + 1)
        return _to_svg(picture, prefix, "Heads and neurons per layer", description)


@contextmanager
def _style(salt: str) -> Iterator[None]:
    settings: Any = {
        "font.size": _FONT_SIZE,
        "text.color": _INK,
        "axes.labelcolor": _MUTED,
        "axes.edgecolor": _LINE,
        "xtick.color": _MUTED,
        "ytick.color": _MUTED,
        "grid.color": _LINE,
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The page's font shows the text, so it does not matter what matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message=r"(?s).*missing from (font|current font)")
        yield


def _frame(axes: Axes, *, grid: bool = True) -> None:
    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0, pad=5)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(linewidth=0.6)


def _scale_latency(axes: Axes, points: Sequence[Point]) -> None:
    low, high = min(p.latency_low for p in points), max(p.latency_high for p in points)
    span = max(high / low, 1.2)
    low, high = low / span**0.12, high * span**0.12
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(_log_ticks(low, high)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _log_ticks(low: float, high: float) -> list[float]:
    """Return as many round numbers as there is room for."""
    for steps in _TICK_STEPS:
        ticks = [step * 10.0**power for power in range(-9, 10) for step in steps]
        if len(shown := [tick for tick in ticks if low <= tick <= high]) <= _MOST_TICKS:
            break
    return shown


def _scale_quality(axes: Axes, points: Sequence[Point], limit: float | None) -> None:
    low = min(p.quality_low for p in points)
    high = max(p.quality_high for p in points)
    if limit is not None:
        low = min(low, limit)
    room = max(0.12 * (high - low), 0.3)
    axes.set_ylim(low - room, high + room)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_point(picture: _Picture, axes: Axes, number: int, point: Point) -> None:
    colour = {Standing.BASELINE: _INK, Standing.WITHIN: _ACCENT, Standing.WORSE: _MUTED}
    shape = {Standing.BASELINE: "D", Standing.WITHIN: "o", Standing.WORSE: "v"}
    look, gid = colour[point.standing], f"point-{number}"
    bars: Any = {"color": look, "linewidth": 1.1, "alpha": 0.55, "solid_capstyle": "butt"}
    axes.plot([point.latency_low, point.latency_high], [point.quality] * 2, **bars)
    axes.plot([point.latency_ms] * 2, [point.quality_low, point.quality_high], **bars)
    axes.plot(
        point.latency_ms,
        point.quality,
        marker=shape[point.standing],
        markersize=9 if point.chosen else 6.5,
        markerfacecolor=look if point.standing is Standing.WITHIN else _PAGE,
        markeredgecolor=look,
        markeredgewidth=1.4,
        zorder=4,
        gid=gid,
    )
    picture.tooltips[gid] = f"{point.name}: {point.latency_ms:.3g} ms, {point.quality:.2f} %"


def _label_points(axes: Axes, points: Sequence[Point], limit: float | None) -> None:
    """Put each name near its own point, where it covers no other point, name or much of a bar."""
    taken = [box for point in points for box in _boxes_of(axes, point)]
    places = [_place_of(axes, point) for point in points]
    if limit is not None:
        height = _height_of(axes, limit)
        edges = (float(axes.bbox.x0), height - 1, float(axes.bbox.x1), height + 1)
        taken.append(Box(*edges, weight=_BAR_WEIGHT))
    for point, place in sorted(zip(points, places, strict=True), key=lambda p: not p[0].chosen):
        others = [other for other in places if other != place]
        costs: dict[_Anchor, float] = {}
        for anchor in _ANCHORS:
            box = anchor.box(*place, _CHARACTER_WIDTH * len(point.name))
            nearest = min((box.distance(*other) for other in others), default=math.inf)
            stray = _STRAY if box.distance(*place) >= nearest else 0.0
            costs[anchor] = _crowding(axes, taken, box) + abs(anchor.y) + stray
        best = min(_ANCHORS, key=lambda anchor: costs[anchor])
        taken.append(best.box(*place, _CHARACTER_WIDTH * len(point.name)))
        axes.annotate(
            point.name,
            (point.latency_ms, point.quality),
            (best.x, best.y),
            textcoords="offset points",
            ha=best.side,
            weight="bold" if point.chosen else "normal",
            color=_MUTED if point.standing is Standing.WORSE else _INK,
            zorder=5,
        )
    if limit is not None:
        _label_limit(axes, limit, taken)


def _label_limit(axes: Axes, limit: float, taken: Sequence[Box]) -> None:
    """Name the limit where its line is free."""
    height = _height_of(axes, limit)
    width = _CHARACTER_WIDTH * len(_LIMIT_NAME)
    choices = [
        Box(x, height + dy, x + width, height + dy + _FONT_SIZE)
        for x in np.arange(float(axes.bbox.x1) - width - 3, float(axes.bbox.x0), -8.0)
        for dy in (4, -4 - _FONT_SIZE)
    ]
    best = min(choices, key=lambda box: _crowding(axes, taken, box))
    axes.annotate(
        _LIMIT_NAME,
        (best.left, best.bottom),
        xycoords="figure pixels",
        color=_WARN,
        fontsize=_FONT_SIZE - 1,
    )


def _place_of(axes: Axes, point: Point) -> tuple[float, float]:
    x, y = axes.transData.transform((point.latency_ms, point.quality))
    return float(x), float(y)


def _height_of(axes: Axes, quality: float) -> float:
    return float(axes.transData.transform((1.0, quality))[1])


def _boxes_of(axes: Axes, point: Point) -> list[Box]:
    left, right = (
        float(axes.transData.transform((latency, 1.0))[0])
        for latency in (point.latency_low, point.latency_high)
    )
    bottom, top = _height_of(axes, point.quality_low), _height_of(axes, point.quality_high)
    x, y = _place_of(axes, point)
    return [
        Box(x - 6, y - 6, x + 6, y + 6),
        Box(left, y - 1, right, y + 1, weight=_BAR_WEIGHT),
        Box(x - 1, bottom, x + 1, top, weight=_BAR_WEIGHT),
    ]


def _crowding(axes: Axes, taken: Sequence[Box], box: Box) -> float:
    """Tell how bad a place is for a name: what it would cover, and what would be cut off."""
    frame = axes.bbox
    outside: float = max(0.0, frame.x0 - box.left) + max(0.0, box.right - frame.x1)
    outside += max(0.0, frame.y0 - box.bottom) + max(0.0, box.top - frame.y1)
    return sum(other.weight * box.overlap(other) for other in taken) + 1000 * outside


def _draw_cell(
    picture: _Picture, axes: Axes, layer: int, head: int, share: float, *, removed: bool
) -> None:
    cell = Rectangle(
        (head + 0.05, layer + 0.05), 0.9, 0.9, facecolor=_ACCENT, alpha=0.06 + 0.94 * share,
        linewidth=0, gid=f"cell-{layer}-{head}",
    )  # fmt: skip
    axes.add_patch(cell)
    if removed:
        ends = (0.27, 0.73)
        for rising in (ends, ends[::-1]):
            axes.plot(
                [head + e for e in ends],
                [layer + e for e in rising],
                color=_WARN,
                linewidth=1.5,
                zorder=3,
            )


def _draw_layers(axes: Axes, source: Sequence[int], kept: Sequence[int]) -> None:
    layers = range(len(source))
    axes.bar(layers, source, width=0.74, color=_LINE)
    axes.bar(layers, kept, width=0.74, color=_ACCENT)
    axes.set_xticks(list(layers))
    axes.set_ylim(0, 1.16 * max([*source, 1]))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    if len(source) <= _MOST_LAYERS_WITH_NUMBERS:
        for layer, count in enumerate(kept):
            top = max(count, source[layer])
            axes.annotate(
                str(count), (layer, top), (0, 2), textcoords="offset points", ha="center",
                fontsize=_FONT_SIZE - 1,
            )  # fmt: skip
    else:
        axes.set_xticks([layer for layer in layers if layer % 4 == 0])


def _to_svg(picture: _Picture, prefix: str, title: str, description: str) -> str:
    stream = io.StringIO()
    silent = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    picture.figure.savefig(stream, format="svg", transparent=True, metadata=silent)
    root = ET.fromstring(stream.getvalue())
    _clean(root, prefix, picture.tooltips)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {
        "role": "img",
        "aria-labelledby": f"{prefix}-title {prefix}-desc",
        "class": "picture",
        "style": f"max-width: {picture.figure.get_figwidth() * 1.3:.2f}in",
    }
    for position, (name, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(name, {"id": f"{prefix}-{name}"})
        element.text = text
        root.insert(position, element)
    return ET.tostring(root, encoding="unicode")


def _clean(root: ET.Element, prefix: str, tooltips: dict[str, str]) -> None:
    """Make a tree that can stand in a page: no namespaces, own ids, the page's colours."""
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        for child in list(element):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                element.remove(child)
        element.attrib = {
            name.rpartition("}")[2]: _own(name, value, prefix)
            for name, value in element.attrib.items()
        }
        gid = element.get("id", "").removeprefix(f"{prefix}-")
        if gid in tooltips:
            tooltip = ET.Element("title")
            tooltip.text = tooltips[gid]
            element.insert(0, tooltip)
        if element.tag != "text":
            element.text = (element.text or "").strip() or None
        element.tail = None


def _own(name: str, value: str, prefix: str) -> str:
    local = name.rpartition("}")[2]
    if local == "id":
        return f"{prefix}-{value}"
    if local == "href":
        return value.replace("#", f"#{prefix}-", 1)
    if local == "clip-path":
        return value.replace("url(#", f"url(#{prefix}-", 1)
    if local != "style":
        return value
    value = re.sub(r"font:((?: (?:bold|\d+))?) ([\d.]+)px[^;]*", _font, value)
    return re.sub(r"#0[1-6]0[1-6]0[1-6]", lambda found: _COLOURS[found[0]], value)


def _font(found: re.Match[str]) -> str:
    weight = f"; font-weight:{found[1]}" if found[1] else ""
    return f"font-size: {found[2]}px{weight}"
