"""Heads and neurons per layer, before and after."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .svg import (
    ACCENT,
    FONT_SIZE,
    INK,
    LINE,
    POINTS_PER_INCH,
    Picture,
    frame,
    style,
    to_svg,
)

_MOST_LAYERS_WITH_NUMBERS = 12


def widths_svg(
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
    with style(prefix):
        picture = Picture(Figure(figsize=(7.6, 2.3), dpi=POINTS_PER_INCH))
        for number, what in enumerate(("attention heads", "FFN neurons")):
            axes = picture.figure.add_axes((0.065 + 0.5 * number, 0.19, 0.425, 0.64))
            frame(axes)
            axes.grid(visible=False, axis="x")
            _draw_layers(axes, source[number], kept[number])
            axes.set_title(f"{what} per layer", loc="left", color=INK, fontsize=FONT_SIZE + 1)
        return to_svg(picture, prefix, "Heads and neurons per layer", description)


def _draw_layers(axes: Axes, source: Sequence[int], kept: Sequence[int]) -> None:
    layers = range(len(source))
    axes.bar(layers, source, width=0.74, color=LINE)
    axes.bar(layers, kept, width=0.74, color=ACCENT)
    axes.set_xticks(list(layers))
    axes.set_ylim(0, 1.16 * max([*source, 1]))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    if len(source) <= _MOST_LAYERS_WITH_NUMBERS:
        for layer, count in enumerate(kept):
            top = max(count, source[layer])
            axes.annotate(
                str(count), (layer, top), (0, 2), textcoords="offset points", ha="center",
                fontsize=FONT_SIZE - 1,
            )  # fmt: skip
    else:
        axes.set_xticks([layer for layer in layers if layer % 4 == 0])
