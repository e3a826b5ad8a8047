from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tcompress.data import Examples
from tcompress.errors import DataError
from tcompress.evaluate.engine_info import EngineInfo
from tcompress.evaluate.engine_process import EngineProcess
from tcompress.evaluate.workloads import Mix, Scenario, race_mix

LENGTHS = np.random.default_rng(0).geometric(0.05, 1000).clip(2, 128)


def make_examples(lengths: Sequence[int], features: int = 4) -> Examples:
    """Tensors of the source's width, real up to their lengths."""
    longest = max(lengths)
    inputs = np.random.default_rng(0).standard_normal((len(lengths), longest, features))
    mask = np.arange(longest) < np.asarray(lengths)[:, None]
    ids = tuple(map(str, range(len(lengths))))
    return Examples("test", ids, inputs=inputs.astype(np.float32), mask=mask.astype(np.int64))


class Clockwork:
    """An engine of known speed: `per_call_ns` and `per_token_ns` of the padded batch."""

    def __init__(self, per_call_ns: int, per_token_ns: int) -> None:
        self.info = EngineInfo("clockwork", "cpu", 1, ("a", "b"), 128, {})
        self.per_call_ns, self.per_token_ns = per_call_ns, per_token_ns

    def encode(self, examples: Examples, size: int) -> tuple[int, int]:
        self.lengths = examples.mask.sum(axis=1)
        return 0, 0

    def mix(self, positions: Sequence[Sequence[int]], warmup: int) -> list[int]:
        longest = [int(self.lengths[list(call)].max()) * len(call) for call in positions]
        return [self.per_call_ns + self.per_token_ns * tokens for tokens in longest]


@pytest.fixture(scope="module")
def engines(source: Path) -> Iterator[dict[str, EngineProcess]]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(EngineProcess(source, name=name, threads=1))
            for name in ("base", "again")
        }


def test_single_stream_draws_64_examples_and_keeps_their_lengths():
    mix = Mix.of("single_stream", LENGTHS, seed=1)
    assert (mix.batch, mix.examples, len(set(mix.positions))) == (1, 64, 64)
    drawn = LENGTHS[list(mix.positions)]
    assert mix.tokens_mean == drawn.mean()
    assert mix.tokens_max == drawn.max()
    assert list(drawn) != sorted(drawn)
    assert mix == Mix.of("single_stream", LENGTHS, seed=1)
    assert mix != Mix.of("single_stream", LENGTHS, seed=2)


def test_offline_batches_hold_similar_lengths_so_that_little_is_padded():
    mix = Mix.of("offline", LENGTHS, seed=0)
    assert [len(call) for call in mix.calls] == [32] * 8
    padded = sum(32 * LENGTHS[list(call)].max() for call in mix.calls)
    at_random = sum(32 * LENGTHS[i : i + 32].max() for i in range(0, 256, 32))
    real = LENGTHS[list(mix.positions)].sum()
    assert padded - real < (at_random - real) / 3


def test_few_examples_make_a_small_mix_and_none_are_refused():
    assert Mix.of(Scenario.OFFLINE, [3, 5, 4], seed=0).calls == ((0, 2, 1),)
    assert Mix.of(Scenario.OFFLINE, [3, 5, 4], seed=0).batch == 3
    with pytest.raises(DataError, match="no examples to measure real lengths on"):
        Mix.of(Scenario.OFFLINE, [], seed=0)


@pytest.mark.parametrize("scenario", list(Scenario))
def test_shortened_mix_has_the_lengths_of_the_whole(scenario: Scenario):
    wholes = [Mix.of(scenario, LENGTHS, seed) for seed in range(20)]
    ratios = [whole.shortened(4).tokens_mean / whole.tokens_mean for whole in wholes]
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)
    assert all(0.7 < ratio < 1.3 for ratio in ratios)
    assert [len(call) for call in wholes[0].shortened(4).calls] == [scenario.batch] * 4
    assert wholes[0].shortened(99) == wholes[0]


@pytest.mark.parametrize("scenario", list(Scenario))
def test_speedup_is_the_ratio_of_the_time_for_all_inputs(scenario: Scenario):
    examples = make_examples(LENGTHS)
    mix = Mix.of(scenario, LENGTHS, seed=0)
    slow, fast = Clockwork(100, 50), Clockwork(1_000, 10)  # fast on long inputs, slow on short
    engines = {"slow": slow, "fast": fast}
    found = race_mix(engines, "slow", mix, examples, budget_s=5)
    totals = {name: sum(engine.mix(_places(mix), 0)) for name, engine in engines.items()}
    assert found["fast"].speedup.value == pytest.approx(totals["slow"] / totals["fast"])
    assert found["slow"].speedup.value == 1
    for name, result in found.items():
        assert result.mix == mix
        assert result.examples_per_s == pytest.approx(1e9 * mix.examples / totals[name])
        calls = np.reshape(result.latency.samples_ns, (-1, len(mix.calls)))
        np.testing.assert_array_equal(calls.sum(axis=1), result.passes_ns)


