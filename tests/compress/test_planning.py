from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from tcompress.compress.criteria import Criterion
from tcompress.compress.planning import MacCosts, Planner, smallest_within_loss
from tcompress.compress.pruning import prune_
from tcompress.compress.scores import HeadScores
from tcompress.encoder import Encoder
from tcompress.errors import RequestError
from tcompress.plan import CompressionPlan

HEADS, NEURONS = (2, 3), (3, 2)
DENSE = CompressionPlan.dense(HEADS, NEURONS)


@dataclass(frozen=True)
class LinearCosts:
    """Costs in proportion to the width, with a part that only a dropped sublayer saves."""

    per_head: tuple[float, ...]
    per_neuron: tuple[float, ...]
    fixed: float
    rest: float

    def attention(self, layer: int, heads: int) -> float:
        return self.fixed + self.per_head[layer] * heads if heads else 0.0

    def feed_forward(self, layer: int, neurons: int) -> float:
        return self.fixed + self.per_neuron[layer] * neurons if neurons else 0.0


def random_planner(seed: int, *, drop_sublayers: bool) -> Planner:
    rng = np.random.default_rng(seed)

    def draw(counts: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(map(float, rng.exponential(size=count))) for count in counts)

    scores = HeadScores(Criterion.OBS, draw(HEADS), draw(NEURONS), {})
    prices = rng.uniform(1, 5, (2, 2))
    costs = LinearCosts(tuple(prices[0]), tuple(prices[1]), fixed=0.5, rest=2.0)
    return Planner(scores, DENSE, costs, drop_sublayers)


def least_loss(planner: Planner, budget: float) -> float:
    """Try all combinations of widths."""
    floor = 0 if planner.drop_sublayers else 1
    curves = [sorted(s) for s in (*planner.scores.heads, *planner.scores.neurons)]
    losses = []
    for widths in product(*(range(floor, len(curve) + 1) for curve in curves)):
        cost = planner.costs.rest
        cost += sum(planner.costs.attention(i, width) for i, width in enumerate(widths[:2]))
        cost += sum(planner.costs.feed_forward(i, width) for i, width in enumerate(widths[2:]))
        if cost <= budget:
            gone = zip(curves, widths, strict=True)
            losses.append(sum(sum(curve[: len(curve) - width]) for curve, width in gone))
    return min(losses)


