import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tcompress.artifact import Artifact
from tcompress.compress.int8_calibration import calibrate_int8_
from tcompress.compress.judging import mean_divergence, predict_all
from tcompress.compress.precision import runtime_int8
from tcompress.compress.product_inputs import Product, channel_extremes
from tcompress.compress.pruning import prune_
from tcompress.compress.shifting import shift_
from tcompress.compress.smoothing import fold_value_biases_, folds, smooth_, smoothing_scale
from tcompress.compress.static_inputs import StaticInputs, least_error_range, static_inputs
from tcompress.encoder import Encoder
from tcompress.errors import CalibrationError
from tcompress.export.deployment import deploy
from tcompress.export.onnx_graph import write_onnx
from tcompress.loading import load
from tcompress.machine import int8_saturates
from tcompress.plain import plain
from tcompress.plan import CompressionPlan, Precision
from tcompress.preprocessing import Encoded

needs_int8_dot = pytest.mark.skipif(
    int8_saturates(), reason="this CPU has no int8 dot products: 8-bit weights saturate on it"
)


def batches(encoded: Encoded) -> list[dict[str, np.ndarray]]:
    return [batch for _, batch in encoded.batches(32)]


def enlarge_value_channels_(encoder: Encoder) -> None:
    """The same answers, with value channels that stand out."""
    with torch.no_grad():
        for layer in encoder.anatomy.layers:
            for parameter in layer.value.parameters():
                parameter[3:5] *= 30
            layer.output.weight[:, 3:5] /= 30


def offset_stream_channel_(encoder: Encoder) -> None:
    """The same answers, with a channel of the stream that is always large."""
    with torch.no_grad():
        for layer in encoder.anatomy.layers:
            layer.attention_norm.bias[7] += 40
            layer.ffn_in.bias -= 40 * layer.ffn_in.weight[:, 7]
            layer.ffn_out.bias[7] -= 40


def in_int8(encoder: Encoder) -> Encoder:
    plan = encoder.plan.with_precision(Precision.INT8)
    return replace(encoder, model=copy.deepcopy(encoder.model), plan=plan)


def onnx_divergence(
    encoder: Encoder,
    encoded: Encoded,
    answers: torch.Tensor,
    path: Path,
    static: StaticInputs | None = None,
) -> float:
    deployed = deploy(encoder)
    write_onnx(deployed, path, metadata={}, static=static)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)
    logits = torch.empty_like(answers)
    for rows, batch in encoded.batches(32):
        inputs = {name: batch[name] for name in deployed.input_names}
        logits[rows] = torch.from_numpy(session.run(None, inputs)[0])
    return mean_divergence(answers, logits)


def test_shifting_folding_and_smoothing_change_no_fp32_answer(
    any_encoder: Encoder, uneven_plan: CompressionPlan, encode: Callable
) -> None:
    prune_(any_encoder, uneven_plan)
    encoded = encode(any_encoder, 60)
    answers = predict_all(any_encoder, encoded)
    weights = copy.deepcopy(any_encoder.model.state_dict())
    for step in (shift_, smooth_):
        step(any_encoder, channel_extremes(plain(any_encoder), batches(encoded)))
        fold_value_biases_(any_encoder)
    changed = any_encoder.model.state_dict()
    assert any(not torch.equal(changed[name], value) for name, value in weights.items())
    torch.testing.assert_close(predict_all(any_encoder, encoded), answers, rtol=1e-5, atol=2e-5)


def test_shifted_channels_are_centred_on_what_they_were_measured_on(
    bert: Encoder, encode: Callable
) -> None:
    encoded = encode(bert, 60)
    shift_(bert, channel_extremes(plain(bert), batches(encoded)))
    for (_, product), found in channel_extremes(plain(bert), batches(encoded)).items():
        if product in (Product.ATTENTION_INPUT, Product.FFN_INPUT):
            torch.testing.assert_close(found[0], -found[1], rtol=1e-4, atol=1e-4)


def test_smoothing_splits_the_largest_magnitudes_evenly(bert: Encoder, encode: Callable) -> None:
    enlarge_value_channels_(bert)
    fold_value_biases_(bert)
    encoded = encode(bert, 60)
    smooth_(bert, channel_extremes(plain(bert), batches(encoded)))
    after = channel_extremes(plain(bert), batches(encoded))
    for layer in bert.anatomy.layers:
        fold = next(folds(layer))
        found = after[layer.index, fold.product].abs().amax(0)
        torch.testing.assert_close(found, layer.output.weight.abs().amax(0), rtol=1e-3, atol=0)


@needs_int8_dot
@pytest.mark.parametrize("add_outliers_", [enlarge_value_channels_, offset_stream_channel_])
def test_an_encoder_with_outliers_loses_several_times_less_in_onnx_int8(
    bert: Encoder, encode: Callable, tmp_path: Path, add_outliers_: Callable[[Encoder], None]
) -> None:
    add_outliers_(bert)
    encoder, held_out = in_int8(bert), encode(bert, 200, seed=1)
    answers = predict_all(bert, held_out)
    before = onnx_divergence(encoder, held_out, answers, tmp_path / "before.onnx")
    report = calibrate_int8_(encoder, encode(bert, 200), held_out)
    after = onnx_divergence(encoder, held_out, answers, tmp_path / "after.onnx")
    assert after < before / 5
    assert report.divergence < report.divergence_before / 5
    assert report.divergence == pytest.approx(after, rel=0.5)


