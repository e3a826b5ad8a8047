from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from transformers import DebertaV2Config

from tcompress.compress.distillation import outputs_of
from tcompress.compress.gating import masked
from tcompress.compress.observers import AttentionMaps
from tcompress.compress.product_inputs import channel_extremes
from tcompress.compress.pruning import prune_
from tcompress.compress.reconstruction import reconstruct_
from tcompress.compress.shifting import shift_
from tcompress.compress.smoothing import fold_value_biases_, smooth_
from tcompress.encoder import Encoder, open_encoder
from tcompress.errors import ModelError
from tcompress.export.exporting import write_export
from tcompress.plain import plain
from tcompress.plan import Precision
from tcompress.tasks import Task

from .family_fixture import ANSWERS, INITIALIZER, SIZES, TEXT, sentences, stir_, write_tokenizer
from .plans import uneven

HEADS = {
    Task.CLASSIFICATION: "AutoModelForSequenceClassification",
    Task.TOKEN_CLASSIFICATION: "AutoModelForTokenClassification",
    Task.QUESTION_ANSWERING: "AutoModelForQuestionAnswering",
    Task.EMBEDDING: "AutoModel",
}
V3: dict[str, Any] = {
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 8,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}
# Projections of their own for positions, a row per distance, and everything that v3 leaves out.
V2: dict[str, Any] = V3 | {
    "type_vocab_size": 2,
    "position_buckets": -1,
    "max_relative_positions": 9,
    "norm_rel_ebd": "none",
    "share_att_key": False,
    "position_biased_input": True,
    "embedding_size": 24,
    "pooler_hidden_act": "tanh",
}
FORMS = {
    "v3": V3,
    "v2": V2,
    "near": V3 | {"max_relative_positions": 12},
    "content-to-place": V2 | {"pos_att_type": "c2p"},
    "place-to-content": V3 | {"pos_att_type": "p2c"},
    "types-alone": V3 | {"type_vocab_size": 2},
    "absolute": V2 | {"relative_attention": False, "pos_att_type": None},
}
LENGTHS = (40, 7, 21)


def write(directory: Path, form: str = "v3", task: Task = Task.CLASSIFICATION) -> Path:
    torch.manual_seed(0)
    config = DebertaV2Config(**TEXT | SIZES | ANSWERS | INITIALIZER | FORMS[form])
    model = getattr(transformers, HEADS[task]).from_config(config)
    stir_(model)
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return directory


def padded(encoder: Encoder, *lengths: int) -> dict[str, np.ndarray]:
    """Inputs up to the longest that there is, beyond what buckets tell apart."""
    rng = np.random.default_rng(0)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.where(mask == 1, rng.integers(4, 20, mask.shape), 1)
    found = {"input_ids": ids, "attention_mask": mask, "token_type_ids": mask * (ids % 2)}
    return {name: found[name] for name in encoder.example_tensors(1, 2)}


def tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in batch.items()}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("deberta"))


@pytest.fixture
def encoder(directory: Path) -> Encoder:
    return open_encoder(directory)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_answers_as_in_transformers_whole_masked_pruned_and_exported(
    form: str, tmp_path: Path
) -> None:
    encoder = open_encoder(write(tmp_path / "model", form))
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(encoder.directory)
    for lengths in ((40,), LENGTHS):
        batch = padded(encoder, *lengths)
        with torch.no_grad():
            expected = reference.eval()(**tensors(batch)).logits.numpy()
            walked = plain(encoder)(*tensors(batch).values()).numpy()
        for given in (encoder.predict(batch), walked):
            np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5)

    plan = uneven(encoder)
    with masked(encoder, plan):
        expected = encoder.predict(batch)
    prune_(encoder, plan)
    with torch.no_grad():
        walked = plain(encoder)(*tensors(batch).values()).numpy()
    for given in (encoder.predict(batch), walked):
        np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5)

    (tmp_path / "pruned").mkdir()
    encoder.save(tmp_path / "pruned")
    again = open_encoder(tmp_path / "pruned", plan)
    np.testing.assert_allclose(again.predict(batch), expected, rtol=0, atol=1e-5)
    assert write_export(again, "onnx", tmp_path)["parity"]["max_abs_difference"] < 1e-5


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("lengths", [(40,), LENGTHS], ids=["one", "padded"])
def test_every_head_answers_as_in_transformers_and_in_the_plain_encoder(
    task: Task, lengths: tuple[int, ...], tmp_path: Path
) -> None:
    encoder = open_encoder(write(tmp_path, task=task), task=task)
    reference = getattr(transformers, HEADS[task]).from_pretrained(str(tmp_path)).eval()
    batch = padded(encoder, *lengths)
    with torch.no_grad():
        found = reference(**tensors(batch))
        answers = plain(encoder)(*tensors(batch).values()).numpy()
    if task is Task.EMBEDDING:
        mask = torch.from_numpy(batch["attention_mask"])[..., None]
        expected = (found.last_hidden_state * mask).sum(1) / mask.sum(1)
    elif task is Task.QUESTION_ANSWERING:
        expected = torch.stack([found.start_logits, found.end_logits], -1)
    else:
        expected = found.logits
    real = batch["attention_mask"] == 1 if expected.dim() == 3 else slice(None)
    for given in (encoder.predict(batch), answers):
        np.testing.assert_allclose(given[real], expected.numpy()[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8, Precision.FP16])
