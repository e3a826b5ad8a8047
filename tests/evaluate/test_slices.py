import numpy as np
import pytest

from tcompress.data import Examples
from tcompress.evaluate.slices import (
    FEWEST,
    MOST_VALUES,
    PartQuality,
    length_buckets,
    slice_notes,
    slices_of,
)


def sliced(**columns: list[str]) -> Examples:
    size = len(next(iter(columns.values())))
    slices = {name: tuple(values) for name, values in columns.items()}
    return Examples("test", ids=tuple(map(str, range(size))), slices=slices)


def test_slices_of_a_column_are_disjoint_and_the_biggest_is_first():
    examples = sliced(genre=["war", "", "love", "love"], old=["y", "n", "y", "y"])
    found = slices_of(examples)
    assert [(s.column, s.value, int(s.members.sum())) for s in found] == [
        ("genre", "love", 2),
        ("genre", "war", 1),
        ("genre", "", 1),
        ("old", "y", 3),
        ("old", "n", 1),
    ]
    assert slice_notes(examples) == []


def test_of_many_values_the_most_frequent_are_slices_and_a_note_says_so():
    values = [f"v{i}" for i in range(MOST_VALUES + 5)]
    examples = sliced(writer=values + values[5:])
    assert {s.value for s in slices_of(examples)} == set(values[5:])
    [note] = slice_notes(examples)
    assert note == "column 'writer' has 25 values; the 20 most frequent are its slices"


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        pytest.param(list(range(1, 9)), [(1, 2), (3, 4), (5, 6), (7, 8)], id="quartiles"),
        pytest.param([3] * 7 + [9], [(3, 3), (9, 9)], id="ties stay together"),
        pytest.param([2] + [7] * 30, [(2, 2), (7, 7)], id="few short ones stand alone"),
        pytest.param([6] * 8, [], id="equal lengths are told apart by nothing"),
        pytest.param([4], [], id="one example"),
    ],
)
def test_lengths_are_cut_at_their_quartiles(tokens: list[int], expected: list[tuple[int, int]]):
    buckets = length_buckets(np.asarray(tokens))
    assert [(b.tokens_from, b.tokens_to) for b in buckets] == expected
    if buckets:
        assert (np.sum([b.members for b in buckets], axis=0) == 1).all()


def test_a_small_slice_is_shown_with_its_size_only():
    right = np.ones(FEWEST - 1, dtype=bool)
    assert PartQuality.of(right, ~right) == PartQuality(FEWEST - 1)
    assert PartQuality.of(np.append(right, True), np.append(~right, True)).drop == 0.9
