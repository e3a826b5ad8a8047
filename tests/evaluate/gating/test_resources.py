import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tcompress.artifact import Artifact
from tcompress.console import Console
from tcompress.evaluate.gating import resources
from tcompress.evaluate.gating.policy import Policy
from tcompress.evaluate.gating.resources import (
    Bench,
    Estimate,
    check_resources,
    hold,
)
from tcompress.evaluate.gating.verdict import Unit
from tcompress.evaluate.noninferiority import Verdict
from tcompress.evaluate.statistics import Interval
from tcompress.evaluate.subjects import named_subjects

WEIGHT = np.random.default_rng(1).standard_normal((4, 3))


def bench(source: Path, candidate: Path) -> Bench:
    return Bench(source, candidate, "cpu", 0, Console(quiet=True))


@pytest.mark.parametrize(
    ("low", "high", "at_least", "verdict"),
    [
        (1.5, 1.9, True, Verdict.PASS),
        (1.4, 1.9, True, Verdict.INCONCLUSIVE),
        (1.1, 1.4, True, Verdict.REGRESSION),
        (1.1, 1.5, False, Verdict.PASS),
        (1.4, 1.6, False, Verdict.INCONCLUSIVE),
        (1.6, 1.9, False, Verdict.REGRESSION),
        (math.nan, math.nan, True, Verdict.INCONCLUSIVE),
        (math.nan, math.nan, False, Verdict.INCONCLUSIVE),
    ],
)
def test_only_an_interval_on_one_side_of_the_limit_decides(
    low: float, high: float, at_least: bool, verdict: Verdict
):
    found = Estimate((low + high) / 2, Interval(low, high, 0.95), 8)
    assert hold("x", found, 1.5, "{}", at_least=at_least).verdict is verdict


def test_too_few_measurements_decide_nothing():
    few = Estimate.of_median(np.asarray([1.0, 1.01, 1.02]))
    assert hold("x", few, 9.0, "{}").verdict is Verdict.INCONCLUSIVE
    enough = Estimate.of_median(np.full(6, 1.0))
    assert hold("x", enough, 9.0, "{}").verdict is Verdict.PASS


def test_words_tell_value_interval_and_limit():
    found = Estimate(2.3, Interval(2.1, 2.4, 0.95), 8)
    check = hold("speedup", found, 1.5, "{} times as fast", at_least=True)
    assert check.words == "2.3 times as fast (2.1 to 2.4), least allowed 1.5"
    assert (check.estimate, check.bound, check.limit, check.n) == (2.3, 2.1, 1.5, 8)
    size = hold("size", Estimate.exactly(3e6), 2_000_000, "has {}", unit=Unit.BYTES)
    assert (size.verdict, size.words) == (Verdict.REGRESSION, "has 3.0 MB, most allowed 2.0 MB")


def test_size_is_that_of_the_model_file(
    source: Path, tmp_path: Path, write_onnx: Callable[..., Artifact]
):
    directory = write_onnx(source, tmp_path / "onnx", WEIGHT).directory
    [before, now], _ = named_subjects([source, directory], source)
    ratio = now.size_bytes / before.size_bytes
    policy = Policy(max_size_bytes=now.size_bytes, max_size_ratio=0.99 * ratio)
    size, share = check_resources(policy, bench(source, directory))
    assert (size.name, size.verdict, size.estimate) == ("size", Verdict.PASS, now.size_bytes)
    assert (share.name, share.verdict) == ("size_ratio", Verdict.REGRESSION)
    assert share.estimate == ratio


@pytest.mark.fresh_engines
def test_latency_is_taken_side_by_side_and_the_start_from_fresh_processes(
    source: Path,
    tmp_path: Path,
    write_onnx: Callable[..., Artifact],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(resources, "_STARTS", 1)
    candidate = write_onnx(source, tmp_path / "onnx", WEIGHT).directory
    policy = Policy(
        min_speedup=1000.0,
        max_latency_ratio=1000.0,
        min_throughput_ratio=1e-3,
        max_load_ms=1e6,
        budget_s=2.0,
    )
    checks = {check.name: check for check in check_resources(policy, bench(source, candidate))}
    # Whether there is evidence enough depends on the machine; what it points to does not.
    assert checks["speedup"].verdict is not Verdict.PASS
    assert checks["latency_ratio"].verdict is not Verdict.REGRESSION
    assert checks["throughput_ratio"].verdict is not Verdict.REGRESSION
    assert checks["load"].verdict is Verdict.INCONCLUSIVE
    assert checks["speedup"].estimate == pytest.approx(1 / checks["latency_ratio"].estimate)
    assert "at batch 1, 8 tokens" in checks["speedup"].words
    assert "at batch 32, 8 tokens" in checks["throughput_ratio"].words
    assert checks["load"].estimate > 100
