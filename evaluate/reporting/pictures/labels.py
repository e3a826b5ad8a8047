"""Names beside points: each where it covers no other point, name or much of a bar."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes

from .svg import FONT_SIZE

# What a name costs that stands nearer to another point than to its own; what covers a marker or
# another name costs 1 per square point.
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


@dataclass(frozen=True)
class Anchor:
    """Where a name may stand: the side that faces its point, and the way there from the point."""

    side: Literal["left", "center", "right"]
    x: float
    y: float

    def box(self, x: float, y: float, width: float) -> Box:
        """Return what a name of a width takes here, beside the point at `(x, y)`."""
        left = x + self.x - {"left": 0.0, "center": width / 2, "right": width}[self.side]
        return Box(left, y + self.y, left + width, y + self.y + FONT_SIZE)


CHARACTER_WIDTH = 0.58 * FONT_SIZE
_BESIDE: tuple[tuple[Literal["left", "right"], float], ...] = (("left", 9.0), ("right", -9.0))
_ANCHORS = (
    *(Anchor(side, x, y) for y in (4.0, -12.0, -4.0) for side, x in _BESIDE),
    *(Anchor("center", 0.0, y) for y in (12.0, -20.0)),
    *(Anchor(side, x, y) for y in (10.0, -18.0, 24.0, -32.0) for side, x in _BESIDE),
)


def place_of(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Return where a place in data coordinates lies, in points."""
    left, bottom = axes.transData.transform((x, y))
    return float(left), float(bottom)


def crowding(axes: Axes, taken: Sequence[Box], box: Box) -> float:
    """Tell how bad a place is for a name: what it would cover, and what would be cut off."""
    frame = axes.bbox
    outside: float = max(0.0, frame.x0 - box.left) + max(0.0, box.right - frame.x1)
    outside += max(0.0, frame.y0 - box.bottom) + max(0.0, box.top - frame.y1)
    return sum(other.weight * box.overlap(other) for other in taken) + 1000 * outside


def best_anchor(
    axes: Axes,
    place: tuple[float, float],
    name: str,
    taken: Sequence[Box],
    others: Sequence[tuple[float, float]],
) -> Anchor:
    """Return where a name stands best.

    Args:
        axes: Where it is drawn.
        place: Its point.
        name: The name.
        taken: What should not be covered.
        others: The points that the name must not seem to belong to.
    """
    width = CHARACTER_WIDTH * len(name)

    def cost(anchor: Anchor) -> float:
        box = anchor.box(*place, width)
        nearest = min((box.distance(*other) for other in others), default=math.inf)
        stray = _STRAY if box.distance(*place) >= nearest else 0.0
        return crowding(axes, taken, box) + abs(anchor.y) + stray

    return min(_ANCHORS, key=cost)
