"""Criteria of importance: what each reads, and how scores come out of it.

Every score is higher where a unit should be kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from .evidence import Evidence, Statistic


class Criterion(StrEnum):
    """How importance is measured."""

    CURVATURE = "curvature"
    GATE_GRADIENT = "gate-gradient"
    FISHER = "fisher"
    ACTIVATION = "activation"
    MAGNITUDE = "magnitude"
    ENTROPY = "entropy"
    CONFIDENCE = "confidence"
    HIES = "hies"
    LEAVE_ONE_OUT = "leave-one-out"
    RANDOM = "random"
    OBS = "obs"
    """By elimination, see `surgeon`; the one criterion that the shared pass does not measure."""

    @property
    def measure(self) -> "Measure":
        """What it reads and how it scores."""
        return _MEASURES[self]

    @property
    def needs_data(self) -> bool:
        """Whether the criterion looks at examples."""
        return self is Criterion.OBS or bool(self.measure.reads - {Statistic.WEIGHT_SIZE})

    @property
    def follows_loss(self) -> bool:
        """Whether the criterion looks at the gradient of the loss."""
        loss = {Statistic.GRADIENT_SIZE, Statistic.GRADIENT_SQUARE}
        return self is not Criterion.OBS and bool(self.measure.reads & loss)


@dataclass(frozen=True)
class Settings:
    """Numbers that some criteria depend on.

    Attributes:
        seed: Seed of `random`, and of the labels that `curvature` draws where there are many
            classes.
        draws: Labels drawn per example there.
        alpha: Weight of the gradient in `hies`, from 0 to 1; the rest goes to the attention.
    """

    seed: int = 0
    draws: int = 4
    alpha: float = 0.5

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.alpha <= 1 or self.draws < 1:
            msg = f"alpha must be from 0 to 1 and draws at least 1, got {self}"
            raise ValueError(msg)


@dataclass(frozen=True)
class Measure:
    """One criterion.

    Attributes:
        reads: Statistics it needs.
        score: Scores from the evidence, `(units,)`, or `(heads,)` where neurons have none.
        scores_neurons: Whether neurons have scores.
    """

    reads: frozenset[Statistic]
    score: Callable[[Evidence, Settings], Tensor]
    scores_neurons: bool = True


def neuron_criteria() -> list[str]:
    """Return the names of the criteria that score neurons too."""
    scoring = [kind.value for kind, measure in _MEASURES.items() if measure.scores_neurons]
    return [Criterion.OBS.value, *scoring]


def curvature(evidence: Evidence, _: Settings) -> Tensor:
    """Score by the divergence that the removal of a unit causes, to second order.

    1/2 F_ii, with F = E[J^T (diag(p) - p p^T) J] the Gauss-Newton matrix of KL(encoder || gated
    encoder) in the gates, J the Jacobian of the logits and p their softmax. Labels are not used.

    Args:
        evidence: With `CURVATURE`.

    Returns:
        `(units,)`, in nats.
    """
    return evidence[Statistic.CURVATURE] / 2


def gate_gradient(evidence: Evidence, _: Settings) -> Tensor:
    """Score by the size of the loss gradient at a gate m (1 = kept), E|dL/dm| over examples.

    Divided by the l2 norm of the layer's scores, so that layers compare. L is the cross-entropy
    to the label; without labels, to the model's own prediction.

    Args:
        evidence: With `GRADIENT_SIZE`.

    Returns:
        `(units,)`.

    Reference:
        Michel et al. 2019, arXiv:1905.10650, section 4.1: I_h = E|dL/d xi_h|, with the layer-wise
        l2 normalization of Molchanov et al. 2017 (arXiv:1611.06440). Theirs xi = ours m.
    """
    return _l2_normalized(evidence, evidence[Statistic.GRADIENT_SIZE])


def fisher(evidence: Evidence, _: Settings) -> Tensor:
    """Score by the empirical Fisher information of a gate, 1/2 E[(dL/dm)^2], per example.

    Args:
        evidence: With `GRADIENT_SQUARE`.

    Returns:
        `(units,)`.

    Reference:
        Kwon et al. 2022, arXiv:2204.09656, section 4.2, who square gradients of mini-batches.
    """
    return evidence[Statistic.GRADIENT_SQUARE] / 2


def activation(evidence: Evidence, _: Settings) -> Tensor:
    """Score by the mean squared change of the stream where a unit gives its mean output.

    tr(O_h^T Cov(z_h) O_h) of a head with output z_h and output block O_h, Var(a_i) ||W_i||^2 of a
    neuron with activation a_i and output column W_i: the mean itself can stay as a bias.

    Args:
        evidence: With `OUTPUT_VARIANCE`.

    Returns:
        `(units,)`.
    """
    return evidence[Statistic.OUTPUT_VARIANCE]


def magnitude(evidence: Evidence, _: Settings) -> Tensor:
    """Score by the size of the weights.

    A head's is the Frobenius norm of V_h O_h, the matrix it applies to the values it mixes; a
    neuron's the product of the norms of its input and output weights. Divided by the l2 norm of
    the layer's scores, so that layers compare.

    Args:
        evidence: With `WEIGHT_SIZE`.

    Returns:
        `(units,)`.
    """
    return _l2_normalized(evidence, evidence[Statistic.WEIGHT_SIZE])


def entropy(evidence: Evidence, _: Settings) -> Tensor:
    """Score by how focused attention is: 1 - E[-sum_j a_j ln a_j / ln n] over real tokens.

    Args:
        evidence: With `ENTROPY`; n is the number of an example's real tokens.

    Returns:
        `(heads,)`, 0 to 1; 1 where every token attends to one token.
    """
    return 1 - evidence[Statistic.ENTROPY]


def confidence(evidence: Evidence, _: Settings) -> Tensor:
    """Score by the mean of a token's largest attention weight, over real tokens.

    Args:
        evidence: With `CONFIDENCE`.

    Returns:
        `(heads,)`, 0 to 1.

    Reference:
        Voita et al. 2019, arXiv:1905.09418, section 4, who leave out the end-of-sentence token;
        here no token but padding is.
    """
    return evidence[Statistic.CONFIDENCE]


def hies(evidence: Evidence, settings: Settings) -> Tensor:
    """Score by gradient and attention entropy together.

    alpha minmax(gate gradient) + (1 - alpha) (1 - minmax(entropy)), both over all heads. The
    method tunes alpha per task; the default is 0.5.

    Args:
        evidence: With `GRADIENT_SIZE` and `ENTROPY`.
        settings: With `alpha`.

    Returns:
        `(heads,)`, 0 to 1.
    """
    heads = evidence[Statistic.ENTROPY]
    gradient = gate_gradient(evidence, settings)[: len(heads)]
    focus = 1 - _minmax(heads)
    return settings.alpha * _minmax(gradient) + (1 - settings.alpha) * focus


def leave_one_out(evidence: Evidence, _: Settings) -> Tensor:
    """Score by the divergence that the removal of a head alone causes, measured.

    Args:
        evidence: With `DIVERGENCE`.

    Returns:
        `(heads,)`, in nats.
    """
    return evidence[Statistic.DIVERGENCE]


def random(evidence: Evidence, settings: Settings) -> Tensor:
    """Score by chance: what any other criterion has to beat.

    Args:
        evidence: Any.
        settings: With `seed`.

    Returns:
        `(units,)`, uniform in [0, 1).
    """
    units = sum((*evidence.units.heads, *evidence.units.neurons))
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.rand(units, generator=generator, dtype=torch.float64)


def _l2_normalized(evidence: Evidence, scores: Tensor) -> Tensor:
    """Divide by the norm of the layer's heads, or of its neurons."""
    layers = evidence.units.split(scores)
    return torch.cat([part / (part.norm() or 1) for part in (*layers.heads, *layers.neurons)])


