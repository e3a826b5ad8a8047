import numpy as np
import pytest

from tcompress.evaluate.latency import race
from tcompress.evaluate.measurement import Latency, Speedup

MS = 1_000_000


class Machine:
    """A clock, and engines whose calls take as long as they should, times a drift."""

    def __init__(self, drift_per_s: float = 0.0, noise: float = 0.0) -> None:
        self.now_ns = 0.0
        self.drift_per_s = drift_per_s
        self.noise, self.rng = noise, np.random.default_rng(0)
        self.order: list[str] = []

    def clock(self) -> float:
        return self.now_ns / 1e9

    def engine(self, name: str, call_ms: float) -> "Engine":
        return Engine(self, name, call_ms * MS)


class Engine:
    """An engine; its first `cold` calls take 50 times as long."""

    def __init__(self, machine: Machine, name: str, call_ns: float, cold: int = 0) -> None:
        self.machine, self.name, self.call_ns, self.cold = machine, name, call_ns, cold

    def turn(self, calls: int, warmup: int) -> list[int]:
        self.machine.order.append(self.name)
        samples = []
        for _ in range(warmup + calls):
            taken = self.call_ns * (1 + self.machine.drift_per_s * self.machine.clock())
            self.cold -= 1
            taken *= 50 if self.cold >= 0 else 1
            taken *= 1 + self.machine.noise * self.machine.rng.random()
            self.machine.now_ns += taken
            samples.append(round(taken))
        return samples[warmup:]


def run(machine: Machine, call_ms: dict[str, float], **options: float):
    engines = {name: machine.engine(name, ms) for name, ms in call_ms.items()}
    return race(engines, "base", clock=machine.clock, **options)


def test_speedup_is_the_baseline_over_the_candidate():
    result = run(Machine(), {"base": 12.0, "fast": 4.0, "slow": 24.0}, budget_s=20)
    assert result.speedups["fast"].value == pytest.approx(3)
    assert result.speedups["slow"].value == pytest.approx(0.5)
    assert result.settled
    assert {name: len(taken) > 0 for name, taken in result.samples_ns.items()} == {
        "base": True,
        "fast": True,
        "slow": True,
    }


def test_linear_drift_of_the_machine_does_not_bias_the_speedup():
    drifting = run(Machine(drift_per_s=0.05), {"base": 10.0, "fast": 5.0}, budget_s=20)
    assert drifting.speedups["fast"].value == pytest.approx(2, rel=2e-3)


