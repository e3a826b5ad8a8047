import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tcompress.compress.cost import CostCurve, CostTable, Engine, Serving
from tcompress.compress.cost_measuring import known_costs, measure_costs
from tcompress.encoder import Encoder
from tcompress.errors import ArtifactError, MeasurementError, RequestError
from tcompress.machine import CACHE_VARIABLE
from tcompress.plan import CompressionPlan

SERVING = Serving(Engine.ONNXRUNTIME, "int8", batch=1, tokens=16, threads=1)
DENSE = CompressionPlan.dense((12,) * 6, (1536,) * 6)
REST_MS = 0.7


def attention_ms(heads: int) -> float:
    return 0.06 + 0.05 * heads if heads else 0.0


def feed_forward_ms(neurons: int) -> float:
    return 0.04 + 0.0004 * neurons if neurons else 0.0


class SyntheticMeter:
    """Latencies that are a sum of known costs, with seeded noise on top."""

    serving = SERVING

    def __init__(
        self, noise: float = 0.0, last_layer: float = 1.0, times: tuple[int, ...] = ()
    ) -> None:
        self.noise = noise
        self.last_layer = last_layer
        self.times = times
        self.measured = 0

    def latency_ms(self, heads: Sequence[int], neurons: Sequence[int]) -> float:
        costs = [
            times * (attention_ms(h) + feed_forward_ms(n))
            for h, n, times in zip(heads, neurons, self.times or (1,) * len(heads), strict=True)
        ]
        return REST_MS + sum(costs[:-1]) + self.last_layer * costs[-1]

    def latencies_ms(self, plans: Sequence[CompressionPlan], budget_s: float) -> list[float]:
        self.measured += 1
        noise = np.random.default_rng(0).normal(1, self.noise, len(plans))
        exact = [self.latency_ms(plan.head_counts, plan.neuron_counts) for plan in plans]
        return [float(value) for value in exact * noise]


@pytest.mark.parametrize("dense", [
    pytest.param(DENSE, id="equal layers"),
    pytest.param(
        CompressionPlan.dense((12, 7, 3, 0, 12, 5), (1536, 1000, 64, 0, 300, 1536)), id="pruned"
    ),
])  # fmt: skip
@pytest.mark.parametrize("last_layer", [1.0, 0.3])
def test_table_predicts_uneven_encoders_from_noisy_measurements(
    dense: CompressionPlan, last_layer: float
) -> None:
    meter = SyntheticMeter(noise=0.005, last_layer=last_layer)
    table = measure_costs(dense, meter, first_only_last=last_layer != 1.0)
    rng = np.random.default_rng(1)
    for _ in range(20):
        heads = [int(rng.integers(0, most + 1)) for most in dense.head_counts]
        neurons = [int(rng.integers(0, most // 32 + 1)) * 32 for most in dense.neuron_counts]
        expected = meter.latency_ms(heads, neurons)
        assert table.latency_ms(heads, neurons) == pytest.approx(expected, rel=0.02)
    assert table.deviation < 0.006


def test_costs_without_noise_are_exact_and_a_dropped_sublayer_is_free() -> None:
    table = measure_costs(DENSE, SyntheticMeter(last_layer=0.3), first_only_last=True)
    assert table.rest_ms == pytest.approx(REST_MS)
    assert table.attention_ms(0, 8) == pytest.approx(attention_ms(8))
    assert table.feed_forward_ms(2, 32) == pytest.approx(feed_forward_ms(32))
    assert table.attention_ms(5, 12) == pytest.approx(0.3 * attention_ms(12))
    assert table.attention_ms(5, 0) == table.feed_forward_ms(0, 0) == 0


def test_layers_that_are_applied_several_times_cost_as_often() -> None:
    times = (3, 1, 3, 1, 1, 2)
    table = measure_costs(DENSE, SyntheticMeter(times=times), first_only_last=False, times=times)
    for layer, count in enumerate(times):
        assert table.attention_ms(layer, 8) == pytest.approx(count * attention_ms(8))
        assert table.feed_forward_ms(layer, 32) == pytest.approx(count * feed_forward_ms(32))


def test_costs_never_decrease_with_width_however_noisy_the_measurements() -> None:
    table = measure_costs(DENSE, SyntheticMeter(noise=0.2), first_only_last=False)
    for layer in range(6):
        heads = [table.attention_ms(layer, count) for count in range(13)]
        neurons = [table.feed_forward_ms(layer, count) for count in range(1537)]
        assert heads == sorted(heads)
        assert neurons == sorted(neurons)


def test_latencies_that_are_not_positive_are_refused() -> None:
    class Broken(SyntheticMeter):
        def latency_ms(self, heads: Sequence[int], neurons: Sequence[int]) -> float:
            return float("nan")

    with pytest.raises(MeasurementError, match="latencies must be positive"):
        measure_costs(DENSE, Broken(), first_only_last=True)


def test_width_beyond_the_measured_ones_is_refused() -> None:
    with pytest.raises(RequestError, match="known up to width 4, not for 5"):
        CostCurve((1, 4), (0.1, 0.2)).at(5)


def test_precision_that_the_engine_does_not_run_is_refused() -> None:
    with pytest.raises(RequestError, match="cuda runs fp32, bf16, fp16, not 'int8'"):
        replace(SERVING, engine=Engine.CUDA)


def test_table_survives_json() -> None:
    table = measure_costs(DENSE, SyntheticMeter(noise=0.01), first_only_last=True)
    assert CostTable.from_json(json.loads(json.dumps(table.to_json()))) == table


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"schema_version": 99}, id="version"),
        pytest.param({"rest_ms": float("nan")}, id="not a number"),
        pytest.param({"serving": {"engine": "abacus"}}, id="engine"),
        pytest.param({"attention": [{"widths": [4, 1], "costs_ms": [0.1, 0.2]}]}, id="order"),
        pytest.param({"feed_forward": [{"widths": [1, 4], "costs_ms": [0.2, 0.1]}]}, id="falling"),
    ],
)
def test_malformed_table_is_refused(change: dict) -> None:
    document = measure_costs(DENSE, SyntheticMeter(), first_only_last=True).to_json()
    with pytest.raises(ArtifactError, match="not a table of costs"):
        CostTable.from_json(document | change)


def test_table_is_measured_once_and_again_when_its_file_is_damaged_or_the_serving_changes(
    bert: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    meter = SyntheticMeter(noise=0.01)

    def table(serving: Serving = SERVING) -> CostTable:
        return known_costs(bert, serving, lambda *_: nullcontext(meter))

    first = table()
    assert table() == first
    assert meter.measured == 1
    (path,) = (tmp_path / "costs").iterdir()
    path.write_text(path.read_text()[:-20])
    assert table() == first
    assert meter.measured == 2
    assert table() == first
    table(replace(SERVING, tokens=8))
    assert meter.measured == 3