def _minmax(values: Tensor) -> Tensor:
    if len(values) == 0:
        return values
    low, high = values.min(), values.max()
    return (values - low) / ((high - low) or 1)


_MEASURES = {
    Criterion.CURVATURE: Measure(
        frozenset({Statistic.CURVATURE, Statistic.HEAD_CURVATURE}), curvature
    ),
    Criterion.GATE_GRADIENT: Measure(frozenset({Statistic.GRADIENT_SIZE}), gate_gradient),
    Criterion.FISHER: Measure(frozenset({Statistic.GRADIENT_SQUARE}), fisher),
    Criterion.ACTIVATION: Measure(frozenset({Statistic.OUTPUT_VARIANCE}), activation),
    Criterion.MAGNITUDE: Measure(frozenset({Statistic.WEIGHT_SIZE}), magnitude),
    Criterion.ENTROPY: Measure(frozenset({Statistic.ENTROPY}), entropy, scores_neurons=False),
    Criterion.CONFIDENCE: Measure(
        frozenset({Statistic.CONFIDENCE}), confidence, scores_neurons=False
    ),
    Criterion.HIES: Measure(
        frozenset({Statistic.GRADIENT_SIZE, Statistic.ENTROPY}), hies, scores_neurons=False
    ),
    Criterion.LEAVE_ONE_OUT: Measure(
        frozenset({Statistic.DIVERGENCE}), leave_one_out, scores_neurons=False
    ),
    Criterion.RANDOM: Measure(frozenset(), random),
}
