import pytest
import torch

from tcompress.compress.judging import mean_divergence
from tcompress.compress.prediction import (
    divergence_for,
    expected_accuracy,
)
from tcompress.compress.questions import Questions
from tcompress.tasks import Task, decision_of

GENERATOR = torch.Generator().manual_seed(0)
TRUTH = torch.randint(0, 3, (600,), generator=GENERATOR)
LOGITS = torch.randn(600, 3, generator=GENERATOR)
LOGITS[torch.arange(600), TRUTH] += 3
ACCURACY = float((LOGITS.argmax(-1) == TRUTH).double().mean())


def test_no_divergence_leaves_the_accuracy_as_it_is() -> None:
    assert 0.9 < ACCURACY < 1
    assert expected_accuracy(LOGITS, TRUTH, 0.0) == ACCURACY


def test_the_accuracy_falls_with_the_divergence_and_is_the_same_each_time() -> None:
    found = [expected_accuracy(LOGITS, TRUTH, divergence) for divergence in (0, 0.02, 0.1, 0.5, 2)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.7
    assert expected_accuracy(LOGITS, TRUTH, 0.1) == found[2]


def test_the_expected_accuracy_is_that_of_noise_of_that_divergence() -> None:
    noise = 1.5 * torch.randn(2000, *LOGITS.shape, generator=GENERATOR)
    changed = (LOGITS + noise).flatten(0, 1)
    divergence = mean_divergence(LOGITS.repeat(2000, 1), changed)
    accuracy = float((changed.argmax(-1) == TRUTH.repeat(2000)).double().mean())
    assert ACCURACY - accuracy > 0.05
    assert expected_accuracy(LOGITS, TRUTH, divergence) == pytest.approx(accuracy, abs=0.005)


def test_the_divergence_is_pytorchs() -> None:
    p, q = (torch.distributions.Categorical(logits=z) for z in (LOGITS, LOGITS.roll(1, 0)))
    expected = float(torch.distributions.kl_divergence(p, q).mean())
    assert mean_divergence(LOGITS, LOGITS.roll(1, 0)) == pytest.approx(expected, rel=1e-5)
    assert mean_divergence(LOGITS, LOGITS) == 0


@pytest.mark.parametrize("drop", [0.002, 0.01, 0.05])
def test_the_divergence_for_a_drop_is_the_largest_that_stays_inside(drop: float) -> None:
    divergence = divergence_for(LOGITS, TRUTH, drop)
    assert divergence > 0
    assert ACCURACY - expected_accuracy(LOGITS, TRUTH, divergence) <= drop
    assert ACCURACY - expected_accuracy(LOGITS, TRUTH, 1.05 * divergence) > drop


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_what_is_expected_of_a_regression_does_not_depend_on_its_unit(unit: float) -> None:
    numbers, right = unit * LOGITS[:, :1], unit * (LOGITS[:, :1] + 0.5 * LOGITS[:, 1:2])
    asked = Questions(decision_of(Task.REGRESSION), torch.arange(600), 600)
    score = expected_accuracy(numbers, right, 0.5 * unit**2, questions=asked)
    noise = torch.randn(500, 600, generator=GENERATOR)  # half its mean square is 0.5
    wanted = torch.stack(
        [torch.corrcoef(torch.stack([LOGITS[:, 0] + z, right[:, 0]]))[0, 1] for z in noise]
    ).mean()
    assert score == pytest.approx(float(wanted), abs=0.01)


def test_the_drop_of_vectors_is_their_divergence() -> None:
    vectors = torch.randn(300, 400, generator=GENERATOR)
    asked = Questions(decision_of(Task.EMBEDDING), torch.arange(300), 300)
    assert divergence_for(vectors, vectors, 0.01, questions=asked) == pytest.approx(0.01, rel=1e-4)
    assert expected_accuracy(vectors, vectors, 0.2, questions=asked) == pytest.approx(0.8, rel=1e-4)
