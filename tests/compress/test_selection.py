from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from tcompress.compress.criteria import Criterion
from tcompress.compress.scores import HeadScores
from tcompress.compress.selection import Scope, select_units
from tcompress.errors import RequestError
from tcompress.plan import CompressionPlan, LayerPlan

PLAN = CompressionPlan.dense((4, 4), (2, 2))
SCORES = HeadScores(
    Criterion.MAGNITUDE, ((0.1, 0.2, 0.3, 0.15), (0.9, 0.8, 0.7, 0.6)), ((1, 2), (4, 3)), {}
)


def _heads(plan: CompressionPlan) -> list[tuple[int, ...]]:
    return [layer.heads for layer in plan.layers]


def test_global_scope_removes_the_least_important_of_all() -> None:
    assert _heads(select_units(SCORES, PLAN, heads=0.25)) == [(1, 2), (0, 1, 2, 3)]


def test_layer_scope_removes_the_same_fraction_of_every_layer() -> None:
    plan = select_units(SCORES, PLAN, heads=0.5, scope=Scope.LAYER)
    assert _heads(plan) == [(1, 2), (0, 1)]


def test_every_layer_keeps_its_best_head() -> None:
    assert _heads(select_units(SCORES, PLAN, heads=0.5)) == [(2,), (0, 1, 2)]


def test_a_sublayer_goes_only_when_that_is_allowed() -> None:
    plan = select_units(SCORES, PLAN, heads=0.5, drop_sublayers=True)
    assert _heads(plan) == [(), (0, 1, 2, 3)]


def test_asking_for_more_than_may_go_names_the_way_out() -> None:
    with pytest.raises(RequestError, match=r"--heads 1 .* at most 0.75 .* --drop-sublayers"):
        select_units(SCORES, PLAN, heads=1.0)


def test_neurons_are_chosen_apart_from_heads() -> None:
    plan = select_units(SCORES, PLAN, neurons=0.25)
    assert [layer.neurons for layer in plan.layers] == [(1,), (0, 1)]
    assert _heads(plan) == _heads(PLAN)


def test_a_ratio_of_zero_returns_an_equal_plan() -> None:
    assert select_units(SCORES, PLAN) == PLAN


def test_indices_stay_those_of_the_source() -> None:
    pruned = CompressionPlan((LayerPlan((1, 3), (0, 1)), LayerPlan((0, 2), (1,))), (4, 4), (2, 2))
    scores = HeadScores(Criterion.MAGNITUDE, ((0.5, 0.1), (0.2, 0.3)), ((1, 2), (1,)), {})
    assert _heads(select_units(scores, pruned, heads=0.5)) == [(1,), (2,)]


@pytest.mark.parametrize("ratio", [-0.1, 1.5])
def test_a_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(RequestError, match=rf"--heads is the fraction .* got {ratio}"):
        select_units(SCORES, PLAN, heads=ratio)


def _curved(seed: int, heads: tuple[int, ...]) -> HeadScores:
    """Scores with a random curvature of low rank, so that heads matter together much."""
    units = sum(heads)
    rows = np.random.default_rng(seed).normal(size=(8, units)) * np.linspace(0.5, 2, units)
    matrix = rows.T @ rows
    diagonal = iter(matrix.diagonal() / 2)
    layers = tuple(tuple(float(next(diagonal)) for _ in range(width)) for width in heads)
    curvature = tuple(map(tuple, matrix.tolist()))
    return HeadScores(Criterion.CURVATURE, layers, ((1.0,),) * len(heads), {}, curvature)


def _cost(scores: HeadScores, plan: CompressionPlan) -> float:
    """Half the sum of the curvature over all heads that the plan removes."""
    widths = [len(layer) for layer in scores.heads]
    gone = [
        sum(widths[:n]) + head
        for n, layer in enumerate(plan.layers)
        for head in range(widths[n])
        if head not in layer.heads
    ]
    return float(np.asarray(scores.curvature)[np.ix_(gone, gone)].sum() / 2)