def test_each_round_is_a_random_order_and_then_its_reverse():
    machine = Machine()
    run(machine, {"base": 1.0, "a": 1.0, "b": 1.0}, budget_s=20)
    turns = machine.order[3:]  # behind the calls that set the paces
    rounds = [turns[i : i + 6] for i in range(0, len(turns), 6)]
    assert all(r == r[::-1] and sorted(r[:3]) == ["a", "b", "base"] for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1


def test_each_block_has_turns_of_the_baseline_beside_those_of_its_candidates():
    machine = Machine()
    result = run(machine, dict.fromkeys(("base", "a", "b", "c"), 1.0), budget_s=20, block=2)
    turns = machine.order[4:]
    assert turns.count("base") == 2 * turns.count("a") == 2 * turns.count("c")
    for start in range(0, len(turns), 10):
        both, single = turns[start : start + 6], turns[start + 6 : start + 10]
        assert (both, single) == (both[::-1], single[::-1])
    assert len({speedup.blocks for speedup in result.speedups.values()}) == 1


def test_budget_ends_the_race_and_the_confidence_says_how_little_is_known():
    machine = Machine()
    result = run(machine, {"base": 1000.0, "other": 900.0}, budget_s=1)
    assert result.speedups["other"].blocks == 1
    assert result.speedups["other"].interval.confidence == 0
    assert not result.settled


@pytest.mark.parametrize("budget_s", [1, 2, 5, 20])
def test_turns_are_shortened_until_six_rounds_fit_the_budget(budget_s: float):
    machine = Machine(noise=0.2)
    calls = {"base": 12.0, "slow": 8.0, "a": 2.0, "b": 1.0, "c": 0.5}
    result = run(machine, calls, budget_s=budget_s)
    assert {speedup.blocks >= 6 for speedup in result.speedups.values()} == {True}
    assert machine.clock() <= 1.05 * budget_s


def test_missing_rounds_are_made_up_to_the_overrun_and_not_where_they_would_not_do():
    for call_ms, rounds, most_s in ((60.0, 6, 4.0), (1000.0, 1, 9.0)):
        machine = Machine(noise=0.2)
        result = run(machine, {"base": call_ms, "other": 50.0}, budget_s=2, overrun=2)
        assert result.speedups["other"].blocks == rounds
        assert machine.clock() <= most_s


def test_engine_that_was_cold_at_first_gets_as_many_calls_as_another():
    machine = Machine()
    cold = Engine(machine, "base", 3.0 * MS, cold=3)
    result = race(
        {"base": cold, "warm": machine.engine("warm", 3.0)},
        "base",
        budget_s=10,
        clock=machine.clock,
    )
    assert result.paces["base"] == result.paces["warm"]
    assert result.paces["base"].calls > 20
    assert result.speedups["warm"].interval.low == pytest.approx(1, abs=0.04)


def test_round_of_an_engine_that_was_still_cold_does_not_count():
    machine = Machine()
    cold = Engine(machine, "base", 3.0 * MS, cold=4)
    result = race(
        {"base": cold, "warm": machine.engine("warm", 3.0)},
        "base",
        budget_s=10,
        clock=machine.clock,
    )
    assert max(result.samples_ns["base"]) == 3 * MS
    assert set(result.ratios["warm"][0]) == {1.0}


def test_engine_that_becomes_slow_gets_shorter_turns_between_rounds():
    machine = Machine(drift_per_s=3.0)
    result = run(machine, {"base": 2.0, "other": 2.0}, budget_s=3)
    assert result.speedups["other"].blocks >= 6
    taken = [len(turn.samples_ns) for turn in result.turns["base"]]
    assert taken[0] > min(taken) == result.paces["base"].calls
    assert all(
        len(first.samples_ns) == len(second.samples_ns)
        for first, second in zip(result.turns["base"][::2], result.turns["base"][1::2], strict=True)
    )


def test_race_goes_on_until_95_percent_confidence_is_reached():
    result = run(Machine(), {"base": 1.0, "other": 1.0}, budget_s=1000)
    assert result.speedups["other"].interval.confidence >= 0.95


@pytest.mark.parametrize(
    ("n", "shown"),
    [
        pytest.param(63, set(), id="too few for any"),
        pytest.param(64, {"p90"}, id="enough for p90"),
        pytest.param(662, {"p90", "p99"}, id="enough for p99"),
    ],
)
def test_percentiles_are_shown_only_where_there_are_enough_samples(n: int, shown: set[str]):
    samples = tuple(range(MS, MS * (n + 1), MS))
    document = Latency(samples, warmup=2, threads=1, device="cpu", versions={}).to_json()
    assert shown == set(document) & {"p90", "p99"}
    assert document["median"] == pytest.approx((n + 1) / 2)
    assert document["samples"][:2] == [1.0, 2.0]


def test_percentiles_need_as_many_different_inputs_as_samples():
    known = {"warmup": 2, "threads": 1, "device": "cpu", "versions": {}}
    repeated = Latency(tuple(range(MS, MS * 701, MS)), **known, inputs=64)
    assert set(repeated.percentiles_ms()) == {"p90"}


def test_baseline_is_exactly_as_fast_as_itself():
    document = Speedup.of_baseline().to_json()
    assert (document["low"], document["value"], document["high"]) == (1, 1, 1)


def test_speedup_interval_holds_the_median_ratio():
    ratios = np.random.default_rng(0).lognormal(np.log(3), 0.05, 40)
    speedup = Speedup.of([float(ratio) for ratio in ratios])
    assert speedup.interval.low < 3 < speedup.interval.high
    assert speedup.half_width < 0.05


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        pytest.param([1.2, 1.21, 1.22] * 4, "faster", id="faster"),
        pytest.param([0.8, 0.81, 0.82] * 4, "slower", id="slower"),
        pytest.param([0.9, 1.0, 1.1] * 4, "inconclusive", id="wide"),
        pytest.param([1.2, 1.21, 1.22], "inconclusive", id="too few blocks"),
    ],
)
def test_verdict_says_what_the_blocks_prove(ratios: list[float], verdict: str):
    assert Speedup.of(ratios).to_json()["verdict"] == verdict
    assert Speedup.of_baseline().verdict is None


def test_equivalence_takes_several_processes_that_agree():
    ratios = [1.0, 1.01, 1.015] * 4
    assert Speedup.of(ratios).verdict == "inconclusive"
    assert Speedup.of(*[ratios] * 5).verdict == "equivalent"


def test_processes_that_disagree_widen_the_interval_to_hold_them_all():
    first, second = [1.00, 1.01, 0.99] * 4, [1.10, 1.11, 1.09] * 4
    alone, both = Speedup.of(first), Speedup.of(first, second)
    assert (alone.processes, both.processes, both.blocks) == (1, 2, 24)
    assert alone.interval.low <= 1.0 <= alone.interval.high
    assert both.interval.low <= 1.0
    assert both.interval.high >= 1.1
    assert both.verdict == "inconclusive"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_interval_of_processes_that_differ_holds_the_truth(count: int):
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        offsets = rng.normal(0, 0.015, count)
        sessions = [np.exp(offset + rng.normal(0, 0.02, 12)).tolist() for offset in offsets]
        interval = Speedup.of(*sessions).interval
        held += interval.low <= 1 <= interval.high
    assert held >= 184


def test_races_in_new_processes_join():
    machine = Machine()
    one = run(machine, {"base": 10.0, "fast": 5.0}, budget_s=2)
    two = run(machine, {"base": 10.0, "fast": 4.0}, budget_s=2)
    joined = one.then(two)
    assert joined.speedups["fast"].processes == 2
    processes = [turn.process for turn in joined.turns["base"]]
    assert (processes == sorted(processes), set(processes)) == (True, {0, 1})
    assert len(joined.samples_ns["base"]) == sum(len(r.samples_ns["base"]) for r in (one, two))