@pytest.mark.parametrize("drop_sublayers", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_the_plan_is_the_best_of_all_within_the_budget(seed: int, drop_sublayers: bool) -> None:
    planner = random_planner(seed, drop_sublayers=drop_sublayers)
    total, widths = planner.total(DENSE), 4
    for fraction in (0.55, 0.7, 0.85, 0.99):
        budget = fraction * total
        plan = planner.within(budget)
        assert planner.total(plan) <= budget
        found = planner.loss(plan)
        assert found >= least_loss(planner, budget) - 1e-12
        # costs are rounded up by less than 1/8000 of the budget for each width
        assert found <= least_loss(planner, budget * (1 - widths / 8000)) + 1e-12
        assert drop_sublayers or min((*plan.head_counts, *plan.neuron_counts)) >= 1


@pytest.mark.parametrize("seed", range(8))
def test_a_budget_for_barely_the_smallest_plan_is_kept(seed: int) -> None:
    planner = random_planner(seed, drop_sublayers=False)
    smallest = planner.costs.rest
    for layer in range(2):
        smallest += planner.costs.attention(layer, 1) + planner.costs.feed_forward(layer, 1)
    for slack in (1 + 1e-9, 1.0001, 1.001):
        assert planner.total(planner.within(smallest * slack)) <= smallest * slack
    with pytest.raises(RequestError, match=r"smallest plan costs .*was asked for"):
        planner.within(smallest * 0.999)


def test_rounding_does_not_break_a_budget_where_a_sublayer_costs_next_to_nothing() -> None:
    dense = CompressionPlan.dense((0, *[2] * 9), (40, *[0] * 9))
    scores = HeadScores(Criterion.OBS, ((), *[(1.0, 2.0)] * 9), ((1.0,) * 40, *[()] * 9), {})
    costs = LinearCosts((1.0001,) * 10, (1e-5,) * 10, fixed=0.0, rest=0.0)
    budget = 9 * 1.0001 + 1e-5
    plan = Planner(scores, dense, costs, drop_sublayers=False).within(budget)
    assert (plan.head_counts, plan.neuron_counts) == ((0, *[1] * 9), (1, *[0] * 9))


def test_what_matters_stays_and_widths_are_uneven() -> None:
    heads = ((5.0, 0.1), (0.2, 0.3, 4.0))
    scores = HeadScores(Criterion.OBS, heads, ((0.1, 9.0, 0.1), (0.01, 0.02)), {})
    planner = Planner(scores, DENSE, LinearCosts((1.0, 1.0), (1.0, 1.0), 0.0, 0.0))
    plan = planner.within(3.01)
    assert [layer.heads for layer in plan.layers] == [(0,), (2,)]
    assert [layer.neurons for layer in plan.layers] == [(1,), ()]
    assert planner.loss(plan) == pytest.approx(0.1 + 0.5 + 0.2 + 0.03)
    kept = Planner(scores, DENSE, planner.costs, drop_sublayers=False).within(4.01)
    assert (kept.head_counts, kept.neuron_counts) == ((1, 1), (1, 1))


def test_a_budget_that_is_enough_for_everything_removes_nothing() -> None:
    planner = random_planner(0, drop_sublayers=True)
    assert planner.within(planner.total(DENSE)) is DENSE


def test_less_than_what_no_plan_can_save_is_refused() -> None:
    planner = random_planner(0, drop_sublayers=True)
    with pytest.raises(RequestError, match=r"smallest plan costs 2, 1\.9 was asked for"):
        planner.within(1.9)


def test_scores_of_heads_only_cannot_spend_a_budget() -> None:
    scores = HeadScores(Criterion.HIES, ((1.0, 2.0), (1.0, 2.0, 3.0)), (), {})
    planner = Planner(scores, DENSE, random_planner(0, drop_sublayers=True).costs)
    with pytest.raises(RequestError, match=r"hies scores heads only.*use one of obs, curvature"):
        planner.within(10.0)
    fewer = CompressionPlan((DENSE.layers[0], type(DENSE.layers[1])((2,), (0, 1))), HEADS, NEURONS)
    assert planner.loss(fewer) == 3.0


def test_planned_macs_are_those_of_the_cut_encoder(any_encoder: Encoder) -> None:
    anatomy, rng = any_encoder.anatomy, np.random.default_rng(0)
    scores = HeadScores(
        Criterion.OBS,
        tuple(tuple(rng.exponential(size=count)) for count in anatomy.head_counts),
        tuple(tuple(rng.exponential(size=count)) for count in anatomy.neuron_counts),
        {},
    )
    planner = Planner(scores, any_encoder.plan, MacCosts.of(anatomy, 20))
    assert planner.total(any_encoder.plan) == anatomy.macs(20)
    budget = 0.45 * anatomy.macs(20)
    plan = planner.within(budget)
    prune_(any_encoder, plan)
    assert any_encoder.anatomy.macs(20) == planner.total(plan) <= budget
    assert len({*plan.head_counts, *plan.neuron_counts}) > 2


def test_the_smallest_plan_within_a_loss_is_found_by_its_loss() -> None:
    planner = random_planner(1, drop_sublayers=True)
    everything = sum(sum(layer) for layer in (*planner.scores.heads, *planner.scores.neurons))
    totals = []
    for loss in (0.0, 0.1 * everything, 0.5 * everything):
        plan = smallest_within_loss(planner, loss)
        assert planner.loss(plan) <= loss
        totals.append(planner.total(plan))
    assert totals[0] == planner.total(DENSE)
    assert totals == sorted(totals, reverse=True)
    assert totals[2] < totals[1] < totals[0]
    rest = smallest_within_loss(planner, 2 * everything)
    assert any((*rest.head_counts, *rest.neuron_counts)), "an encoder of nothing is no plan"
