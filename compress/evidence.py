"""What calibration examples show about heads and neurons, gathered in one pass.

All statistics that the criteria read come out of the same forward pass, hooks on it, and the same
backward passes. Nothing that is kept grows with the number of examples or tokens.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tcompress.anatomy import Anatomy, LayerAnatomy
from tcompress.encoder import Encoder, evaluating
from tcompress.errors import CalibrationError
from tcompress.preprocessing import Batch, real_tokens
from tcompress.tasks import Task, decision_of

from .freezing import untrained
from .gating import Units, gated, head_closed, open_gates
from .observers import AttentionMaps, UnitVariance
from .probes import (
    MOST_EXACT_CLASSES,
    Probe,
    check_classes,
    check_finite,
    check_slope,
    drawn_probe,
    exact_probe,
    jacobian_products,
    loss_probe,
    sampled_probe,
)
from .questions import real_rows

PARTS = 4
"""Disjoint parts of the examples, whose evidence is kept apart to see how stable scores are."""


class LabelledBatch(NamedTuple):
    """A calibration batch.

    Attributes:
        batch: Model inputs.
        targets: What is right for each row; None for what the encoder answers.
        cut: Takes its output to rows and the place of each row's input; None: every real token is
            a row where tokens are answers, else every input.
    """

    batch: Batch
    targets: Tensor | None = None
    cut: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None


class Statistic(StrEnum):
    """What a criterion can read; a mean over examples unless it says otherwise.

    Vectors are in the order of `Units`: `(units,)` holds heads and neurons, `(heads,)` heads only.
    """

    WEIGHT_SIZE = "weight-size"
    """`(units,)`: a head's ||V_h O_h||_F, a neuron's product of input and output norms; no data."""
    OUTPUT_VARIANCE = "output-variance"
    """`(units,)`: variance of what the unit adds to the stream, summed over channels, per token."""
    GRADIENT_SIZE = "gradient-size"
    """`(units,)`: |dL/dm|, L the cross-entropy and m the unit's gate."""
    GRADIENT_SQUARE = "gradient-square"
    """`(units,)`: (dL/dm)^2."""
    CURVATURE = "curvature"
    """`(units,)`: diagonal of the Gauss-Newton matrix F of the divergence in the gates."""
    HEAD_CURVATURE = "head-curvature"
    """`(heads, heads)`: F of all heads, cross-layer terms included."""
    DIVERGENCE = "divergence"
    """`(heads,)`: KL(encoder || encoder without the head)."""
    ENTROPY = "entropy"
    """`(heads,)`: entropy of the attention of a token over the log of the tokens, per token."""
    CONFIDENCE = "confidence"
    """`(heads,)`: largest attention of a token, per token."""


_LOSS = frozenset({Statistic.GRADIENT_SIZE, Statistic.GRADIENT_SQUARE})
_CURVED = frozenset({Statistic.CURVATURE, Statistic.HEAD_CURVATURE})
_FROM_LOGITS = _LOSS | _CURVED | {Statistic.DIVERGENCE}
_ATTENTION = frozenset({Statistic.ENTROPY, Statistic.CONFIDENCE})
_PER_TOKEN = _ATTENTION | {Statistic.OUTPUT_VARIANCE}


@dataclass(frozen=True)
class Evidence:
    """Statistics of an encoder's units.

    Attributes:
        units: The units, in the order of the vectors.
        statistics: What was gathered, float64 on the CPU.
    """

    units: Units
    statistics: Mapping[Statistic, Tensor]

    def __getitem__(self, statistic: Statistic) -> Tensor:
        return self.statistics[statistic]