def _places(mix: Mix) -> list[list[int]]:
    """The calls' examples, by their place among those that an engine was handed."""
    places = iter(range(mix.examples))
    return [[next(places) for _ in call] for call in mix.calls]


@pytest.mark.parametrize(
    ("budget_s", "expected"),
    [
        pytest.param(0.3, 12, id="20 passes of 12 calls and a warm-up, 1.1 ms each"),
        pytest.param(0.001, 4, id="never less than a mix"),
    ],
)
def test_small_budget_shortens_everyones_mix_alike(budget_s: float, expected: int):
    examples = make_examples(LENGTHS)
    mix = Mix.of("single_stream", LENGTHS, seed=0)
    engines = {"slow": Clockwork(10**6, 1), "fast": Clockwork(10**5, 1)}
    found = race_mix(engines, "slow", mix, examples, budget_s=budget_s)
    assert found["slow"].mix == found["fast"].mix
    assert found["slow"].mix.examples == expected


@pytest.mark.parametrize(
    ("budget_s", "batch", "calls"),
    [
        pytest.param(2.0, 32, 2, id="fewer batches first"),
        pytest.param(1.0, 16, 2, id="then smaller ones"),
        pytest.param(0.01, 8, 1, id="never less than a mix"),
    ],
)
def test_small_budget_shrinks_batches_where_one_is_too_much(
    budget_s: float, batch: int, calls: int
):
    lengths = [16] * 1000
    mix = Mix.of("offline", lengths, seed=0)
    engines = {"one": Clockwork(0, 31_250), "other": Clockwork(0, 31_250)}  # 1 ms per example
    found = race_mix(engines, "one", mix, make_examples(lengths), budget_s=budget_s)["other"]
    assert (found.mix.batch, [len(call) for call in found.mix.calls]) == (batch, [batch] * calls)
    entry = found.to_json(artifact="other", device="cpu", precision="fp32", backend="clockwork")
    assert (entry["batch"], entry["examples"]) == (batch, batch * calls)


def test_repeated_calls_are_no_sample_of_the_inputs():
    lengths = [16] * 1000
    mix = Mix.of("offline", lengths, seed=0)
    engines = {"one": Clockwork(100, 10), "other": Clockwork(100, 10)}
    found = race_mix(engines, "one", mix, make_examples(lengths), budget_s=5)["other"]
    assert found.latency.n >= 64 > len(found.mix.calls)
    assert found.latency.percentiles_ms() == {}


def test_real_engines_answer_every_call_and_their_entry_is_complete(
    engines: dict[str, EngineProcess],
):
    lengths = [2, 3, 5, 6, 4, 2, 6, 3] * 9
    examples = make_examples(lengths)
    mix = Mix.of("single_stream", lengths, seed=0)
    found = race_mix(engines, "base", mix, examples, budget_s=0.5)
    result = found["again"]
    assert 0.5 < result.speedup.value < 2
    assert result.latency.n % result.mix.examples == 0
    entry = result.to_json(artifact="again", device="cpu", precision="fp32", backend="pytorch")
    assert set(entry) == {
        *("artifact", "device", "precision", "backend", "scenario", "batch", "examples"),
        *("tokens_mean", "tokens_max", "latency_ms", "examples_per_s", "speedup"),
    }
    assert ("p90" in entry["latency_ms"]) == (len(result.mix.calls) >= 64)
    assert (
        found["base"].to_json(artifact="base", device="cpu", precision="fp32", backend="pytorch")[
            "speedup"
        ]["verdict"]
        is None
    )


def test_longer_batches_take_longer_and_examples_are_padded_per_call(
    engines: dict[str, EngineProcess],
):
    engine = engines["base"]
    engine.encode(make_examples([2] * 400 + [6] * 400), size=32)
    short, long = list(range(400)), list(range(400, 800))
    times = np.reshape(engine.mix([short, long, [*short, *long]] * 5, warmup=3), (5, 3))
    fastest = times.min(axis=0)
    assert fastest[0] < fastest[1] < fastest[2]
