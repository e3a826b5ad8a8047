"""From a divergence to an accuracy, before and without running the smaller encoder."""

import torch
from torch import Tensor
from torch.nn import functional

_DRAWS = 32
_HALVINGS = 40
_LARGEST_NOISE = 64.0


def expected_accuracy(logits: Tensor, truth: Tensor, divergence: float, seed: int = 0) -> float:
    """Return the accuracy to expect of an encoder that diverges from another one by so much.

    The change of the logits is taken for independent normal noise, as large as it takes for the
    mean KL(softmax(z) || softmax(z + noise)) to be the divergence.

    Args:
        logits: The other encoder's z, `(examples, classes)`.
        truth: Right classes, `(examples,)`.
        divergence: Mean KL in nats.
        seed: Seed of the noise.

    Returns:
        Fraction right, 0 to 1, mean over the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(_DRAWS, *logits.shape, generator=generator, dtype=torch.float64)
    logits = logits.double()
    low, high = 0.0, _LARGEST_NOISE
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if _divergence(logits, middle * noise) < divergence else (low, middle)
        )
    right = (logits + low * noise).argmax(-1) == truth
    return float(right.double().mean())


def divergence_for(logits: Tensor, truth: Tensor, drop: float, seed: int = 0) -> float:
    """Return the largest divergence at which the accuracy is expected to fall by no more.

    Args:
        logits: As for `expected_accuracy`.
        truth: Right classes, `(examples,)`.
        drop: Fraction, above 0.
        seed: Seed of the noise.
    """
    before = float((logits.argmax(-1) == truth).double().mean())
    low, high = 0.0, 4.0
    for _ in range(_HALVINGS // 2):
        middle = (low + high) / 2
        fits = before - expected_accuracy(logits, truth, middle, seed) <= drop
        low, high = (middle, high) if fits else (low, middle)
    return low


def mean_divergence(logits: Tensor, changed: Tensor) -> float:
    """Return the mean KL(softmax(logits) || softmax(changed)) in nats.

    Args:
        logits: `(examples, classes)`.
        changed: Likewise.
    """
    teacher, student = (z.double().log_softmax(-1) for z in (logits, changed))
    return float(functional.kl_div(student, teacher, reduction="batchmean", log_target=True))


def _divergence(logits: Tensor, change: Tensor) -> float:
    teacher = logits.log_softmax(-1)
    student = (logits + change).log_softmax(-1)
    return float((teacher.exp() * (teacher - student)).sum(-1).mean())
