"""Choosing precisions: sensitivity, cost, and the choice between them."""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from tcompress.artifact import Manifest
from tcompress.compress.cost import Engine, Serving
from tcompress.compress.judging import Judge, Selection, mean_divergence, predict_all
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
from tcompress.compress.mixed_stage import confirmed
from tcompress.compress.precision import RuntimeInt8Linear
from tcompress.compress.pruning import prune_
from tcompress.encoder import Encoder
from tcompress.export.onnx_int8 import quantize_weight
from tcompress.machine import int8_saturates
from tcompress.plan import CompressionPlan, Precision

HOSTILE = Lowering(0, Part.FEED_FORWARD, Precision.INT8)


def make_hostile_(encoder: Encoder, by: float = 1000) -> None:
    """Make some neurons of layer 0 large and undo it behind: int8 keeps little of the others."""
    layer = encoder.anatomy.layers[0]
    with torch.no_grad():
        layer.ffn_in.weight[:2] *= by
        layer.ffn_in.bias[:2] *= by
        layer.ffn_out.weight[:, :2] /= by


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


@pytest.mark.skipif(
    int8_saturates(), reason="this CPU has no int8 dot products: 8-bit weights saturate on it"
)
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


@dataclass(frozen=True)
class PricedMeter:
    """Every sublayer costs as much as its precision."""

    serving: Serving

    def latencies_ms(self, plans: Sequence[CompressionPlan], budget_s: float) -> list[float]:
        price = {Precision.FP32: 1.0, Precision.INT8: 0.25, Precision.BF16: 0.5}
        return [
            0.1
            + sum(price.get(p, 0.5) for la in plan.layers for p in (la.attention, la.feed_forward))
            for plan in plans
        ]


@pytest.fixture
def quantize(tcompress: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable:
    def open_meter(_encoder: Encoder, serving: Serving) -> nullcontext[PricedMeter]:
        return nullcontext(PricedMeter(serving))

    monkeypatch.setattr("tcompress.cli.open_meter", open_meter)
    words = ("quantize", "--precision", "mixed", "--tokens", 8, "--max-examples", 16)
    return lambda *more: tcompress(*words, *more)


def test_mixed_lowers_within_the_drop_and_says_what_it_measured(
    quantize: Callable, text_workspace: Path
) -> None:
    result = quantize("--max-drop", 0.2, "--workspace", text_workspace)
    assert result.exit_code == 0, result.output
    manifest = Manifest.read(text_workspace / "artifacts/quantize")
    options, judged = manifest.details["options"], manifest.details["selection"]
    chosen = [o for o in options if o["chosen"]]
    assert [o["saved_ms"] for o in options] == pytest.approx(6 * [0.75])
    assert len(chosen) >= 3
    assert f"quantize: {len(chosen)} sublayers lowered" in result.stdout
    assert with_lowerings(manifest.plan, map(lowering_of, chosen)) == manifest.plan
    assert manifest.precision == ("int8" if len(chosen) == 6 else "mixed")
    assert judged["accuracy_before"] - judged["accuracy"] <= 0.2


def write_model(encoder: Encoder, directory: Path) -> Path:
    shutil.copytree(encoder.directory, directory)
    save_file(encoder.model.state_dict(), directory / "model.safetensors")
    return directory


def lowering_of(option: dict[str, Any]) -> Lowering:
    return Lowering(option["layer"], Part(option["part"]), Precision(option["precision"]))


def test_a_sublayer_that_overflows_in_fp16_stays_out_and_is_on_record(
    quantize: Callable, bert: Encoder, text_workspace: Path, tmp_path: Path
) -> None:
    make_hostile_(bert, by=1e6)
    model = write_model(bert, tmp_path / "model")
    result = quantize("--engine", "cuda", "--model", model, "--workspace", text_workspace)
    assert result.exit_code == 0, result.output
    options = Manifest.read(text_workspace / "artifacts/quantize").details["options"]
    overflowing = [o for o in options if o["divergence"] is None]
    assert [lowering_of(o) for o in overflowing] == [replace(HOSTILE, precision=Precision.FP16)]
    assert not overflowing[0]["chosen"]
    assert "overflows" in result.stdout


def test_the_budget_steps_down_until_the_drop_holds(bert: Encoder, encode: Callable) -> None:
    """The hostile sublayer is given a divergence that is far too small."""
    make_hostile_(bert)
    judge = Judge(bert, Selection(encode(bert, 200), None))
    bound = judge.bound(0.1)
    options = [
        Option(each, bound * (0.5 if each == HOSTILE else 0.05), saved_ms=1.0)
        for each in lowerings(bert.plan, [Precision.INT8])
    ]
    lines: list[str] = []
    chosen, verdict = confirmed(
        bert, options, judge, engine=Engine.ONNXRUNTIME, max_drop=0.1, tell=lines.append
    )
    assert [option.lowering for option in chosen] == [
        option.lowering for option in options if option.lowering != HOSTILE
    ]
    assert verdict is not None
    assert judge.stays_inside(verdict, 0.1)
    assert [line[10:30] for line in lines] == ["6 sublayers lowered:", "5 sublayers lowered:"]


def test_more_tokens_than_the_encoder_reads_are_refused_before_anything_is_measured(
    quantize: Callable, text_workspace: Path
) -> None:
    result = quantize("--tokens", 41, "--workspace", text_workspace)
    assert result.exit_code == 2
    assert "--tokens 41: this encoder reads at most 40 tokens" in result.stderr
    assert "depend on" not in result.stderr


def test_an_encoder_of_one_output_is_a_regression_and_refuses_labels_that_are_no_numbers(
    quantize: Callable, bert: Encoder, text_workspace: Path, tmp_path: Path
) -> None:
    bert.model.classifier = torch.nn.Linear(32, 1)
    model = write_model(bert, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config |= {"id2label": {"0": "only"}, "label2id": {"only": 0}}
    (model / "config.json").write_text(json.dumps(config))
    result = quantize("--model", model, "--workspace", text_workspace)
    assert result.exit_code == 5
    assert "is 'good', not a number" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(("mixed", "--max-drop", "0.1"), "workspace", id="no-workspace"),
        pytest.param(("fp16", "--engine", "pytorch"), "pytorch runs fp32, int8, bf16", id="fp16"),
        pytest.param(("int8", "--max-drop", "0.1"), "goes with --precision mixed", id="int8"),
        pytest.param(("int8", "--tokens", "128"), "--tokens goes with --prec", id="tokens"),
    ],
)
def test_what_cannot_be_done_is_wrong_usage(
    words: tuple[str, ...], said: str, tcompress: Callable, model_directories, tmp_path
) -> None:
    where = ("--model", model_directories("bert"), "--output", tmp_path / "out")
    result = tcompress("quantize", "--precision", *words, *where)
    assert result.exit_code == 2
    assert said in result.stderr
