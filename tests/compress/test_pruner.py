"""Pruning towards each kind of goal, on the tiny models."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tcompress.compress.cost import Engine, LatencyMeter, OpenMeter, Serving
from tcompress.compress.criteria import Criterion
from tcompress.compress.judging import predict_all
from tcompress.compress.planning import MacCosts
from tcompress.compress.prune_recipe import PruneRecipe
from tcompress.compress.pruner import Outcome, Pruner, Selection
from tcompress.compress.scores import HeadScores
from tcompress.compress.surgeon import Surgeon
from tcompress.encoder import Encoder
from tcompress.errors import RequestError
from tcompress.machine import CACHE_VARIABLE
from tcompress.plan import CompressionPlan

SERVING = Serving(Engine.PYTORCH, "fp32", batch=1, tokens=16, threads=1)
Prune = Callable[..., tuple[Outcome, dict[str, Any]]]


@dataclass(frozen=True)
class AdditiveMeter:
    """Latencies that are a sum of known costs; `more_ms` is spent whatever the plan."""

    serving: Serving
    more_ms: float = 0.0

    def latencies_ms(self, plans: Sequence[CompressionPlan], budget_s: float) -> list[float]:
        return [
            0.5
            + self.more_ms
            + sum(0.02 + 0.1 * heads for heads in plan.head_counts if heads)
            + sum(0.01 + 0.01 * n for n in plan.neuron_counts if n)
            for plan in plans
        ]


def meters(more_ms: float) -> OpenMeter:
    """The first engine fills the table; the next one takes more."""
    extra = iter((0.0, more_ms))

    def open_one(_encoder: Encoder, serving: Serving) -> nullcontext[LatencyMeter]:
        return nullcontext(AdditiveMeter(serving, next(extra)))

    return open_one


@pytest.fixture
def prune(encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prune:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))

    def run(encoder: Encoder, open_meter: OpenMeter | None = None, **goal: Any) -> Any:
        calibration, held_out = encode(encoder, 150), encode(encoder, 150, seed=1)
        surgeon = Surgeon.of(encoder, (batch for _, batch in calibration.batches(32)), {})
        serving = SERVING if open_meter is not None else None
        lines: list[str] = []
        outcome, details = Pruner(
            encoder,
            PruneRecipe(**goal, serving=serving),
            surgeon.scores,
            surgeon=surgeon,
            calibration=calibration,
            selection=Selection(held_out, None),
            open_meter=open_meter,
            tell=lines.append,
        ).prune()
        return outcome, details | {"lines": lines, "held_out": held_out}

    return run


@pytest.mark.parametrize("removed", [0.5, 0.8])
def test_macs_are_removed_as_asked_and_hardly_more(
    any_encoder: Encoder, prune: Prune, removed: float
) -> None:
    before = {n: v.clone() for n, v in any_encoder.model.state_dict().items()}
    outcome, details = prune(any_encoder, macs=removed)
    macs = details["macs"]
    costs = MacCosts.of(any_encoder.anatomy, macs["tokens"])
    one_unit_each = sum(costs.per_head) + sum(costs.per_neuron)
    assert macs["before"] == any_encoder.anatomy.macs(macs["tokens"])
    assert macs["after"] == outcome.encoder.anatomy.macs(macs["tokens"])
    assert 0 <= macs["before"] * (1 - removed) - macs["after"] < one_unit_each
    assert details["reconstruction"]
    for name, value in before.items():
        assert torch.equal(any_encoder.model.state_dict()[name], value)


def test_the_record_says_how_the_selection_split_fared(bert: Encoder, prune: Prune) -> None:
    outcome, details = prune(bert, macs=0.4)
    judged = details["selection"]
    held_out = details["held_out"]
    agreed = predict_all(outcome.encoder, held_out).argmax(-1)
    agreed = agreed == predict_all(bert, held_out).argmax(-1)
    assert judged["accuracy"] == pytest.approx(float(agreed.double().mean()))
    assert (judged["examples"], judged["labels"]) == (150, "source encoder")
    assert judged["accuracy_before"] == 1
    for key in ("accuracy_expected", "accuracy_predicted"):
        assert judged[key] == pytest.approx(judged["accuracy"], abs=0.1)
    assert 0 < judged["divergence"] < 0.1


@pytest.mark.parametrize("more_ms", [0.4, -0.4])
@pytest.mark.parametrize("goal", [{"speedup": 1.8}, {"latency_ms": 1.6}], ids=["speedup", "ms"])
def test_what_the_table_misses_is_corrected(
    bert: Encoder, prune: Prune, more_ms: float, goal: dict[str, float]
) -> None:
    outcome, details = prune(bert, meters(more_ms), **goal)
    true = AdditiveMeter(SERVING, more_ms)
    before, after = true.latencies_ms([bert.plan, outcome.encoder.plan], 0.0)
    found = details["latency"]
    assert abs(found["table_off"]) > 0.08
    assert (found["before_ms"], found["after_ms"]) == (before, after)
    if "speedup" in goal:
        assert before / after == pytest.approx(1.8, rel=0.025)
    else:
        assert after == pytest.approx(1.6, rel=0.025)
    assert 1 < found["attempts"] <= 4


def test_a_table_that_is_right_needs_one_attempt(bert: Encoder, prune: Prune) -> None:
    _, details = prune(bert, meters(0.0), speedup=1.8)
    found = details["latency"]
    assert found["attempts"] == 1
    assert found["predicted_ms"] == pytest.approx(found["after_ms"], rel=1e-3)
    assert found["asked"]["speedup"] == 1.8


def test_a_latency_that_it_already_has_removes_nothing(bert: Encoder, prune: Prune) -> None:
    outcome, details = prune(bert, meters(0.0), latency_ms=100.0)
    assert outcome.encoder.plan == bert.plan
    assert details["reconstruction"] == []


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        pytest.param({"speedup": 50.0}, r"--speedup 50 leaves nothing", id="speedup"),
        pytest.param({"latency_ms": 0.1}, r"--latency-ms 0.1 leaves nothing", id="latency"),
        pytest.param({"macs": 1.0}, r"--macs 1 leaves nothing", id="macs"),
        pytest.param({"macs": 0.9999}, r"--macs 0.9999 leaves nothing of the encoder", id="all"),
    ],
)
def test_a_goal_that_leaves_nothing_is_refused(
    bert: Encoder, prune: Prune, goal: dict[str, float], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        prune(bert, None if "macs" in goal else meters(0.0), **goal)


@pytest.mark.parametrize("drop", [0.03, 0.1])
def test_the_drop_stays_inside_what_is_allowed(bert: Encoder, prune: Prune, drop: float) -> None:
    _, details = prune(bert, max_drop=drop)
    judged = details["selection"]
    assert judged["accuracy_before"] - judged["accuracy"] <= drop
    assert 0.2 < 1 - details["macs"]["after"] / details["macs"]["before"] < 1


def test_a_drop_too_small_for_anything_leaves_the_encoder_as_it_is(
    bert: Encoder, prune: Prune
) -> None:
    outcome, details = prune(bert, max_drop=1e-6)
    assert outcome.encoder.plan == bert.plan
    for name, value in bert.model.state_dict().items():
        assert torch.equal(outcome.encoder.model.state_dict()[name], value)
    assert "nothing can go within --max-drop 1e-06" in details["lines"][-1]


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        pytest.param({}, r"say what to remove: --heads RATIO", id="nothing"),
        pytest.param({"heads": 0.1, "macs": 0.5}, r"--heads and --macs contradict", id="ratio"),
        pytest.param(
            {"heads": 0.1, "neurons": 0.1, "max_drop": 0.1},
            r"--neurons and --max-drop contradict",
            id="three",
        ),
        pytest.param(
            {"speedup": 2.0, "latency_ms": 3.0}, r"--speedup and --latency-ms", id="latency"
        ),
        pytest.param({"macs": 0.5, "scope": "layer"}, r"--scope layer goes with", id="scope"),
    ],
)
def test_contradicting_goals_are_refused_by_their_names(goal: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        PruneRecipe(**goal)


def test_when_the_least_that_could_go_is_too_much_the_encoder_stays_as_it_is(
    bert: Encoder, encode
) -> None:
    flat = HeadScores(Criterion.MAGNITUDE, ((1.0,) * 4,) * 3, ((1.0,) * 48,) * 3, {})
    pruner = Pruner(
        bert, PruneRecipe(max_drop=1e-3), flat, selection=Selection(encode(bert, 80), None)
    )
    outcome, details = pruner.prune()
    assert outcome.encoder.plan == bert.plan
    assert details["macs"]["after"] == details["macs"]["before"]


def test_units_that_give_nothing_can_go_whatever_the_drop(bert: Encoder, encode) -> None:
    with torch.no_grad():
        for layer in bert.anatomy.layers:
            layer.ffn_out.weight.zero_()
    dead = HeadScores(Criterion.MAGNITUDE, ((1.0,) * 4,) * 3, ((0.0,) * 48,) * 3, {})
    pruner = Pruner(
        bert, PruneRecipe(max_drop=1e-3), dead, selection=Selection(encode(bert, 80), None)
    )
    outcome, details = pruner.prune()
    assert outcome.encoder.plan.neuron_counts == (0, 0, 0)
    assert details["selection"]["accuracy"] == 1