def test_calibration_takes_encoders_of_every_kind_and_shape(
    any_encoder: Encoder, uneven_plan: CompressionPlan, encode: Callable
) -> None:
    prune_(any_encoder, uneven_plan)
    encoder = in_int8(any_encoder)
    report = calibrate_int8_(encoder, encode(encoder, 40), encode(encoder, 40, seed=1))
    assert 0 <= report.divergence < 0.1


def test_static_inputs_lose_several_times_less_where_channels_stand_out(
    bert: Encoder, encode: Callable, tmp_path: Path
) -> None:
    enlarge_value_channels_(bert)
    encoder, held_out = in_int8(bert), encode(bert, 200, seed=1)
    answers = predict_all(bert, held_out)
    dynamic = onnx_divergence(encoder, held_out, answers, tmp_path / "dynamic.onnx")
    static = static_inputs(deploy(encoder), batches(encode(bert, 200)))
    fixed = onnx_divergence(encoder, held_out, answers, tmp_path / "static.onnx", static)
    assert fixed < dynamic / 5


def test_static_inputs_are_those_that_are_left_and_hold_zero(
    any_encoder: Encoder, uneven_plan: CompressionPlan, encode: Callable
) -> None:
    prune_(any_encoder, uneven_plan)
    static = static_inputs(deploy(any_encoder), batches(encode(any_encoder, 40)))
    dropped = {(1, Product.ATTENTION_INPUT), (1, Product.MIXED)}
    dropped |= {(2, Product.FFN_INPUT), (2, Product.HIDDEN)}
    assert set(static) == {(i, product) for i in range(3) for product in Product} - dropped
    for (_, product), found in static.items():
        low, high = found.bounds
        assert low <= 0 <= high
        assert low < high
        assert (found.divisors is None) == (product is Product.ATTENTION_INPUT)


def test_a_lone_outlier_is_clipped_and_an_even_spread_is_not() -> None:
    even = torch.ones(512, dtype=torch.float64)
    assert least_error_range(even, (-1.0, 1.0)) == pytest.approx((-1, 1), abs=0.03)
    lone = torch.zeros(512, dtype=torch.float64)
    lone[254:258] = 1e6
    lone[-1] = 1
    low, high = least_error_range(lone, (-1.0, 1.0))
    assert high < 0.5
    assert low == pytest.approx(-0.3)


def test_no_examples_and_values_that_are_not_finite_are_refused(
    bert: Encoder, encode: Callable
) -> None:
    encoded = encode(bert, 8)
    none = replace(encoded, lengths=np.zeros(0, np.int64))
    with pytest.raises(CalibrationError, match="at least one example"):
        channel_extremes(plain(bert), batches(none))
    with torch.no_grad():
        bert.anatomy.layers[1].ffn_in.weight[0, 0] = float("nan")
    with pytest.raises(CalibrationError, match="layer 1: hidden holds values that are not finite"):
        calibrate_int8_(in_int8(bert), encoded, encoded)


def test_a_channel_that_calibration_hardly_saw_is_not_blown_up(bert: Encoder) -> None:
    weights = bert.anatomy.layers[0].ffn_out.weight
    largest = torch.ones(weights.shape[1])
    largest[3] = 0
    scale = smoothing_scale(largest, [weights], 0.5)
    assert scale.max() / scale.min() < 100


@needs_int8_dot
def test_int8_is_judged_with_its_tables_in_int8_too(
    bert: Encoder, encode: Callable, tmp_path: Path
) -> None:
    with torch.no_grad():
        bert.anatomy.embedding.tokens.weight[:, 5] *= 40
    layers = list(bert.plan.layers)
    layers[1] = replace(layers[1], feed_forward=Precision.INT8)
    encoder = replace(bert, plan=replace(bert.plan, layers=tuple(layers)))
    encoded = encode(bert, 80)
    fold_value_biases_(encoder)
    answers = predict_all(bert, encoded)
    told = torch.empty_like(answers)
    with torch.no_grad():
        module = runtime_int8(plain(encoder))
        for rows, batch in encoded.batches(32):
            told[rows] = module(*(torch.from_numpy(batch[n]) for n in module.input_names))
    real = onnx_divergence(encoder, encoded, answers, tmp_path / "model.onnx")
    assert mean_divergence(answers, told) == pytest.approx(real, rel=0.5)


def test_calibration_needs_held_out_examples(bert: Encoder, encode: Callable) -> None:
    encoded = encode(bert, 8)
    none = replace(encoded, lengths=np.zeros(0, np.int64))
    with pytest.raises(CalibrationError, match="and others to tell what it brought"):
        calibrate_int8_(in_int8(bert), encoded, none)


def test_the_command_keeps_what_loses_less_and_only_that(text_workspace: Path, tcompress) -> None:
    words = ("quantize", "--calibrate", "--max-examples", 20, "--workspace", text_workspace)
    result = tcompress(*words)
    assert result.exit_code == 0, result.output
    found = Artifact.open(text_workspace / "artifacts/quantize").manifest.details["calibration"]
    assert found["kept"] == (found["divergence"] < found["divergence_before"])
    source = load(text_workspace / "artifacts/quantize")
    assert source.plan.precision == "int8"
    assert "up to date" in tcompress(*words).stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--calibrate", "--precision", "fp16"),
            "--calibrate goes with --precision int8, not fp16",
        ),
        (("--max-examples", 8), "--max-examples goes with --precision mixed or --calibrate"),
    ],
)
def test_calibration_where_it_means_nothing_is_refused(
    text_workspace: Path, tcompress, words: tuple[object, ...], message: str
) -> None:
    result = tcompress("quantize", *words, "--workspace", text_workspace)
    assert result.exit_code == 2
    assert message in result.stderr
