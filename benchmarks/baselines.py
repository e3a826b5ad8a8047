"""Two published ways to prune without retraining, written from their formulas.

Kwon et al. 2022, arXiv:2204.09656: masks by the diagonal Fisher information, rearranged by its
off-diagonal blocks, then scalar scales fitted by least squares. K-prune, Park et al. 2024,
arXiv:2308.03449: sublayer by sublayer, scores by what the model knows, then least squares for the
whole projection. Both end with smaller matrices: scales are folded into the weights.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from scipy.sparse.linalg import lsmr
from torch import Tensor
from torch.nn import functional

from tcompress.anatomy import Anatomy
from tcompress.compress.gating import Gates, Units, gated, open_gates
from tcompress.compress.judging import predict_all
from tcompress.compress.moments import Moments
from tcompress.compress.pruning import prune_
from tcompress.compress.streams import Pair, Streams
from tcompress.compress.sublayers import Side
from tcompress.encoder import Encoder, evaluating
from tcompress.errors import RequestError
from tcompress.plain import PlainEncoder, PlainLayer, plain
from tcompress.plan import CompressionPlan
from tcompress.preprocessing import Batch, Encoded

_LARGEST_SCALE = 10.0


@dataclass(frozen=True)
class Budget:
    """Multiply-accumulates that may be left, and what units cost.

    Attributes:
        head: Of one head.
        neuron: Of one neuron.
        left: That may be left, at most.
    """

    head: int
    neuron: int
    left: float

    @classmethod
    def of(cls, anatomy: Anatomy, tokens: int, removed: float) -> "Budget":
        """Return what is left of an encoder once a fraction is removed.

        Args:
            anatomy: The encoder's pieces.
            tokens: Length at which multiply-accumulates are counted.
            removed: The fraction.
        """
        head, neuron = anatomy.unit_macs(0, tokens)
        return cls(head, neuron, (1 - removed) * anatomy.macs(tokens))


def prune_by_fisher(
    encoder: Encoder, gradients: Tensor, encoded: Encoded, *, removed: float, tokens: int
) -> Encoder:
    """Search, rearrange and tune masks, and cut.

    The scales are tuned towards a model with the square root of the share kept, as the authors'
    code does.

    Args:
        encoder: The encoder; not changed.
        gradients: From `batch_gradients`.
        encoded: Calibration inputs.
        removed: Fraction of the multiply-accumulates to remove.
        tokens: Length at which they are counted.

    Returns:
        The pruned encoder.

    Reference:
        Kwon et al. 2022, arXiv:2204.09656, sections 4.2 to 4.4.
    """
    anatomy = encoder.anatomy
    units = Units.of(anatomy)
    importance = gradients.square().sum(0)
    kept = search_masks(importance, units, Budget.of(anatomy, tokens, removed))
    layers = zip(_layers(units, kept), _layers(units, gradients.T), strict=True)
    kept = torch.cat([rearranged(mask, rows.T) for mask, rows in layers])
    milder = search_masks(importance, units, Budget.of(anatomy, tokens, 1 - (1 - removed) ** 0.5))
    student, teacher = (_cut(encoder, _plan(encoder, units, mask)) for mask in (kept, milder))
    tune_scales_(student, teacher, encoded)
    return student


def batch_gradients(encoder: Encoder, batches: Iterable[tuple[Batch, Tensor]]) -> Tensor:
    """Differentiate every batch's mean cross-entropy in the gates.

    Args:
        encoder: The encoder; not changed.
        batches: Inputs and right classes.

    Returns:
        `(batches, units)`, float64; units in the order of `Units`.
    """
    anatomy = encoder.anatomy
    rows = []
    with evaluating(encoder.model), torch.enable_grad():
        for batch, labels in batches:
            gates = open_gates(anatomy, 1, encoder.device)
            with gated(anatomy, gates):
                loss = functional.cross_entropy(encoder.logits(batch), labels)
            found = torch.autograd.grad(loss, (*gates.heads, *gates.neurons))
            rows.append(torch.cat(found, dim=1)[0])
    return torch.stack(rows).double()


def search_masks(importance: Tensor, units: Units, budget: Budget) -> Tensor:
    """Keep the heads and neurons of most importance within a budget.

    Heads cost the same and so do neurons: for every number of heads, the best ones and as many of
    the best neurons as still fit; the number with the largest sum wins.

    Args:
        importance: `(units,)`.
        units: Their order.
        budget: What may be left.

    Returns:
        `(units,)`, True where kept.
    """
    parts = importance.split([sum(units.heads), sum(units.neurons)])
    orders = [part.argsort(descending=True) for part in parts]
    heads, neurons = (
        functional.pad(part[order].cumsum(0), (1, 0))
        for part, order in zip(parts, orders, strict=True)
    )
    most = min(len(heads) - 1, int(budget.left // budget.head))
    choices = [
        (count, min(len(neurons) - 1, int((budget.left - count * budget.head) // budget.neuron)))
        for count in range(1, most + 1)
    ]
    if not choices:
        msg = f"a budget of {budget.left:.4g} MACs leaves no head; remove less"
        raise RequestError(msg)
    best = max(choices, key=lambda counts: float(heads[counts[0]] + neurons[counts[1]]))
    masks = [torch.zeros(len(part), dtype=torch.bool) for part in parts]
    for mask, order, count in zip(masks, orders, best, strict=True):
        mask[order[:count]] = True
    return torch.cat(masks)


def rearranged(kept: Tensor, gradients: Tensor) -> Tensor:
    """Choose as many units of a sublayer again, with the Fisher information of pairs.

    The removed set R minimises 1_R^T F 1_R, F = G^T G. It starts with the units of least F_ii;
    every other unit, the least important first, is offered a place, and the one whose return
    leaves the least leaves R.

    Args:
        kept: `(units,)`, True where kept; only their number counts.
        gradients: G, `(batches, units)`.

    Returns:
        `(units,)`, True where kept.
    """
    order = gradients.square().sum(0).argsort()
    count = int((~kept).sum())
    gone = order[:count]
    for unit in order[count:]:
        offered = torch.cat([gone, unit[None]])
        without = gradients[:, offered].sum(1, keepdim=True) - gradients[:, offered]
        back = int(without.square().sum(0).argmin())
        gone = torch.cat([offered[:back], offered[back + 1 :]])
    chosen = torch.ones_like(kept)
    chosen[gone] = False
    return chosen


@torch.no_grad()
def tune_scales_(
    student: Encoder, teacher: Encoder, encoded: Encoded, *, batch_size: int = 32
) -> None:
    """Scale what is left of every sublayer towards the teacher's stream, in place, bottom-up.

    The first attention sublayer stays as it is. Where the solver does not converge, or a scale
    exceeds 10, tuning ends; so do the authors.

    Args:
        student: The pruned encoder.
        teacher: A less pruned one.
        encoded: Calibration inputs.
        batch_size: Examples per batch.
    """
    pair = Pair(plain(student), plain(teacher), student.device)
    with Streams(pair, encoded, batch_size) as streams:
        for index in range(len(pair.student.layers)):
            for part in pair.sublayers(index):
                linear = part.student.linear
                if linear.in_features and (index, part.name) != (0, "attention"):
                    width = part.student.width
                    moments = _moments(part.student, part.teacher, streams)
                    scales = fitted_scales(moments, linear.weight.T.double(), width)
                    if scales is None:
                        return
                    linear.weight.mul_(scales.repeat_interleave(width))
                streams.advance(part.student, part.teacher)


def fitted_scales(moments: Moments, weights: Tensor, width: int) -> Tensor | None:
    """Fit one factor per unit: minimise |sum_u s_u z_u W_u + c - y|^2 around s = 1.

    Heads have the constant c beside them, as theirs do; the norm behind takes it out again, so it
    is dropped. The normal equations go through LSMR with damping 1.

    Args:
        moments: Of the features z and the targets y, per token.
        weights: W, `(channels, hidden)`.
        width: Channels of a unit.

    Returns:
        s, `(units,)`; None where the solver did not converge or a factor exceeds 10.
    """
    z, y = moments.means
    plain_sums = moments.without_centre()
    tokens = moments.weight
    # A^T A and A^T y of the columns z_u W_u, channel by channel, then summed over the units'
    square = tokens * plain_sums.covariance * (weights @ weights.T)
    cross = tokens * (plain_sums.cross_covariance * weights).sum(1)
    units = len(weights) // width
    normal = square.unflatten(0, (units, width)).unflatten(2, (units, width)).sum((1, 3))
    target = cross.unflatten(0, (units, width)).sum(1) - normal.sum(1)
    if width > 1:
        constant = tokens * (z * weights.sum(1)).unflatten(0, (units, width)).sum(1)
        corner = torch.tensor([tokens * weights.shape[1]], dtype=torch.float64)
        normal = torch.cat([normal, constant[None]])
        normal = torch.cat([normal, torch.cat([constant, corner])[:, None]], dim=1)
        target = torch.cat([target, (tokens * y.sum() - constant.sum())[None]])
    solution, reason, *_ = lsmr(normal.numpy(), target.numpy(), damp=1.0, maxiter=5 * len(normal))
    scales = 1 + torch.from_numpy(solution)[:units]
    # reasons 0 to 2: solved; above: ill-conditioned, or out of iterations
    return scales.float() if reason <= 2 and scales.abs().max() <= _LARGEST_SCALE else None


@dataclass(frozen=True)
class KPrune:
    """What K-prune leaves to choose.

    Attributes:
        predictive: Weight of the knowledge in the answers.
        representational: Weight of the knowledge in the streams.
        heads: Factor on the scores of heads.
        temperature: Of the softmax that answers are compared with.
        batch_size: Examples per batch.
    """

    predictive: float = 1.0
    representational: float = 2.5e-4
    heads: float = 64.0
    temperature: float = 2.0
    batch_size: int = 32


@torch.no_grad()
def prune_by_knowledge(
    encoder: Encoder,
    encoded: Encoded,
    *,
    removed: float,
    tokens: int,
    recipe: KPrune | None = None,
) -> Encoder:
    """Prune sublayer by sublayer, bottom-up: score, choose, solve for the whole projection.

    All tokens of the last layer take part, as in the authors' code.

    Args:
        encoder: The encoder; not changed.
        encoded: Calibration inputs.
        removed: Fraction of the multiply-accumulates to remove.
        tokens: Length at which they are counted.
        recipe: Weights of the score.

    Returns:
        The pruned encoder.

    Reference:
        Park et al. 2024, arXiv:2308.03449, sections 3.2 to 3.4.
    """
    recipe = recipe or KPrune()
    units = Units.of(encoder.anatomy)
    budget = Budget.of(encoder.anatomy, tokens, removed)
    student = replace(encoder, model=copy.deepcopy(encoder.model))
    pair = Pair(_all_tokens(plain(student)), _all_tokens(plain(encoder)), encoder.device)
    answers = predict_all(encoder, encoded)
    masks: list[Tensor] = []
    with Streams(pair, encoded, recipe.batch_size) as streams:
        for part in (part for layer in range(len(units.heads)) for part in pair.sublayers(layer)):
            scores = knowledge(pair.student, streams, len(masks), encoded, answers, recipe)
            kept, cost = affordable(scores, len(masks) % 2, budget)
            channels = kept.repeat_interleave(part.student.width)
            _solve_(part.student, part.teacher, streams, channels)
            streams.advance(part.student, part.teacher)
            budget = replace(budget, left=budget.left - cost)
            masks.append(kept)
    prune_(student, _plan(encoder, units, torch.cat([*masks[::2], *masks[1::2]])))
    return student


def knowledge(
    module: PlainEncoder,
    streams: Streams,
    first: int,
    encoded: Encoded,
    answers: Tensor,
    recipe: KPrune,
) -> list[Tensor]:
    """Score the units of a sublayer and of all behind it, on the encoder as it is now.

    lambda_rep E[a^2] mean_j W_ij^2 over tokens, plus lambda_pred / 2 the sum over batches of the
    squared gradient of T^2 KL(teacher || student) in the gate, over the examples; of heads, the
    mean over their channels.

    Args:
        module: The encoder as it is now.
        streams: Its stream before that sublayer.
        first: The sublayer: 0 is the first layer's attention, 1 its FFN, and so on.
        encoded: Calibration inputs.
        answers: The teacher's logits, `(examples, classes)`.
        recipe: Weights of the score.

    Returns:
        `(units,)` per sublayer.
    """
    parts = _parts(module)[first:]
    powers, slopes = ([torch.zeros(part.channels) for part in parts] for _ in range(2))
    rows = [positions for positions, _ in encoded.batches(recipe.batch_size)]
    seen = 0
    for place, (x, _, bias, real) in streams.read():
        gates = [torch.ones(part.channels, requires_grad=True) for part in parts]
        with torch.enable_grad():
            features, logits = _gated_answers(module, parts, (x, bias, real), gates)
            teacher, student = (
                (z / recipe.temperature).log_softmax(-1) for z in (answers[rows[place]], logits)
            )
            loss = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
            found = torch.autograd.grad(recipe.temperature**2 * loss, gates)
        for i, (f, gradient) in enumerate(zip(features, found, strict=True)):
            powers[i] += f.detach()[real].square().sum(0)
            slopes[i] += gradient.square()
        seen += int(real.sum())
    scores = []
    for part, power, slope in zip(parts, powers, slopes, strict=True):
        representational = power / seen * part.projection.weight.square().mean(0)
        score = recipe.representational * representational
        score = score + recipe.predictive * slope / (2 * len(answers))
        factor = 1.0 if part.feed_forward else recipe.heads
        scores.append(factor * score.unflatten(0, (-1, part.width)).mean(1))
    return scores


def affordable(scores: Sequence[Tensor], kind: int, budget: Budget) -> tuple[Tensor, float]:
    """Keep the units of most score per multiply-accumulate that a budget pays for.

    One threshold for a sublayer and all behind it.

    Args:
        scores: `(units,)` of each of them.
        kind: 0 where the first of them is attention, 1 where it is an FFN.
        budget: What may be left of them together.

    Returns:
        `(units,)` of the first sublayer, True where kept; and what those cost.
    """
    prices = [budget.neuron if (kind + i) % 2 else budget.head for i in range(len(scores))]
    costs = torch.cat(
        [
            torch.full((len(part),), price, dtype=torch.float64)
            for part, price in zip(scores, prices, strict=True)
        ]
    )
    order = (torch.cat(list(scores)) / costs).argsort(descending=True, stable=True)
    kept = torch.zeros(len(costs), dtype=torch.bool)
    kept[order] = costs[order].cumsum(0) <= budget.left
    first = kept[: len(scores[0])]
    return first, float(first.sum()) * prices[0]


@dataclass(frozen=True)
class _Part:
    """A sublayer to walk through: what its last projection reads, and where its output goes."""

    layer: PlainLayer
    feed_forward: bool

    @property
    def projection(self) -> torch.nn.Linear:
        return self.layer.ffn_out if self.feed_forward else self.layer.output

    @property
    def channels(self) -> int:
        return self.projection.in_features

    @property
    def width(self) -> int:
        return 1 if self.feed_forward else self.layer.head_size

    def features(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.layer.excite(x) if self.feed_forward else self.layer.mix(x, bias)

    def behind(self, x: Tensor, features: Tensor) -> Tensor:
        layer = self.layer
        if self.feed_forward:
            stream, norm = x + layer.gather(features), layer.ffn_norm
        else:
            stream, norm = layer.carried(x) + layer.join(features), layer.attention_norm
        return stream if layer.norm_first else cast("Tensor", norm(stream))


def _parts(module: PlainEncoder) -> list[_Part]:
    layers = [cast("PlainLayer", layer) for layer in module.layers]
    return [_Part(layer, feed_forward) for layer in layers for feed_forward in (False, True)]


def _gated_answers(
    module: PlainEncoder,
    parts: Sequence[_Part],
    inputs: tuple[Tensor, Tensor, Tensor],
    gates: Sequence[Tensor],
) -> tuple[list[Tensor], Tensor]:
    """Walk from a sublayer to the logits; return what every last projection reads, and those."""
    x, bias, real = inputs
    seen = []
    for part, gate in zip(parts, gates, strict=True):
        seen.append(part.features(x, bias))
        x = part.behind(x, seen[-1] * gate)
    x = x if module.final_norm is None else module.final_norm(x)
    return seen, module.head(x, real)


def _moments(student: Side, teacher: Side, streams: Streams) -> Moments:
    """Gather what a projection reads, and what it has to add to reach the teacher's stream."""
    linear = student.linear
    moments = Moments(linear.in_features, linear.out_features)
    for place, (x_s, x_t, bias, real) in streams.read():
        target = teacher.behind(x_t, bias)
        streams.keep(place, target)
        features = student.features(x_s, bias)
        real = real[:, : features.shape[1]]
        added = target - student.carried(x_s)
        added = added if linear.bias is None else added - linear.bias
        moments.add(features[real], added[real])
    return moments


