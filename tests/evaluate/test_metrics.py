import math

import numpy as np
import pytest
from scipy import stats
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


def test_correlations_equal_scipys_and_are_nan_of_a_constant():
    truth, noise = np.random.default_rng(0).standard_normal((2, 50))
    assert metrics.pearson(truth, truth + noise) == pytest.approx(
        np.corrcoef(truth, truth + noise)[0, 1]
    )
    assert metrics.spearman(truth, truth + noise) == pytest.approx(
        stats.spearmanr(truth, truth + noise).statistic
    )
    assert math.isnan(metrics.pearson(truth, np.ones(50)))
    assert math.isnan(metrics.spearman(np.ones(50), truth))


def test_ndcg_falls_with_the_rank_of_the_relevant_document():
    found = metrics.ndcg([[1, 0, 0]] * 3, [[3, 2, 1], [2, 3, 1], [1, 3, 2]], k=2)
    assert found == pytest.approx([1, 1 / math.log2(3), 0])


def test_exact_match_wants_all_answers_of_an_example():
    assert list(metrics.exact_match([["B", "O"], ["O"]], [["B", "O"], ["B"]])) == [1, 0]
