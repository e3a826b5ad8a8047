from itertools import permutations

import numpy as np
import pytest

from tcompress.data import Examples
from tcompress.errors import DataError
from tcompress.evaluate.accuracy import Predictions
from tcompress.evaluate.label_order import check_label_order

NAMES = ("owl", "cat", "bat")


def _asked(truth: np.ndarray, found: np.ndarray, names: tuple[str, ...]) -> None:
    labels = tuple(names[i] for i in truth)
    examples = Examples("d.csv", tuple(map(str, range(len(truth)))), labels=labels)
    logits = np.eye(len(names), dtype=np.float32)[found]
    check_label_order(Predictions(logits, names, 0), examples)


def _answers(classes: int, right: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return truth, and answers of which that part is right."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, 200)
    wrong = (truth + rng.integers(1, classes, 200)) % classes
    return truth, np.where(rng.random(200) < right, truth, wrong)


@pytest.mark.parametrize("classes", [2, 3])
def test_every_permutation_of_the_names_is_told_with_the_map_that_undoes_it(classes: int) -> None:
    truth, found = _answers(classes, 0.9)
    for order in permutations(range(classes)):
        shuffled = np.asarray(order)[found]
        moved = {NAMES[i]: NAMES[order[i]] for i in range(classes) if order[i] != i}
        if not moved:
            _asked(truth, shuffled, NAMES[:classes])
            continue
        if (shuffled == truth).mean() > 0.4:  # most answers of three keep their name
            continue
        proposal = ",".join(f"{name}={moved[name]}" for name in sorted(moved))
        with pytest.raises(DataError, match=f"pass --label-map {proposal}$"):
            _asked(truth, shuffled, NAMES[:classes])


def test_a_model_that_knows_nothing_is_not_told_to_rename() -> None:
    rng = np.random.default_rng(1)
    truth = (rng.random(200) < 0.8).astype(np.int64)
    _asked(truth, np.zeros(200, dtype=np.int64), NAMES[:2])  # always the rarer label
    for seed in range(50):
        _asked(*_answers(3, 1 / 3, seed), NAMES)
