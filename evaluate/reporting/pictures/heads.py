"""The importance of every attention head, and which were removed."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .svg import ACCENT, POINTS_PER_INCH, WARN, Picture, frame, style, to_svg


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
    cell = min(0.36, 6.6 / heads)
    with style(prefix):
        size = (max(3.0, heads * cell + 0.75), layers * cell + 0.62)
        picture = Picture(Figure(figsize=size, dpi=POINTS_PER_INCH))
        axes = picture.figure.add_axes(
            (0.55 / size[0], 0.5 / size[1], heads * cell / size[0], layers * cell / size[1])
        )
        frame(axes, grid=False)
        axes.spines[:].set_visible(False)
        axes.set(xlim=(0, heads), ylim=(layers, 0), xlabel="head", ylabel="layer")
        axes.set_xticks([h + 0.5 for h in range(heads)], [str(h) for h in range(heads)])
        axes.set_yticks([i + 0.5 for i in range(layers)], [str(i) for i in range(layers)])
        _draw_cells(picture, axes, scores, kept)
        return to_svg(picture, prefix, "Importance of every attention head", description)


def _draw_cells(
    picture: Picture,
    axes: Axes,
    scores: Sequence[Sequence[float]],
    kept: Sequence[Sequence[int]],
) -> None:
    flat = [score for row in scores for score in row]
    low, high = min(flat, default=0.0), max(flat, default=1.0)
    for layer, row in enumerate(scores):
        for head, score in enumerate(row):
            share = (score - low) / (high - low) if high > low else 1.0
            removed = head not in kept[layer]
            _draw_cell(picture, axes, layer, head, share, removed=removed)
            state = ", removed" if removed else ""
            picture.tooltips[f"cell-{layer}-{head}"] = (
                f"layer {layer}, head {head}: {score:.4g}{state}"
            )


def _draw_cell(
    picture: Picture, axes: Axes, layer: int, head: int, share: float, *, removed: bool
) -> None:
    cell = Rectangle(
        (head + 0.05, layer + 0.05), 0.9, 0.9, facecolor=ACCENT, alpha=0.06 + 0.94 * share,
        linewidth=0, clip_on=False, gid=f"cell-{layer}-{head}",
    )  # fmt: skip
    axes.add_patch(cell)
    if removed:
        # Both strokes in one line, as a page may hold hundreds of crosses.
        near, far, gap = 0.27, 0.73, float("nan")
        across = [head + e for e in (near, far, gap, near, far)]
        down = [layer + e for e in (near, far, gap, far, near)]
        axes.plot(across, down, color=WARN, linewidth=1.5, zorder=3, clip_on=False)
