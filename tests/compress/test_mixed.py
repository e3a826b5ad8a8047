"""Choosing precisions: sensitivity, cost, and the choice between them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tcompress.artifact import Manifest
from tcompress.compress import mixed_stage
from tcompress.compress.judging import mean_divergence, predict_all
from tcompress.compress.mixed import (
    Lowering,
    Option,
    Part,
    choose,
    in_precision,
    lowerings,
    measure_divergences,
    with_lowerings,
)
from tcompress.compress.precision import RuntimeInt8Linear
from tcompress.compress.pruning import prune_
from tcompress.encoder import Encoder
from tcompress.export.onnx_int8 import quantize_weight
from tcompress.plan import CompressionPlan, Precision

HOSTILE = Lowering(0, Part.FEED_FORWARD, Precision.INT8)


def make_hostile_(encoder: Encoder) -> None:
    """Make some neurons of layer 0 large and undo it behind: int8 keeps little of the others."""
    layer = encoder.anatomy.layers[0]
    with torch.no_grad():
        layer.ffn_in.weight[:2] *= 1000
        layer.ffn_in.bias[:2] *= 1000
        layer.ffn_out.weight[:, :2] /= 1000


def test_one_pass_finds_what_lowering_alone_does(
    any_encoder: Encoder, uneven_plan: CompressionPlan, encode: Callable
) -> None:
    prune_(any_encoder, uneven_plan)
    encoded = encode(any_encoder, 16)
    candidates = lowerings(any_encoder.plan, [Precision.INT8, Precision.BF16])
    assert len(candidates) == 2 * 4, "dropped sublayers have nothing to lower"
    batches = [batch for _, batch in encoded.batches(16)]
    found = measure_divergences(any_encoder, batches, candidates, RuntimeInt8Linear)
    answers = predict_all(any_encoder, encoded)
    for lowering, divergence in found.items():
        plan = with_lowerings(any_encoder.plan, [lowering])
        module = in_precision(any_encoder, plan, RuntimeInt8Linear)
        ((rows, batch),) = encoded.batches(16)
        with torch.no_grad():
            logits = module(*(torch.from_numpy(batch[name]) for name in module.input_names))
        alone = torch.empty_like(answers)
        alone[rows] = logits
        assert divergence == pytest.approx(mean_divergence(answers, alone), rel=0.02, abs=1e-9)


def test_a_sublayer_that_int8_ruins_stays_in_fp32_and_the_others_do_not(
    bert: Encoder, encode: Callable
) -> None:
    make_hostile_(bert)
    candidates = lowerings(bert.plan, [Precision.INT8])
    batches = [batch for _, batch in encode(bert, 32).batches(16)]
    found = measure_divergences(bert, batches, candidates, RuntimeInt8Linear)
    options = [Option(each, found[each], saved_ms=1.0) for each in candidates]
    others = sum(option.divergence for option in options if option.lowering != HOSTILE)
    assert found[HOSTILE] > others
    chosen = {option.lowering for option in choose(options, budget=1.01 * others)}
    assert chosen == set(candidates) - {HOSTILE}


def test_the_choice_is_the_best_of_all_combinations() -> None:
    """A greedy choice by ms per nat could take the first and then have no room."""
    places = [Lowering(layer, Part.ATTENTION, Precision.INT8) for layer in range(3)]
    small = Option(places[0], divergence=0.6, saved_ms=5.0)
    pair = [Option(place, divergence=0.5, saved_ms=4.0) for place in places[1:]]
    assert choose([small, *pair], budget=1.0) == pair
    half = Option(Lowering(1, Part.ATTENTION, Precision.BF16), divergence=0.1, saved_ms=1.0)
    slower = Option(places[2], divergence=0.0, saved_ms=-0.1)
    broken = Option(places[2], divergence=float("nan"), saved_ms=9.0)
    assert choose([small, pair[0], half, slower, broken], budget=1.0) == [small, half]
    assert choose([slower, broken], budget=1.0) == []


def test_int8_of_onnxruntime_rounds_as_the_runtime_does() -> None:
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(64, 32), torch.randn(10, 64)
    weight, scale = quantize_weight(linear.weight)
    arrays = {"w": weight, "s": scale, "b": linear.bias.detach().numpy()}
    node = helper.make_node(
        "DynamicQuantizeMatMul", ["x", "w", "s", "", "b"], ["y"], domain="com.microsoft"
    )
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    with torch.no_grad():
        ours, exact = RuntimeInt8Linear(linear)(x).numpy(), linear(x).numpy()
    served = session.run(None, {"x": x.numpy()})[0]
    assert np.abs(served - exact).max() > 1e-3
    np.testing.assert_allclose(ours, served, atol=1e-5)


def test_mixed_confirms_its_drop_and_says_what_it_measured(
    tcompress: Callable, text_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed_stage, "_MEASURING_S", 0.5)
    words = ("--tokens", 8, "--max-examples", 16, "--max-drop", 0.2)
    result = tcompress(
        "quantize", "--precision", "mixed", *words, "--workspace", text_workspace, "--json"
    )
    assert result.exit_code == 0, result.output
    manifest = Manifest.read(text_workspace / "artifacts/quantize")
    options, judged = manifest.details["options"], manifest.details["selection"]
    chosen = [
        Lowering(o["layer"], Part(o["part"]), Precision(o["precision"]))
        for o in options
        if o["chosen"]
    ]
    assert len(options) == 6
    assert with_lowerings(manifest.plan, chosen) == manifest.plan
    if chosen:
        assert judged["accuracy_before"] - judged["accuracy"] <= 0.2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(("mixed", "--max-drop", "0.1"), "workspace", id="no-workspace"),
        pytest.param(("fp16", "--engine", "pytorch"), "pytorch runs fp32, int8, bf16", id="fp16"),
        pytest.param(("int8", "--max-drop", "0.1"), "goes with --precision mixed", id="int8"),
    ],
)
def test_what_cannot_be_done_is_wrong_usage(
    words: tuple[str, ...], said: str, tcompress: Callable, model_directories, tmp_path
) -> None:
    where = ("--model", model_directories("bert"), "--output", tmp_path / "out")
    result = tcompress("quantize", "--precision", *words, *where)
    assert result.exit_code == 2
    assert said in result.stderr
