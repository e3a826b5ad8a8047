from pathlib import Path

import pytest

from tcompress.evaluate.entrants import enter, runs_on_gpu
from tcompress.evaluate.measurement import Subject


def subject(name: str, precision: str, kind: str = "encoder") -> Subject:
    return Subject(name, Path(name), "quantize", kind, precision, 1, name, "source")


SOURCE = subject("source", "fp32")


def test_plans_in_half_run_on_a_gpu_in_their_own_format():
    halves = [subject("b", "bf16"), subject("f", "fp16")]
    entrants, left_out = enter("cuda", SOURCE, halves)
    assert [entrant.key for entrant in entrants] == [
        *("source (fp32)", "source (bf16)"),
        *("b (bf16)", "f (fp16)"),
    ]
    assert left_out == []


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(subject("other", "int8"), id="int8"),
        pytest.param(subject("other", "mixed"), id="mixed"),
        pytest.param(subject("other", "fp16", "onnx"), id="exported file"),
    ],
)
def test_what_runs_on_the_cpu_only_is_named(other: Subject):
    assert not runs_on_gpu(other)
    assert enter("cuda", SOURCE, [other])[1] == ["other"]
    assert [entrant.precision for entrant in enter("cpu", SOURCE, [other])[0]] == [
        "fp32",
        other.precision,
    ]
