"""Plain bars, one per artifact: for what is compared by length alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from .svg import ACCENT, INK, LINE, POINTS_PER_INCH, Picture, frame, style, to_svg

_WIDTH, _ROW = 7.6, 0.27


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        name: Its label.
        value: Its length.
        words: The value as the reader sees it.
        chosen: Whether it belongs to the recommended artifact.
    """

    name: str
    value: float
    words: str
    chosen: bool = False


def bars_svg(prefix: str, bars: Sequence[Bar], *, title: str, description: str) -> str:
    """Draw one bar below the other, with its name and its value.

    Args:
        prefix: Start of every id in the picture; unique in the page.
        bars: The bars, from the top.
        title: What the picture is.
        description: What it shows, for those who cannot see it.

    Returns:
        The SVG element.
    """
    size = (_WIDTH, 0.12 + _ROW * len(bars))
    with style(prefix):
        picture = Picture(Figure(figsize=size, dpi=POINTS_PER_INCH))
        axes = picture.figure.add_axes((0.27, 0.04 / size[1], 0.6, 1 - 0.08 / size[1]))
        frame(axes, grid=False)
        axes.spines[:].set_visible(False)
        axes.set(xlim=(0, max(bar.value for bar in bars)), ylim=(len(bars), 0))
        axes.set(xticks=[], yticks=[])
        for row, bar in enumerate(bars):
            middle, weight = row + 0.5, "bold" if bar.chosen else "normal"
            axes.barh(middle, bar.value, height=0.68, color=ACCENT if bar.chosen else LINE)
            near: Any = {
                "textcoords": "offset points",
                "va": "center",
                "color": INK,
                "weight": weight,
            }
            axes.annotate(bar.name, (0, middle), (-7, 0), ha="right", **near)
            axes.annotate(bar.words, (bar.value, middle), (6, 0), ha="left", **near)
        return to_svg(picture, prefix, title, description)
