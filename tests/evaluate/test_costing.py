import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import psutil
import pytest
import torch

from tcompress.cli import cli
from tcompress.compress.cost import MIXED, Engine, Serving
from tcompress.encoder import Encoder, open_encoder
from tcompress.errors import (
    DataError,
    DeviceError,
    ExportError,
    MeasurementError,
    ModelError,
    RequestError,
)
from tcompress.evaluate.costing import EngineMeter, _batch, _with_small_vocabulary
from tcompress.evaluate.costing_worker import shape_like
from tcompress.plan import CompressionPlan, LayerPlan, Precision

DENSE = CompressionPlan.dense((4, 4, 4), (48, 48, 48))
NOTHING = CompressionPlan((LayerPlan((), ()),) * 3, (4, 4, 4), (48, 48, 48))


def serving(engine: Engine, precision: str, tokens: int = 16) -> Serving:
    return Serving(engine, precision, batch=1, tokens=tokens, threads=1)


@pytest.fixture(scope="module")
def meter(model_directories: Callable) -> Iterator[EngineMeter]:
    encoder = open_encoder(model_directories("bert"))
    with EngineMeter(encoder, serving(Engine.ONNXRUNTIME, "int8")) as opened:
        yield opened


def check_latencies(meter: EngineMeter, plans: list[CompressionPlan]) -> None:
    found = np.array(meter.latencies_ms(plans, budget_s=0.3))
    assert found.shape == (len(plans),)
    assert (found > 0).all()
    assert np.isfinite(found).all()
    assert found[1] < 2 * found[0]


def test_exported_shapes_are_timed_and_new_ones_take_their_place(
    meter: EngineMeter, uneven_plan: CompressionPlan
) -> None:
    check_latencies(meter, [DENSE, NOTHING, uneven_plan])
    check_latencies(meter, [uneven_plan, NOTHING])


def test_plan_of_another_encoder_is_one_clear_error_and_the_engine_goes_on(
    meter: EngineMeter,
) -> None:
    with pytest.raises(ModelError, match="the plan has 1 layers, the model 3"):
        meter.latencies_ms([CompressionPlan.dense((4,), (48,))], budget_s=0.1)
    check_latencies(meter, [DENSE, NOTHING])


def test_only_a_mixed_meter_leaves_plans_their_own_precisions(
    meter: EngineMeter, model_directories: Callable
) -> None:
    """ONNX files hold no bf16, so that one shows whether a plan was taken at its word."""
    plans = [DENSE.with_precision(Precision.BF16), NOTHING]
    check_latencies(meter, plans)
    encoder = open_encoder(model_directories("bert"))
    with (
        EngineMeter(encoder, serving(Engine.ONNXRUNTIME, MIXED)) as mixed,
        pytest.raises(ExportError, match="no bf16 products on a CPU"),
    ):
        mixed.latencies_ms(plans, budget_s=0.1)


def test_pytorch_int8_is_timed_and_neither_process_nor_files_stay(
    model_directories: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    encoder = open_encoder(model_directories("torch-pre-norm"))
    with EngineMeter(encoder, serving(Engine.PYTORCH, "int8")) as meter:
        check_latencies(meter, [DENSE, NOTHING])
        assert any(tmp_path.iterdir())
        os.kill(meter.pid, signal.SIGKILL)
        with pytest.raises(
            MeasurementError, match="timing on pytorch in int8: the engine process ended by SIGKILL"
        ):
            meter.latencies_ms([DENSE], budget_s=0.1)
    assert not psutil.pid_exists(meter.pid)
    assert not any(tmp_path.iterdir())


def test_every_family_takes_the_shapes_of_a_plan_and_travels_to_another_process(
    any_encoder: Encoder, uneven_plan: CompressionPlan
) -> None:
    batch = _batch(any_encoder, serving(Engine.PYTORCH, "fp32"), seed=0)
    before = any_encoder.predict(batch)
    sent = pickle.loads(pickle.dumps(_with_small_vocabulary(any_encoder)))
    np.testing.assert_allclose(sent.predict(batch), before, atol=1e-5)
    shaped = shape_like(sent, uneven_plan)
    assert shaped.anatomy.head_counts == uneven_plan.head_counts
    assert shaped.anatomy.neuron_counts == uneven_plan.neuron_counts
    assert np.isfinite(shaped.predict(batch)).all()
    np.testing.assert_array_equal(any_encoder.predict(batch), before)


def test_longer_inputs_than_the_encoder_reads_are_refused(bert: Encoder) -> None:
    with pytest.raises(RequestError, match="reads at most 40 tokens, not 41"):
        EngineMeter(bert, serving(Engine.PYTORCH, "fp32", tokens=41))


def test_gpu_that_is_not_there_is_a_device_error(
    model_directories: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    encoder = open_encoder(model_directories("torch-pre-norm"))
    with (
        EngineMeter(encoder, serving(Engine.CUDA, "fp16")) as meter,
        pytest.raises(DeviceError, match="'cuda' was asked for"),
    ):
        meter.latencies_ms([DENSE], budget_s=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_shapes_are_timed_on_a_gpu(bert: Encoder, precision: str) -> None:
    with EngineMeter(bert, serving(Engine.CUDA, precision)) as meter:
        check_latencies(meter, [DENSE, NOTHING])


@pytest.mark.parametrize("words", [["score"], ["run"]], ids=["typed", "through run"])
def test_commands_get_the_meter_from_the_command_line(
    words: list[str],
    tcompress: Callable,
    text_workspace: Path,
    bert: Encoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    got = []

    def stop(**_: object) -> None:
        got.append(click.get_current_context().obj)
        raise DataError("far enough")

    score = cli.get_command(click.Context(cli), "score")
    monkeypatch.setattr(score, "callback", stop)
    assert tcompress(*words, "--workspace", text_workspace).exit_code == 5
    (open_meter,) = got
    with pytest.raises(RequestError, match="reads at most 40 tokens"):
        open_meter(bert, serving(Engine.ONNXRUNTIME, "fp32", tokens=41))