def test_layers_of_the_onnx_file_share_distances_and_gather_no_single_scores(
    encoder: Encoder, precision: Precision, tmp_path: Path
) -> None:
    prune_(encoder, encoder.plan.with_precision(precision))
    parity = write_export(encoder, "onnx", tmp_path)["parity"]
    assert max(tokens for _, tokens in parity["shapes"]) > 2 * 8
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert operators.count("Attention") == 3
    assert "GatherElements" not in operators
    assert operators.count("Range") == 3, "rising, falling, and those of the first token"


def test_projections_of_positions_lose_the_heads_too(tmp_path: Path) -> None:
    encoder = open_encoder(write(tmp_path, "v2"))
    prune_(encoder, uneven(encoder))
    layer = encoder.anatomy.layers[0]
    assert [p.out_features for p in (*layer.projections(), *layer.companions)] == [24] * 5
    assert encoder.anatomy.head_counts == (3, 0, 1)


@pytest.mark.parametrize("form", ["v3", "v2"])
def test_evening_out_channels_changes_no_answer(form: str, tmp_path: Path) -> None:
    encoder = open_encoder(write(tmp_path, form))
    batch = padded(encoder, *LENGTHS)
    before, key = encoder.predict(batch), encoder.anatomy.layers[1].key
    assert key is not None
    bias = key.bias.detach().clone()
    shift_(encoder, channel_extremes(plain(encoder), [batch]))
    fold_value_biases_(encoder)
    smooth_(encoder, channel_extremes(plain(encoder), [batch]))
    np.testing.assert_allclose(encoder.predict(batch), before, rtol=0, atol=1e-5)
    assert torch.equal(key.bias, bias) == (form == "v3"), "positions are projected with it too"


def test_macs_count_the_products_of_content_and_positions(tmp_path: Path) -> None:
    anatomy = open_encoder(write(tmp_path)).anatomy
    attention = 4 * 10 * 32 * 32 + (2 + 2 * 2) * 10 * 10 * 32
    assert anatomy.macs(10) == 3 * (attention + 2 * 10 * 32 * 48)
    assert anatomy.unit_macs(0, 10) == (attention // 4, 2 * 10 * 32)


def test_a_convolution_beside_the_first_layer_is_refused(tmp_path: Path) -> None:
    config = DebertaV2Config(**TEXT | SIZES | ANSWERS | V3, conv_kernel_size=3)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="conv_kernel_size is 3"):
        open_encoder(tmp_path)


def test_reconstruction_brings_the_answers_back_towards_those_of_the_whole(
    encoder: Encoder, directory: Path
) -> None:
    encoded = encoder.preprocessor.encode(sentences(48))
    plan = uneven(encoder)
    batch = encoded.collate(range(12))
    whole, errors = encoder.predict(batch), []
    for reconstructs in (False, True):
        student = open_encoder(directory)
        prune_(student, plan)
        if reconstructs:
            reconstruct_(student, encoder, encoded)
        errors.append(np.square(student.predict(batch) - whole).mean())
    assert errors[1] < 0.5 * errors[0]


def test_every_layer_can_be_distilled(encoder: Encoder) -> None:
    outputs = outputs_of(encoder, encoder.anatomy, padded(encoder, *LENGTHS))
    assert [tuple(layer.shape) for layer in outputs.layers] == [(3, 40, 32)] * 3


def test_observed_attention_maps_are_those_of_transformers(encoder: Encoder) -> None:
    batch = padded(encoder, *LENGTHS)
    real = torch.from_numpy(batch["attention_mask"]) == 1
    maps = [AttentionMaps(layer, real) for layer in encoder.anatomy.layers]
    with ExitStack() as hooks, torch.no_grad():
        for each in maps:
            hooks.enter_context(each.observing())
        found = encoder.model(**tensors(batch), output_attentions=True).attentions
    for each, attention in zip(maps, found, strict=True):
        confidence = (attention.amax(-1) * real[:, None]).sum(-1)
        torch.testing.assert_close(each.confidence, confidence, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_openvino_runs_what_is_left_of_the_positions(encoder: Encoder, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    prune_(encoder, uneven(encoder))
    assert write_export(encoder, "openvino", tmp_path)["parity"]["max_abs_difference"] < 1e-5
