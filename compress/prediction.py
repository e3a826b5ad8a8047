"""From a divergence to an accuracy, before and without running the smaller encoder."""

from collections.abc import Callable, Iterator
from statistics import fmean

import torch
from torch import Tensor

from .questions import Questions

_DRAWS = 16
# Noise that is averaged over: with more rows fewer draws say as much, and far sooner.
_AVERAGED = 16 * 4096
_HALVINGS = 30
_LARGEST_NOISE = 64.0


def expected_accuracy(
    logits: Tensor,
    truth: Tensor,
    divergence: float,
    seed: int = 0,
    *,
    questions: Questions | None = None,
) -> float:
    """Return the accuracy to expect of an encoder that diverges from another one by so much.

    The change of the logits is taken for independent normal noise, as large as it takes for the
    mean KL(softmax(z) || softmax(z + noise)), or what the task has in its place, to be the
    divergence.

    Args:
        logits: The other encoder's z, `(rows, channels)`.
        truth: What is right, `(rows, ...)`.
        divergence: Mean KL in nats, or what stands for it.
        seed: Seed of the noise.
        questions: What is asked; None for one class per row.

    Returns:
        Fraction right, 0 to 1, mean over the noise.
    """
    noisy = _Noisy(logits, truth, seed, questions)
    return noisy.accuracy(_largest(lambda size: noisy.divergence(size) < divergence))


def divergence_for(
    logits: Tensor,
    truth: Tensor,
    drop: float,
    seed: int = 0,
    *,
    questions: Questions | None = None,
) -> float:
    """Return the largest divergence at which the accuracy is expected to fall by no more.

    Args:
        logits: As for `expected_accuracy`.
        truth: Right classes, `(examples,)`.
        drop: Fraction, above 0.
        seed: Seed of the noise.
        questions: As for `expected_accuracy`.
    """
    noisy = _Noisy(logits, truth, seed, questions)
    before = noisy.accuracy(0.0)
    return noisy.divergence(_largest(lambda size: before - noisy.accuracy(size) <= drop))


class _Noisy:
    """Logits with noise of any size, the same draw each time."""

    def __init__(
        self, logits: Tensor, truth: Tensor, seed: int, questions: Questions | None
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._logits, self._truth = logits.double(), truth
        self._questions = questions or Questions.of_classes(len(logits))
        # numbers and vectors have a unit of their own, and every component is averaged over
        free = not self._questions.decision.tempered
        averaged = logits.numel() if free else len(logits)
        draws = max(1, min(_DRAWS, _AVERAGED // max(1, averaged)))
        noise = torch.randn(draws, *logits.shape, generator=generator, dtype=torch.float64)
        spread = float(self._logits.std(correction=0)) if free else 1.0
        self._noise = noise * (spread or 1.0)

    def divergence(self, size: float) -> float:
        return fmean(self._questions.divergence(self._logits, z) for z in self._changed(size))

    def accuracy(self, size: float) -> float:
        return fmean(self._questions.score(z, self._truth) for z in self._changed(size))

    def _changed(self, size: float) -> Iterator[Tensor]:
        return (self._logits + size * noise for noise in self._noise)


def _largest(fits: Callable[[float], bool]) -> float:
    """Return the largest size of noise that fits, by halving."""
    low, high = 0.0, _LARGEST_NOISE
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