def _solve_(student: Side, teacher: Side, streams: Streams, kept: Tensor) -> None:
    """Solve for the kept rows of a projection without a ridge; the others become 0."""
    plain_sums = _moments(student, teacher, streams).without_centre()
    student.linear.weight.zero_()
    if kept.any():
        square, cross = plain_sums.covariance[kept][:, kept], plain_sums.cross_covariance[kept]
        solution = torch.linalg.lstsq(square, cross, driver="gelsd").solution
        student.linear.weight[:, kept] = solution.T.float()


def _all_tokens(module: PlainEncoder) -> PlainEncoder:
    """Let the last layer compute every token, though the head may read the first one only."""
    for layer in module.layers:
        cast("PlainLayer", layer).first_only = False
    return module


def _layers(units: Units, values: Tensor) -> tuple[Tensor, ...]:
    """Cut a vector over units into sublayers: the heads of every layer, then the neurons."""
    return cast("tuple[Tensor, ...]", values.split((*units.heads, *units.neurons)))


def _plan(encoder: Encoder, units: Units, kept: Tensor) -> CompressionPlan:
    gates: Gates = units.split(kept)
    layers = tuple(
        replace(
            layer,
            heads=tuple(unit for unit, stays in zip(layer.heads, heads, strict=True) if stays),
            neurons=tuple(unit for unit, stays in zip(layer.neurons, rest, strict=True) if stays),
        )
        for layer, heads, rest in zip(encoder.plan.layers, gates.heads, gates.neurons, strict=True)
    )
    return replace(encoder.plan, layers=layers)


def _cut(encoder: Encoder, plan: CompressionPlan) -> Encoder:
    student = replace(encoder, model=copy.deepcopy(encoder.model))
    prune_(student, plan)
    return student