class Collector:
    """Gathers statistics batch by batch, apart for each part of the examples.

    Examples are dealt to the parts in turn, in the order in which they come.

    Args:
        encoder: The encoder; unchanged.
        statistics: What to gather.
        seed: Seed of drawn labels.
        draws: Drawn labels per example.
    """

    def __init__(
        self, encoder: Encoder, statistics: Iterable[Statistic], *, seed: int = 0, draws: int = 4
    ) -> None:
        self._encoder = encoder
        self._anatomy = encoder.anatomy
        self._units = Units.of(self._anatomy)
        self._statistics = frozenset(statistics)
        self._rng = np.random.default_rng(seed)
        self._draws = draws
        self._decision = decision_of(encoder.task)
        self._generator = torch.Generator().manual_seed(seed)
        self._sums: dict[Statistic, Tensor] = {}
        wanted = Statistic.OUTPUT_VARIANCE in self._statistics
        self._variances = [
            UnitVariance(layer, PARTS, self._anatomy.order.count(layer.index))
            for layer in self._anatomy.layers
            if wanted
        ]
        self.examples = torch.zeros(PARTS, dtype=torch.int64)
        self._tokens = torch.zeros(PARTS, dtype=torch.int64)

    def add_all(self, batches: Iterable[LabelledBatch]) -> None:
        """Look at every batch.

        Args:
            batches: Calibration batches.

        Raises:
            CalibrationError: If there is no example, or the encoder's answers are of no use.
        """
        with evaluating(self._encoder.model), untrained(self._encoder.model):
            for item in batches:
                self._add(LabelledBatch(*item))
        if not self.examples.any():
            msg = "calibration needs at least one example"
            raise CalibrationError(msg)

    def evidence(self, parts: Sequence[int] = range(PARTS)) -> Evidence:
        """Return the statistics of some parts together.

        Args:
            parts: Which; all by default. Each must have examples.
        """
        chosen = list(parts)
        tokens, examples = int(self._tokens[chosen].sum()), int(self.examples[chosen].sum())
        statistics = {
            name: sums[chosen].sum(0) / (tokens if name in _PER_TOKEN else examples)
            for name, sums in self._sums.items()
        }
        if self._variances:
            layers = [variance.of(chosen, tokens) for variance in self._variances]
            statistics[Statistic.OUTPUT_VARIANCE] = _in_order(layers)
        if Statistic.WEIGHT_SIZE in self._statistics:
            statistics[Statistic.WEIGHT_SIZE] = weight_sizes(self._anatomy)
        return Evidence(self._units, statistics)

    def _add(self, item: LabelledBatch) -> None:
        batch = item.batch
        examples = len(next(iter(batch.values())))
        fixed_tokens = self._encoder.preprocessor.fixed_tokens
        real = torch.from_numpy(real_tokens(batch, fixed_tokens)).to(self._encoder.device)
        # member: (parts, examples), 1 where the example belongs to the part
        turn = (int(self.examples.sum()) + torch.arange(examples)) % PARTS
        member = functional.one_hot(turn, PARTS).T
        with torch.set_grad_enabled(bool(self._statistics & (_LOSS | _CURVED))):
            gates = open_gates(self._anatomy, examples, self._encoder.device)
            with gated(self._anatomy, gates), self._observing(real, member):
                output = self._encoder.logits(batch)
        cut = item.cut or partial(real_rows, real=real)
        rows, members = cut(output)
        answers = _Answers(rows, members, examples, cut)
        check_finite(answers.rows)
        if self._statistics & _FROM_LOGITS and self._encoder.task is Task.CLASSIFICATION:
            check_classes(answers.rows.shape[-1])
        if answers.rows.requires_grad:
            probe = self._probe(answers, item.targets)
            self._add_gradients(answers.rows, (*gates.heads, *gates.neurons), probe, member)
        if Statistic.DIVERGENCE in self._statistics:
            self._sum(Statistic.DIVERGENCE, self._divergences(batch, answers), member)
        self.examples += member.sum(1)
        self._tokens += member @ real.sum(1).cpu()

    def _sum(self, name: Statistic, values: Tensor, member: Tensor) -> None:
        """Add one value per example, `(examples, ...)`, to its part."""
        if name in self._statistics:
            sums = torch.tensordot(member.double(), values.detach().cpu().double(), dims=1)
            self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    def _add_gradients(
        self, logits: Tensor, gates: Sequence[Tensor], probe: Probe, member: Tensor
    ) -> None:
        # r: passes, q: rows of the curvature, b: examples, u: units
        products = jacobian_products(logits, gates, probe.directions)
        gradient = torch.einsum("rb,rbu->bu", probe.loss, products)
        rows = torch.einsum("qrb,rbu->qbu", probe.curvature, products)
        heads = rows[..., : sum(self._units.heads)]
        self._sum(Statistic.GRADIENT_SIZE, gradient.abs(), member)
        self._sum(Statistic.GRADIENT_SQUARE, gradient.square(), member)
        self._sum(Statistic.CURVATURE, rows.square().sum(0), member)
        if Statistic.HEAD_CURVATURE in self._statistics:
            products_of_heads = torch.einsum("qbi,qbj->bij", heads, heads)
            self._sum(Statistic.HEAD_CURVATURE, products_of_heads, member)

    def _probe(self, answers: "_Answers", targets: Tensor | None) -> Probe:
        logits = answers.rows.detach()
        if targets is None:
            if self._statistics & _LOSS:
                check_slope(self._decision)
            targets = self._decision.own(logits, answers.members)
        targets = targets.to(logits.device)
        if self._encoder.task is not Task.CLASSIFICATION:
            draws = self._draws if self._statistics & _CURVED else 0
            rows = (logits, answers.members, answers.inputs)
            return drawn_probe(self._decision, *rows, targets, draws, self._generator)
        if not self._statistics & _CURVED:
            return loss_probe(logits, targets)
        if logits.shape[-1] <= MOST_EXACT_CLASSES:
            return exact_probe(logits, targets)
        uniforms = torch.from_numpy(self._rng.random((len(logits), self._draws)))
        return sampled_probe(logits, targets, uniforms)

    @torch.no_grad()
    def _divergences(self, batch: Batch, answers: "_Answers") -> Tensor:
        """Return the divergence that every head's absence causes, `(examples, heads)`."""
        teacher = answers.rows.double()
        columns = []
        for layer in self._anatomy.layers:
            for head in range(layer.num_heads):
                with head_closed(layer, head):
                    student, members = answers.cut(self._encoder.logits(batch))
                columns.append(
                    self._decision.divergences(teacher, student.double(), members, answers.inputs)
                )
        # rounding can bring a divergence of nothing below 0
        return torch.stack(columns, dim=1).clamp(min=0) if columns else teacher[:, :0]

    @contextmanager
    def _observing(self, real: Tensor, member: Tensor) -> Iterator[None]:
        """Gather what the forward pass inside the block shows.

        Args:
            real: `(examples, tokens)`, True at tokens that are no padding.
            member: `(parts, examples)`.

        Yields:
            Nothing.
        """
        with ExitStack() as hooks:
            for variance in self._variances:
                hooks.enter_context(variance.observing(real, member))
            if self._statistics & _ATTENTION:
                maps = [AttentionMaps(layer, real) for layer in self._anatomy.layers]
                for layer_maps in maps:
                    hooks.enter_context(layer_maps.observing())
            yield
            if self._statistics & _ATTENTION:
                self._sum(Statistic.ENTROPY, torch.cat([m.entropy for m in maps], 1), member)
                self._sum(Statistic.CONFIDENCE, torch.cat([m.confidence for m in maps], 1), member)


class _Answers(NamedTuple):
    """What an encoder answered to a batch, in rows; see `tcompress.tasks.decision`."""

    rows: Tensor
    members: Tensor
    inputs: int
    cut: Callable[[Tensor], tuple[Tensor, Tensor]]


def weight_sizes(anatomy: Anatomy) -> Tensor:
    """Return how large the weights of every unit are.

    Args:
        anatomy: The encoder's pieces.

    Returns:
        `(units,)`, see `Statistic.WEIGHT_SIZE`.
    """
    with torch.no_grad():
        return _in_order(
            (
                _head_norms(layer),
                layer.ffn_in.weight.norm(dim=1) * layer.ffn_out.weight.norm(dim=0),
            )
            for layer in anatomy.layers
        )


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


def _in_order(layers: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Join heads and neurons of every layer in the order of `Units`."""
    heads, neurons = zip(*layers, strict=True)
    return torch.cat([part.cpu().double() for part in (*heads, *neurons)])
