"""From losses and costs to a plan: which sublayer keeps how many units, within a budget.

Every sublayer has a curve: the loss of keeping k of its units, the best k. Every width has a
cost. Choosing one width per sublayer so that the costs stay within a budget and the losses add up
to the least is a multiple-choice knapsack, solved by dynamic programming.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tcompress.anatomy import Anatomy
from tcompress.errors import RequestError
from tcompress.plan import CompressionPlan

from .cost import NEURON_STEP, CostTable
from .criteria import neuron_criteria
from .scores import HeadScores

_BUCKETS = 8_000
"""Costs are rounded up to this fraction of the budget."""
_FEWEST_WIDTHS = 24
Floats = npt.NDArray[np.float64]


class Costs(Protocol):
    """What widths cost, in any unit; costs add up."""

    @property
    def rest(self) -> float:
        """What is left when every sublayer is dropped."""

    def attention(self, layer: int, heads: int) -> float:
        """Return what a layer's attention costs with so many heads.

        Args:
            layer: Position of the layer.
            heads: Heads that it keeps.
        """

    def feed_forward(self, layer: int, neurons: int) -> float:
        """Return what a layer's FFN costs with so many neurons.

        Args:
            layer: Position of the layer.
            neurons: Neurons that it keeps.
        """


@dataclass(frozen=True)
class MacCosts:
    """Multiply-accumulates of one example, as `Anatomy.macs` counts them.

    Attributes:
        per_head: Of one head, per layer.
        per_neuron: Of one neuron, per layer.
        rest: 0.
    """

    per_head: tuple[int, ...]
    per_neuron: tuple[int, ...]
    rest: float = 0.0

    @classmethod
    def of(cls, anatomy: Anatomy, tokens: int) -> "MacCosts":
        """Count for an encoder.

        Args:
            anatomy: Its pieces.
            tokens: Length of the example.
        """
        pairs = [anatomy.unit_macs(layer, tokens) for layer in range(len(anatomy.layers))]
        heads, neurons = zip(*pairs, strict=True)
        return cls(heads, neurons)

    def attention(self, layer: int, heads: int) -> float:
        """Return MACs; see `Costs`.

        Args:
            layer: Position of the layer.
            heads: Heads that it keeps.
        """
        return self.per_head[layer] * heads

    def feed_forward(self, layer: int, neurons: int) -> float:
        """Return MACs; see `Costs`.

        Args:
            layer: Position of the layer.
            neurons: Neurons that it keeps.
        """
        return self.per_neuron[layer] * neurons


@dataclass(frozen=True)
class LatencyCosts:
    """Milliseconds, from a measured table.

    Attributes:
        table: The table.
    """

    table: CostTable

    @property
    def rest(self) -> float:
        """What the engine takes without any sublayer."""
        return self.table.rest_ms

    def attention(self, layer: int, heads: int) -> float:
        """Return ms; see `Costs`.

        Args:
            layer: Position of the layer.
            heads: Heads that it keeps.
        """
        return self.table.attention_ms(layer, heads)

    def feed_forward(self, layer: int, neurons: int) -> float:
        """Return ms; see `Costs`.

        Args:
            layer: Position of the layer.
            neurons: Neurons that it keeps.
        """
        return self.table.feed_forward_ms(layer, neurons)


@dataclass(frozen=True)
class _Choice:
    """The widths that a sublayer can have.

    Attributes:
        widths: Units kept, ascending.
        losses: Of each.
        costs: Of each.
    """

    widths: tuple[int, ...]
    losses: Floats
    costs: Floats


@dataclass(frozen=True)
class Planner:
    """Finds the plan of least loss within a budget.

    Attributes:
        scores: What the removal of each unit loses; sums over units are the losses of sublayers.
        plan: What the encoder has now.
        costs: What widths cost.
        drop_sublayers: Whether a sublayer may lose all its units.
    """

    scores: HeadScores
    plan: CompressionPlan
    costs: Costs
    drop_sublayers: bool = True

    def total(self, plan: CompressionPlan) -> float:
        """Return the cost of a plan.

        Args:
            plan: Any plan for this encoder.
        """
        pairs = enumerate(zip(plan.head_counts, plan.neuron_counts, strict=True))
        return self.costs.rest + sum(
            self.costs.attention(i, heads) + self.costs.feed_forward(i, neurons)
            for i, (heads, neurons) in pairs
        )

    def loss(self, plan: CompressionPlan) -> float:
        """Return the predicted loss of a plan: the scores of all that it removes.

        Args:
            plan: A plan within the encoder's.
        """
        removed = 0.0
        nothing = tuple((0.0,) * count for count in self.plan.neuron_counts)
        of_neurons = self.scores.neurons or nothing  # heads-only criteria price no neuron
        for mine, old, heads, neurons in zip(
            plan.layers, self.plan.layers, self.scores.heads, of_neurons, strict=True
        ):
            for kept, units, scores in (
                (mine.heads, old.heads, heads),
                (mine.neurons, old.neurons, neurons),
            ):
                stay = set(kept)
                removed += sum(s for u, s in zip(units, scores, strict=True) if u not in stay)
        return removed

    def within(self, budget: float) -> CompressionPlan:
        """Return the plan of least loss whose cost is at most a budget.

        Args:
            budget: In the unit of the costs, the rest included.

        Raises:
            RequestError: If no plan is that cheap.
        """
        if not self.scores.neurons:
            msg = (
                f"{self.scores.criterion.value} scores heads only, and a budget is about neurons "
                f"too; use one of {', '.join(neuron_criteria())}"
            )
            raise RequestError(msg)
        if budget >= self.total(self.plan):
            return self.plan
        choices = self._choices()
        cheapest = self.costs.rest + sum(float(choice.costs.min()) for choice in choices)
        if budget < cheapest or budget <= self.costs.rest:
            msg = f"the smallest plan costs {cheapest:.4g}, {budget:.4g} was asked for"
            raise RequestError(msg)
        widths = _knapsack(choices, budget - self.costs.rest)
        return self._keeping(widths[::2], widths[1::2])

    def _choices(self) -> list[_Choice]:
        choices = []
        floor = 0 if self.drop_sublayers else 1
        for index, (heads, neurons) in enumerate(
            zip(self.scores.heads, self.scores.neurons, strict=True)
        ):
            choices.append(_choice(heads, floor, self.costs.attention, index, step=1))
            many = len(neurons) >= _FEWEST_WIDTHS * NEURON_STEP
            step = NEURON_STEP if many else 1 + len(neurons) // 64
            choices.append(_choice(neurons, floor, self.costs.feed_forward, index, step=step))
        return choices

    def _keeping(self, heads: Sequence[int], neurons: Sequence[int]) -> CompressionPlan:
        layers = tuple(
            replace(
                layer,
                heads=_best(layer.heads, self.scores.heads[i], heads[i]),
                neurons=_best(layer.neurons, self.scores.neurons[i], neurons[i]),
            )
            for i, layer in enumerate(self.plan.layers)
        )
        return replace(self.plan, layers=layers)


def smallest_within_loss(planner: Planner, loss: float, steps: int = 24) -> CompressionPlan:
    """Return the cheapest plan whose predicted loss stays within a bound.

    Args:
        planner: Knows losses and costs.
        loss: The bound.
        steps: Halvings of the range of budgets.
    """
    best = planner.plan
    low, high = planner.costs.rest, planner.total(planner.plan)
    for _ in range(steps):
        middle = (low + high) / 2
        try:
            plan = planner.within(middle)
        except RequestError:
            low = middle
            continue
        if planner.loss(plan) <= loss and _keeps_something(plan):
            best, high = plan, middle
        else:
            low = middle
    return best


def _keeps_something(plan: CompressionPlan) -> bool:
    return any((*plan.head_counts, *plan.neuron_counts))


def _choice(
    scores: Sequence[float],
    floor: int,
    cost: Callable[[int, int], float],
    layer: int,
    *,
    step: int,
) -> _Choice:
    units = len(scores)
    widths = sorted({*range(0, units, step), min(floor, units), units})
    widths = [width for width in widths if width >= min(floor, units)]
    # lost[k]: the k least important units are gone
    lost = list(accumulate(sorted(scores), initial=0.0))
    return _Choice(
        tuple(widths),
        np.array([lost[units - width] for width in widths]),
        np.array([cost(layer, width) for width in widths]),
    )


def _knapsack(choices: Sequence[_Choice], budget: float) -> list[int]:
    """Return one width per sublayer: least loss, costs within the budget.

    Reference:
        The dynamic program of SPDY, Frantar and Alistarh 2022, arXiv:2201.13096, section 3.
    """
    least = np.zeros(_BUCKETS + 1)
    taken: list[npt.NDArray[np.int64]] = []
    prices = [np.ceil(c.costs / budget * _BUCKETS - 1e-6).astype(np.int64) for c in choices]
    for choice, price in zip(choices, prices, strict=True):
        options = np.full((len(choice.widths), _BUCKETS + 1), math.inf)
        for row, (loss, cost) in enumerate(zip(choice.losses, price, strict=True)):
            if cost <= _BUCKETS:
                options[row, cost:] = least[: _BUCKETS + 1 - cost] + loss
        taken.append(options.argmin(0))
        least = options.min(0)
    left = _BUCKETS
    widths = []
    for choice, price, rows in zip(
        reversed(choices), reversed(prices), reversed(taken), strict=True
    ):
        row = int(rows[left])
        widths.append(choice.widths[row])
        # prices are rounded up: of the cheapest plan they may be more than there is
        left = max(0, left - int(price[row]))
    return widths[::-1]


def _best(units: Sequence[int], scores: Sequence[float], count: int) -> tuple[int, ...]:
    """Return the `count` most important units, ascending."""
    order = sorted(range(len(units)), key=lambda i: (-scores[i], i))
    return tuple(sorted(units[i] for i in order[:count]))