def _possible(plan: CompressionPlan, count: int, floor: int) -> Iterator[CompressionPlan]:
    units = [(n, head) for n, layer in enumerate(plan.layers) for head in layer.heads]
    for gone in combinations(units, count):
        layers = tuple(
            replace(layer, heads=tuple(h for h in layer.heads if (n, h) not in gone))
            for n, layer in enumerate(plan.layers)
        )
        if all(len(layer.heads) >= floor for layer in layers):
            yield replace(plan, layers=layers)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("drop_sublayers", [False, True])
def test_heads_by_curvature_are_the_best_set_of_a_small_encoder(
    seed: int, drop_sublayers: bool
) -> None:
    plan = CompressionPlan.dense((3, 2, 3), (1, 1, 1))
    scores = _curved(seed, (3, 2, 3))
    for count in (2, 4, 5):
        chosen = select_units(scores, plan, heads=count / 8, drop_sublayers=drop_sublayers)
        best = min(_cost(scores, p) for p in _possible(plan, count, floor=1 - drop_sublayers))
        assert _cost(scores, chosen) == pytest.approx(best), count


@pytest.mark.parametrize("scope", list(Scope))
def test_a_joint_choice_never_costs_more_than_ranking_or_greedy_elimination(scope: Scope) -> None:
    plan = CompressionPlan.dense((6,) * 4, (1,) * 4)
    better = 0
    for seed in range(20):
        scores = _curved(seed, (6,) * 4)
        chosen = select_units(scores, plan, heads=0.5, scope=scope)
        ranked = select_units(replace(scores, curvature=None), plan, heads=0.5, scope=scope)
        greedy = _greedily(scores, plan, quota=3 if scope is Scope.LAYER else 5)
        cost = _cost(scores, chosen)
        assert cost <= min(_cost(scores, ranked), _cost(scores, greedy)) + 1e-9
        better += cost < 0.9 * _cost(scores, ranked)
        left = [len(layer.heads) for layer in chosen.layers]
        assert sum(left) == 12
        assert left == [3] * 4 if scope is Scope.LAYER else min(left) >= 1
    assert better > 10, "on curvatures like these a joint choice is usually far better"


def _greedily(scores: HeadScores, plan: CompressionPlan, quota: int) -> CompressionPlan:
    """Remove 12 heads one by one, each time the one after which the cost is least."""
    dense = plan
    for _ in range(12):
        allowed = [
            p
            for p in _possible(plan, 1, floor=0)
            if all(
                len(old.heads) - len(new.heads) <= quota
                for old, new in zip(dense.layers, p.layers, strict=True)
            )
        ]
        plan = min(allowed, key=lambda p: _cost(scores, p))
    return plan


def test_heads_that_stand_in_for_each_other_do_not_go_together() -> None:
    """Heads 0 and 1 are copies: either may go nearly free of cost, both cost most."""
    matrix = ((1.0, 1.0, 0.0), (1.0, 1.0, 0.0), (0.0, 0.0, 1.2))
    scores = HeadScores(Criterion.CURVATURE, ((0.5, 0.5, 0.6),), ((1.0,),), {}, matrix)
    plan = select_units(scores, CompressionPlan.dense((3,), (1,)), heads=2 / 3)
    assert _heads(plan) in ([(0,)], [(1,)])


def test_neurons_need_a_criterion_that_scores_them() -> None:
    scores = HeadScores(Criterion.ENTROPY, SCORES.heads, (), {})
    assert select_units(scores, PLAN, heads=0.25).neuron_counts == PLAN.neuron_counts
    with pytest.raises(
        RequestError, match=r"entropy scores heads only.* one of obs, curvature, .*fisher"
    ):
        select_units(scores, PLAN, heads=0.25, neurons=0.5)
