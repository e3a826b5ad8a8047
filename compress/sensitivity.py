"""What each sublayer's output is made of, and how much the answers depend on it: one pass."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from tcompress.encoder import Encoder
from tcompress.errors import CalibrationError
from tcompress.machine import threads_for
from tcompress.plain import PlainEncoder, attention_bias, plain
from tcompress.preprocessing import Batch
from tcompress.tasks import Task, decision_of

from .checkpoint import State
from .elimination import Regression, damped
from .freezing import untrained
from .moments import Moments
from .probes import MOST_EXACT_CLASSES, check_classes, check_finite
from .questions import real_rows
from .sublayers import Side, sides

_RIDGE = 1e-3


@dataclass(frozen=True)
class Sensitivity:
    """One sublayer.

    Attributes:
        features: Moments of what its last projection reads, tokens weighted by how much the
            answers depend on them.
        metric: `(hidden, hidden)` float64: an error with covariance E per token makes the answers
            diverge by about tr(metric E).
        weights: The projection, `(channels, hidden)`.
        width: Channels of one unit.
    """

    features: Moments
    metric: Tensor
    weights: Tensor
    width: int

    def state(self) -> State:
        """Return everything, for a checkpoint."""
        return vars(self) | {"features": self.features.state()}

    @classmethod
    def from_state(cls, state: State) -> Self:
        """Return the sublayer that a state was taken from.

        Args:
            state: From `state`.
        """
        return cls(**state | {"features": Moments.from_state(state["features"])})

    def regression(self, ridge: float = _RIDGE) -> Regression:
        """Return the least-squares problem whose loss is the predicted divergence.

        Args:
            ridge: Added to the covariance, as a fraction of its mean variance.
        """
        values, vectors = torch.linalg.eigh(self.metric)
        root = vectors * values.clamp(min=0).sqrt()
        covariance = damped(self.features.covariance, ridge)
        return Regression(covariance, self.weights.double() @ root, self.width)


@dataclass(frozen=True)
class Survey:
    """All sublayers of an encoder.

    Attributes:
        sublayers: Attention and FFN of every layer.
        doubt: E[1 - sum p^2] on the examples, p the encoder's probabilities: the trace of the
            curvature of the divergence in the logits. 0 of tasks without one class per example.
    """

    sublayers: list[tuple[Sensitivity, Sensitivity]]
    doubt: float

    def state(self) -> State:
        """Return everything, for a checkpoint."""
        pairs = [[part.state() for part in pair] for pair in self.sublayers]
        return {"sublayers": pairs, "doubt": self.doubt}

    @classmethod
    def from_state(cls, state: State) -> Self:
        """Return the survey that a state was taken from.

        Args:
            state: From `state`.
        """
        pairs = [
            (Sensitivity.from_state(attention), Sensitivity.from_state(feed_forward))
            for attention, feed_forward in state["sublayers"]
        ]
        return cls(pairs, state["doubt"])


def measure_sensitivity(encoder: Encoder, batches: Iterable[Batch], *, seed: int = 0) -> Survey:
    """Measure every sublayer, by one forward and a few backward passes per batch. No labels.

    Up to second order the divergence KL(encoder || changed encoder) of an example is
    1/2 sum_c (u_c^T J e)^2, where e is the change of the stream behind a sublayer, J the Jacobian
    of the logits in it, and sum_c u_c u_c^T = diag(p) - p p^T the curvature of the divergence in
    the logits (generalized Gauss-Newton). With independent errors of the tokens and rows
    h = u_c^T J, that is 1/2 sum_t tr(E[h h^T] E[e e^T]). Other tasks than one class per example
    have a divergence of their own, and draw their u; where tokens are answers, each real one is.

    Args:
        encoder: The encoder; not changed.
        batches: Calibration inputs.
        seed: Seed of the directions that are drawn where there are many classes.

    Raises:
        CalibrationError: If there is no example, an answer is not finite, or there is one class.
    """
    module = plain(encoder)
    # what is applied several times loses a unit everywhere: its sums are taken together
    distinct = [
        _Gatherer(side) for i in range(len(module.layers)) for side in _first_sides(module, i)
    ]
    gatherers = [distinct[2 * index + kind] for index in module.order for kind in (0, 1)]
    draw = _Directions(encoder.task, torch.Generator().manual_seed(seed))
    examples, unsure = 0, 0.0
    with threads_for(encoder.parameters), untrained(module), torch.enable_grad():
        for batch in batches:
            examples += len(next(iter(batch.values())))
            unsure += _look(module, batch, encoder.device, gatherers, draw)
    if examples == 0:
        msg = "calibration needs at least one example"
        raise CalibrationError(msg)
    found = [gatherer.result(examples) for gatherer in distinct]
    return Survey(list(zip(found[::2], found[1::2], strict=True)), unsure / examples)


def doubt(logits: Tensor) -> Tensor:
    """Return 1 - sum p^2, p = softmax(logits), `(examples,)`.

    Args:
        logits: `(examples, classes)`.
    """
    return 1 - logits.double().softmax(-1).square().sum(-1)


def _look(
    module: PlainEncoder,
    batch: Batch,
    device: torch.device,
    gatherers: list["_Gatherer"],
    draw: "_Directions",
) -> float:
    """Add a batch to the sums; returns the sum of its examples' doubt."""
    inputs = [torch.from_numpy(batch[name]).to(device) for name in module.input_names]
    features, streams, logits, mask = _forward(module, inputs)
    answers, members = real_rows(logits, mask != 0)
    check_finite(answers)
    gradients = [
        torch.autograd.grad(answers, streams, direction, retain_graph=True)
        for direction in draw(answers.detach(), members)
    ]
    for gatherer, x, rows in zip(gatherers, features, zip(*gradients, strict=True), strict=True):
        real = mask[:, : x.shape[1]] != 0
        gatherer.add(x.detach()[real], torch.stack([row[real] for row in rows]))
    return draw.doubt(answers.detach())


