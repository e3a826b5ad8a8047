"""Which measurements are good enough, and which of those nothing else beats.

What is compared shares a device, a batch and a length. A measurement counts only where the examples
prove that its drop is below the margin; the baseline always counts. Of those that count, the front
holds each that no other one beats: one that is at least as fast and at least as good, and better in
one of the two. Equal ones do not beat each other.

Medians alone do not tell what is faster: what was not shown to be faster than the baseline beats
neither the baseline nor what was, and the baseline does not beat that either.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Placed(Protocol):
    """What a measurement has to have to beat others; see `Point`."""

    @property
    def latency_ms(self) -> float:
        """Median latency; lower is better."""

    @property
    def quality(self) -> float:
        """The task's metric; higher is better."""

    @property
    def is_faster(self) -> bool:
        """Whether it was shown to be faster than the baseline."""

    @property
    def is_baseline(self) -> bool:
        """Whether it is what the others are compared with."""


@dataclass(frozen=True)
class Point:
    """A measurement among those that it is compared with.

    Attributes:
        latency_ms: Median latency; lower is better.
        quality: The task's metric; higher is better.
        drop_upper: One-sided 95 % upper bound of the drop below the baseline, a fraction; None
            where it is not known, as without labels.
        is_faster: Whether it was shown to be faster than the baseline.
        is_baseline: Whether it is what the others are compared with.
        is_stale: Whether what it was made from has been replaced since; then it never counts.
    """

    latency_ms: float
    quality: float
    drop_upper: float | None
    is_faster: bool = False
    is_baseline: bool = False
    is_stale: bool = False

    def not_inferior(self, margin: float) -> bool | None:
        """Tell whether the drop is proved to be below a margin; None where nothing is known.

        Args:
            margin: Smallest drop that is not acceptable, a fraction.
        """
        return None if self.drop_upper is None else self.drop_upper < margin

    def counts(self, margin: float) -> bool:
        """Tell whether it may stand on the front.

        Args:
            margin: Smallest drop that is not acceptable, a fraction.
        """
        return not self.is_stale and (self.is_baseline or bool(self.not_inferior(margin)))


def beats(one: Placed, other: Placed) -> bool:
    """Tell whether one is at least as good on both sides and better on one.

    Args:
        one: A measurement.
        other: Another one.
    """
    if not one.is_faster and (other.is_faster or other.is_baseline):
        return False
    mine, theirs = (one.latency_ms, -one.quality), (other.latency_ms, -other.quality)
    return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))


def pareto_front(points: Sequence[Point], margin: float) -> list[bool]:
    """Tell which points are good enough and beaten by none that is.

    Args:
        points: Measurements on one device, at one batch and length.
        margin: Smallest drop that is not acceptable, a fraction.

    Returns:
        One answer per point, in their order.
    """
    fit = [point for point in points if point.counts(margin)]
    return [
        point.counts(margin) and not any(beats(other, point) for other in fit) for point in points
    ]
