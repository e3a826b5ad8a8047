from functools import partial

import pytest

from tcompress.evaluate.pareto import Point, pareto_front

BASELINE = Point(10, 0.90, 0.0, is_baseline=True)
fast = partial(Point, is_faster=True)


@pytest.mark.parametrize(
    ("points", "front"),
    [
        pytest.param([fast(5, 0.90, 0.004)], [False, True], id="as-good-and-faster"),
        pytest.param([Point(5, 0.90, 0.004)], [True, True], id="not-shown-to-be-faster"),
        pytest.param(
            [fast(6, 0.90, 0.004), Point(5, 0.91, 0.004)],
            [False, True, True],
            id="not-shown-to-be-faster-than-what-is",
        ),
        pytest.param([fast(11, 0.89, 0.004)], [True, True], id="shown-faster-against-the-medians"),
        pytest.param([fast(5, 0.89, 0.009)], [True, True], id="faster-and-worse-within-margin"),
        pytest.param([Point(5, 0.89, 0.010)], [True, False], id="bound-at-the-margin"),
        pytest.param([Point(5, 0.95, None)], [True, False], id="nothing-known-of-the-drop"),
        pytest.param([Point(5, 0.90, 0.0, is_stale=True)], [True, False], id="stale"),
        pytest.param([Point(10, 0.90, 0.0)], [True, True], id="equal-to-the-baseline"),
        pytest.param([Point(12, 0.90, 0.0)], [True, False], id="slower-and-as-good"),
        pytest.param([Point(12, 0.91, -0.001)], [True, True], id="slower-and-better"),
        pytest.param(
            [fast(5, 0.895, 0.009), fast(5, 0.895, 0.009), fast(5, 0.894, 0.0095)],
            [True, True, True, False],
            id="ties-do-not-beat-each-other",
        ),
        pytest.param(
            [fast(4, 0.99, 0.02), fast(5, 0.895, 0.009)],
            [True, False, True],
            id="one-that-may-not-be-shipped-beats-nobody",
        ),
    ],
)
def test_front_holds_what_is_proved_and_beaten_by_nothing_proved(
    points: list[Point], front: list[bool]
):
    assert pareto_front([BASELINE, *points], margin=0.01) == front


def test_without_labels_only_the_baseline_stands_on_the_front():
    points = [Point(10, 1.0, None, is_baseline=True), Point(5, 1.0, None)]
    assert [point.not_inferior(0.01) for point in points] == [None, None]
    assert pareto_front(points, margin=0.01) == [True, False]
