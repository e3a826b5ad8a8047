import pytest

from tcompress.compress.scoring import Criterion, HeadScores
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
