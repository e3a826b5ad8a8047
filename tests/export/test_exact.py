import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer

from tcompress.compress.pruning import prune_
from tcompress.data import Examples
from tcompress.encoder import Encoder
from tcompress.errors import RequestError
from tcompress.export.deployment import AppliedTransforms, deploy
from tcompress.export.exact import (
    drop_key_bias,
    fold_token_types,
    fold_value_bias,
    without_token_types,
)
from tcompress.export.exporting import write_export
from tcompress.export.parity import parity_batches
from tcompress.loading import load
from tcompress.plain import PlainEncoder
from tcompress.plan import CompressionPlan, Precision
from tcompress.preprocessing import Batch

FIRST_TOKEN_MODELS = ("bert", "roberta", "electra", "distilbert", "torch-sequence-first")
TOKEN_TYPE_MODELS = ("bert", "roberta", "electra")


def inputs_of(deployed: PlainEncoder, batch: Batch) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(batch[name]) for name in deployed.input_names)


@torch.no_grad()
def logits_of(deployed: PlainEncoder, batch: Batch) -> Tensor:
    logits: Tensor = deployed(*inputs_of(deployed, batch))
    return logits


def attend(layer, x: Tensor) -> Tensor:
    """The attention sublayer with no head dropped, and nothing padded."""
    q, k, v = (
        linear(x).unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
        for linear in (layer.query, layer.key, layer.value)
    )
    mixed = nn.functional.scaled_dot_product_attention(q, k, v)
    return layer.output(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("pruned", [False, True])
def test_the_deployed_module_equals_the_encoder_and_leaves_it_alone(
    any_encoder: Encoder, uneven_plan: CompressionPlan, pruned: bool
) -> None:
    if pruned:
        prune_(any_encoder, uneven_plan)
    before = copy.deepcopy(any_encoder.model.state_dict())
    deployed = deploy(any_encoder)
    for batch in parity_batches(any_encoder):
        logits = logits_of(deployed, batch).numpy()
        np.testing.assert_allclose(logits, any_encoder.predict(batch), rtol=1e-5, atol=1e-5)
    after = any_encoder.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("transform", [drop_key_bias, fold_value_bias])
def test_a_transformed_layer_attends_as_before(bert: Encoder, transform) -> None:
    layer = bert.anatomy.layers[1]
    with torch.no_grad():
        for linear in layer.projections():
            linear.bias.mul_(30)  # so that a mistake shows
        x = torch.randn(3, 9, 32)
        transformed = transform(layer)
        expected = attend(layer, x)
        torch.testing.assert_close(attend(transformed, x), expected, rtol=1e-5, atol=1e-4)
        assert expected.abs().max() > 1
    changed = {"key", "value", "output"} & {
        name
        for name in ("query", "key", "value", "output")
        if getattr(transformed, name) is not getattr(layer, name)
    }
    assert changed == ({"key"} if transform is drop_key_bias else {"value", "output"})
    assert transformed.value.weight.data_ptr() == layer.value.weight.data_ptr(), "memory is shared"


def test_what_was_applied_is_counted(
    any_encoder: Encoder, uneven_plan: CompressionPlan, request: pytest.FixtureRequest
) -> None:
    biases = any_encoder.anatomy.layers[0].output.bias is not None
    first = request.node.callspec.params["any_encoder"] in FIRST_TOKEN_MODELS
    for plan, layers in ((any_encoder.plan, 3), (uneven_plan, 2)):
        prune_(any_encoder, plan)
        count = layers if biases else 0
        applied = AppliedTransforms.between(any_encoder.anatomy, deploy(any_encoder))
        assert applied == AppliedTransforms(count, count, int(first), False)


def test_the_onnx_file_adds_no_bias_to_keys_and_values(bert: Encoder, tmp_path: Path) -> None:
    biases = {}
    for precision in (Precision.FP32, Precision.INT8):
        bert.plan = bert.plan.with_precision(precision)
        (tmp_path / precision).mkdir()
        details = write_export(bert, "onnx", tmp_path / precision)
        graph = onnx.load(tmp_path / precision / "model.onnx").graph
        names = [tensor.name for tensor in graph.initializer if ".bias" in tensor.name]
        biases[precision] = {n.split(".", 2)[2] for n in names if n.startswith("layer.")}
        assert details["transforms"]["value_biases_folded"] == 3
    projections = ("attention.query", "attention.output", "feed_forward.in", "feed_forward.out")
    kept = {f"{name}.bias" for name in projections}
    norms = {"attention_norm.bias", "ffn_norm.bias"}
    assert biases == dict.fromkeys(biases, kept | norms)


def test_dropped_sublayers_cost_one_addition(
    bert: Encoder, uneven_plan: CompressionPlan, tmp_path: Path
) -> None:
    prune_(bert, uneven_plan)
    write_export(bert, "onnx", tmp_path)
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    readers = {
        name: [node.op_type for node in nodes if name in node.input]
        for name in ("layer.1.attention.constant", "layer.2.feed_forward.constant")
    }
    assert list(readers.values()) == [["Add"], ["Add"]]
    assert [node.name for node in nodes if node.op_type == "Expand"] == ["mask.Expand"]


@pytest.mark.parametrize("model", FIRST_TOKEN_MODELS)
def test_a_last_layer_for_the_first_token_equals_the_whole_one_for_less(
    model: str, model_directories
) -> None:
    encoder = load(model_directories(model))
    deployed = deploy(encoder)
    whole = deploy(encoder)
    whole.layers[-1].first_only = False
    for batch in parity_batches(encoder):
        torch.testing.assert_close(
            logits_of(deployed, batch), logits_of(whole, batch), rtol=0, atol=1e-5
        )
    flops = []
    for module in (deployed, whole):
        with FlopCounterMode(display=False) as counter:
            logits_of(module, batch)
        flops.append(counter.get_total_flops())
    assert flops[0] < 0.85 * flops[1]


@pytest.mark.parametrize("model", TOKEN_TYPE_MODELS)
def test_folded_token_types_equal_kept_ones_where_all_are_0(model: str, model_directories) -> None:
    encoder = load(model_directories(model))
    kept, folded = deploy(encoder), deploy(without_token_types(encoder))
    assert kept.input_names == ("input_ids", "token_type_ids", "attention_mask")
    assert folded.input_names == ("input_ids", "attention_mask")
    assert AppliedTransforms.between(encoder.anatomy, folded).token_types_folded
    for batch in parity_batches(encoder):
        plain = batch | {"token_type_ids": np.zeros_like(batch["token_type_ids"])}
        torch.testing.assert_close(
            logits_of(folded, plain), logits_of(kept, plain), rtol=0, atol=1e-5
        )


def test_without_token_types_there_is_nothing_to_fold(model_directories) -> None:
    for kind in ("distilbert", "torch-pre-norm"):
        encoder = load(model_directories(kind))
        assert without_token_types(encoder) is encoder
        assert fold_token_types(encoder.anatomy.embedding) == encoder.anatomy.embedding


def test_token_types_of_single_texts_other_than_0_are_not_folded(bert: Encoder) -> None:
    bert.preprocessor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    with pytest.raises(RequestError, match="token types other than 0; export with --keep"):
        without_token_types(bert)


def test_every_format_can_do_without_token_types(
    any_format: str, bert: Encoder, uneven_plan: CompressionPlan, tmp_path: Path
) -> None:
    prune_(bert, uneven_plan)
    details = write_export(without_token_types(bert), any_format, tmp_path)
    assert details["input_names"] == ["input_ids", "attention_mask"]
    assert details["transforms"]["token_types_folded"]
    assert details["parity"]["max_abs_difference"] < 1e-5


@pytest.mark.parametrize("model", ["bert", "distilbert"])
def test_what_the_exported_tokenizer_gives_fits_the_file_as_it_is(
    model: str, model_directories, tmp_path: Path
) -> None:
    encoder = load(model_directories(model))
    write_export(without_token_types(encoder), "onnx", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    texts = ("a good film", "the plot was very dull and bad")
    logits = session.run(None, dict(tokenizer(list(texts), padding=True, return_tensors="np")))[0]
    examples = Examples("test", ids=("0", "1"), texts=texts)
    batch = encoder.preprocessor.encode(examples).collate([0, 1])
    np.testing.assert_allclose(logits, encoder.predict(batch), atol=1e-5)


def test_pairs_are_refused_where_token_types_are_folded(
    tmp_path: Path, model_directories, reviews_file: Path, tcompress
) -> None:
    table = pd.read_csv(reviews_file)
    table.assign(second=table["text"].iloc[::-1].to_numpy()).to_csv(tmp_path / "p.csv", index=False)
    workspace = ("--workspace", tmp_path / "workspace")
    data = ("--data", tmp_path / "p.csv", "--text-pair-column", "second")
    assert tcompress("init", model_directories("bert"), *data, *workspace).exit_code == 0
    refused = tcompress("export", "--fold-token-types", *workspace)
    assert refused.exit_code == 2
    assert "text pairs need token types" in refused.stderr
    assert "export with --keep-token-types" in refused.stderr
    assert tcompress("export", "--keep-token-types", *workspace).exit_code == 0


def test_a_file_without_token_types_refuses_pairs_when_it_is_served(
    text_workspace: Path, tcompress
) -> None:
    assert tcompress("export", "--fold-token-types", "--workspace", text_workspace).exit_code == 0
    served = load(text_workspace / "artifacts/export/onnx")
    pair = Examples("pair.csv", ids=("0",), texts=("a film",), text_pairs=("a plot",))
    with pytest.raises(RequestError, match=r"pair\.csv: text pairs need token types"):
        served.preprocessor.encode(pair)
    single = replace(pair, text_pairs=None)
    assert set(served.preprocessor.encode(single).collate([0])) == {"input_ids", "attention_mask"}