class _Directions:
    """Directions u of the logits with sum u u^T the curvature of the task's divergence.

    Args:
        task: The task.
        generator: Draws what is drawn.
    """

    def __init__(self, task: Task, generator: torch.Generator) -> None:
        self._of_classes = task is Task.CLASSIFICATION
        self._decision = decision_of(task)
        self._generator = generator

    def __call__(self, rows: Tensor, members: Tensor) -> Iterable[Tensor]:
        if self._of_classes:
            check_classes(rows.shape[-1])
            return divergence_directions(rows, self._generator)
        return [self._decision.drawn(rows, members, self._generator)]

    def doubt(self, rows: Tensor) -> float:
        return float(doubt(rows).sum()) if self._of_classes else 0.0


def _forward(
    module: PlainEncoder, inputs: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Return what every last projection reads, the streams behind, the logits and the mask."""
    x, mask = module.embed(*inputs)
    bias = attention_bias(mask, x.dtype)
    features: list[Tensor] = []
    streams: list[Tensor] = []
    for side in _sides(module):
        read = side.features(x, bias)
        stream = side.carried(x) + side.join(read)
        if not stream.requires_grad:
            stream.requires_grad_(True)
        features.append(read)
        streams.append(stream)
        x = side.stream(stream)
    if module.final_norm is not None:
        x = module.final_norm(x)
    return features, streams, module.head(x, mask), mask


def divergence_directions(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return directions u with sum u u^T = diag(p) - p p^T, p = softmax(logits).

    Exact with classes - 1 directions where there are few classes: the Cholesky factor of all but
    the last row and column; every row of the matrix sums to 0. Else one direction
    u = s e - p (s . e) with s = sqrt(p) and random signs e, which is right in expectation.

    Args:
        logits: `(examples, classes)`.
        generator: Draws the signs.

    Returns:
        `(directions, examples, classes)`.
    """
    p = logits.double().softmax(-1)
    classes = p.shape[-1]
    if classes <= MOST_EXACT_CLASSES:
        curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        # a class that is certain leaves nothing to factor: far below what float32 logits resolve
        inner = curvature[:, :-1, :-1] + 1e-12 * torch.eye(classes - 1, dtype=p.dtype)
        factor = torch.linalg.cholesky(inner)
        full = torch.cat([factor, -factor.sum(1, keepdim=True)], dim=1)
        return full.permute(2, 0, 1).to(logits)
    signs = torch.randint(0, 2, p.shape, generator=generator).to(p) * 2 - 1
    signed = p.sqrt() * signs
    return (signed - p * signed.sum(-1, keepdim=True))[None].to(logits)


class _Gatherer:
    """Sums of one sublayer.

    A token counts by 1 plus its share of the dependence, the batch's mean share being 1: tokens
    whose stream nobody reads again count for nothing.
    """

    def __init__(self, side: Side) -> None:
        self._side = side
        self._features = Moments(side.linear.in_features)
        hidden = side.linear.out_features
        self._metric = torch.zeros(hidden, hidden, dtype=torch.float64)

    def add(self, x: Tensor, rows: Tensor) -> None:
        # x: (tokens, channels); rows: (directions, tokens, hidden)
        dependence = rows.square().sum((0, 2))
        read = dependence > 0
        if not read.any():
            return
        share = dependence[read] / dependence[read].mean()
        self._features.add(x[read], weights=1 + share)
        flat = rows.flatten(0, 1)
        self._metric += (flat.T @ flat).cpu()

    def result(self, examples: int) -> Sensitivity:
        weights = self._side.linear.weight.detach().T.cpu()
        metric = self._metric / (2 * examples)
        return Sensitivity(self._features, metric, weights, self._side.width)


def _sides(module: PlainEncoder) -> Iterator[Side]:
    for place in range(len(module.order)):
        yield from sides(module, place)


def _first_sides(module: PlainEncoder, index: int) -> tuple[Side, Side]:
    return sides(module, module.order.index(index))
