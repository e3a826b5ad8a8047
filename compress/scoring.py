"""Importance of heads and FFN neurons."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from tcompress.anatomy import LayerAnatomy
from tcompress.encoder import Encoder, evaluating
from tcompress.errors import ArtifactError, CalibrationError
from tcompress.machine import threads_for
from tcompress.preprocessing import Batch

from .gating import Gates, gated, open_gates

SCHEMA_VERSION = 1
LabelledBatch = tuple[Batch, Tensor | None]
"""Model inputs, and class indices `(batch,)` or None where there are no labels."""


class Criterion(StrEnum):
    """How importance is measured."""

    GATE_GRADIENT = "gate-gradient"
    MAGNITUDE = "magnitude"

    @property
    def needs_data(self) -> bool:
        """Whether the criterion looks at examples."""
        return self is Criterion.GATE_GRADIENT


@dataclass(frozen=True)
class HeadScores:
    """Importance per head and per neuron; higher means keep.

    Attributes:
        criterion: How it was measured.
        heads: One tuple per layer, in the order of the heads left.
        neurons: One tuple per layer, in the order of the neurons left.
        calibration: What it was measured on: examples, digest, where the labels came from.
    """

    criterion: Criterion
    heads: tuple[tuple[float, ...], ...]
    neurons: tuple[tuple[float, ...], ...]
    calibration: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the scores as a JSON document."""
        return {
            "schema_version": SCHEMA_VERSION,
            "criterion": self.criterion.value,
            "direction": "higher means keep",
            "calibration": self.calibration,
            "heads": [list(layer) for layer in self.heads],
            "neurons": [list(layer) for layer in self.neurons],
        }

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Read scores back from `to_json`'s document.

        Args:
            document: The parsed JSON.

        Raises:
            ArtifactError: If it is not such a document.
        """
        try:
            heads, neurons = (
                tuple(tuple(float(score) for score in layer) for layer in document[key])
                for key in ("heads", "neurons")
            )
            criterion = Criterion(document["criterion"])
            return cls(criterion, heads, neurons, dict(document["calibration"]))
        except (KeyError, TypeError, ValueError) as error:
            msg = f"not a document of head scores: {error!r}"
            raise ArtifactError(msg) from error


def score_units(
    encoder: Encoder,
    criterion: Criterion,
    batches: Iterable[LabelledBatch] = (),
    calibration: dict[str, Any] | None = None,
) -> HeadScores:
    """Score every head and neuron that is left.

    Args:
        encoder: The encoder; its parameters are not modified.
        criterion: How to measure.
        batches: Calibration batches, for criteria that look at data.
        calibration: What to record about them.

    Raises:
        CalibrationError: If there are no examples, or a score is not finite.
    """
    with threads_for(encoder.parameters):
        scores = (
            score_gate_gradient(encoder, batches)
            if criterion is Criterion.GATE_GRADIENT
            else score_magnitude(encoder)
        )
    for name, layers in (("head", scores.heads), ("neuron", scores.neurons)):
        for index, layer in enumerate(layers):
            bad = torch.nonzero(~torch.isfinite(layer)).flatten()
            if len(bad):
                unit = f"layer {index} {name} {int(bad[0])}"
                msg = f"the {criterion.value} score of {unit} is not finite"
                raise CalibrationError(msg)
    heads, neurons = (
        tuple(tuple(layer.tolist()) for layer in layers)
        for layers in (scores.heads, scores.neurons)
    )
    return HeadScores(criterion, heads, neurons, calibration or {})


def score_gate_gradient(encoder: Encoder, batches: Iterable[LabelledBatch]) -> Gates:
    """Score units by the size of the loss gradient at their gate, per example.

    For a gate m (1 = kept) the score is the mean over examples x of |dL(x)/dm|, divided by the
    l2 norm of the scores of its layer, so that layers compare. L is the cross-entropy to the
    label; without labels, to the model's own prediction.

    Args:
        encoder: The encoder; its parameters are not modified.
        batches: Calibration batches.

    Returns:
        Scores as `Gates`: `(heads,)` and `(neurons,)` per layer, float32, non-negative; higher
        means keep.

    Raises:
        CalibrationError: If `batches` is empty.

    Reference:
        Michel et al. 2019, arXiv:1905.10650, section 4.1: I_h = E|dL/d xi_h|, with the layer-wise
        l2 normalization of Molchanov et al. 2017 (arXiv:1611.06440). Theirs xi = ours m.
    """
    anatomy = encoder.anatomy
    total = [torch.zeros(w) for w in (*anatomy.head_counts, *anatomy.neuron_counts)]
    count = 0
    with evaluating(encoder.model), torch.enable_grad(), _frozen_parameters(encoder):
        for batch, targets in batches:
            examples = len(next(iter(batch.values())))
            gates = open_gates(anatomy, examples, encoder.device)
            with gated(anatomy, gates):
                logits = encoder.logits(batch)
            if targets is None:
                targets = logits.detach().argmax(-1)
            loss = functional.cross_entropy(logits, targets.to(logits.device), reduction="sum")
            gradients = torch.autograd.grad(loss, (*gates.heads, *gates.neurons))
            for sum_, gradient in zip(total, gradients, strict=True):
                sum_ += gradient.abs().sum(0).cpu()
            count += examples
    if count == 0:
        msg = "calibration needs at least one example"
        raise CalibrationError(msg)
    scores = tuple(_l2_normalized(sum_ / count) for sum_ in total)
    layers = len(anatomy.layers)
    return Gates(scores[:layers], scores[layers:])


def score_magnitude(encoder: Encoder) -> Gates:
    """Score units by the size of their weights.

    A head's score is the Frobenius norm of V_h O_h, the matrix it applies to the values it
    mixes; a neuron's is the product of the norms of its input and output weights. Both are
    divided by the l2 norm of their layer's scores, so that layers compare.

    Args:
        encoder: The encoder; its parameters are not modified.

    Returns:
        Scores as for `score_gate_gradient`.
    """
    layers = encoder.anatomy.layers
    with torch.no_grad():
        heads = tuple(_l2_normalized(_head_norms(layer)) for layer in layers)
        neurons = tuple(
            _l2_normalized(layer.ffn_in.weight.norm(dim=1) * layer.ffn_out.weight.norm(dim=0))
            for layer in layers
        )
    return Gates(heads, neurons)


def _head_norms(layer: LayerAnatomy) -> Tensor:
    if layer.value is None:
        return torch.zeros(0)
    # v: (heads, head_size, hidden), o: (hidden, heads, head_size)
    v = layer.value.weight.unflatten(0, (-1, layer.head_size))
    o = layer.output.weight.unflatten(1, (-1, layer.head_size))
    # ||V_h O_h||_F^2 = tr((V V^T)(O^T O)): only head_size x head_size products
    v_gram = torch.einsum("had,hbd->hab", v, v)
    o_gram = torch.einsum("dha,dhb->hab", o, o)
    return (v_gram * o_gram).sum((1, 2)).clamp(min=0).sqrt()


def _l2_normalized(scores: Tensor) -> Tensor:
    norm = scores.norm()
    return scores / norm if norm > 0 else scores


@contextmanager
def _frozen_parameters(encoder: Encoder) -> Iterator[None]:
    """Keep autograd away from the parameters, whose gradients scoring does not need."""
    states = [(parameter, parameter.requires_grad) for parameter in encoder.model.parameters()]
    try:
        encoder.model.requires_grad_(False)
        yield
    finally:
        for parameter, state in states:
            parameter.requires_grad_(state)
