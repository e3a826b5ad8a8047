import numpy as np
import pytest
from sklearn import metrics as reference

from tcompress.evaluate import metrics


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", reference.accuracy_score),
        ("balanced_accuracy", reference.balanced_accuracy_score),
        ("macro_f1", lambda t, f: reference.f1_score(t, f, average="macro")),
        ("micro_f1", lambda t, f: reference.f1_score(t, f, average="micro")),
        ("weighted_f1", lambda t, f: reference.f1_score(t, f, average="weighted")),
        ("mcc", reference.matthews_corrcoef),
    ],
)
def test_metrics_of_stacked_counts_equal_scikit_learns(name, expected):
    rng = np.random.default_rng(0)
    truth = rng.integers(4, size=(5, 60))
    found = np.where(rng.random((5, 60)) < 0.6, truth, rng.integers(4, size=(5, 60)))
    # Class 4 has no example and no answer.
    counts = np.stack([metrics.confusion(t, f, 5) for t, f in zip(truth, found, strict=True)])
    assert metrics.CLASSIFICATION[name](counts) == pytest.approx(
        [expected(t, f) for t, f in zip(truth, found, strict=True)]
    )


def test_a_missing_answer_is_wrong_in_every_metric():
    truth = np.arange(30) % 3
    found = truth.copy()
    found[:3] = -1
    counts = metrics.confusion(truth, found, 3)
    assert metrics.accuracy(counts) == metrics.balanced_accuracy(counts) == 0.9
    assert metrics.macro_f1(counts) == pytest.approx(18 / 19)
    assert metrics.mcc(counts) < 1


def test_one_class_gives_numbers():
    counts = metrics.confusion([0, 0], [0, 0], 2)
    found = {name: float(metric(counts)) for name, metric in metrics.CLASSIFICATION.items()}
    assert found == {name: 0.0 if name == "mcc" else 1.0 for name in metrics.CLASSIFICATION}
