import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import ModernBertConfig

from tcompress.compress.distillation import outputs_of
from tcompress.compress.pruning import prune_
from tcompress.compress.reconstruction import reconstruct_
from tcompress.encoder import WEIGHTS_FILE, Encoder, open_encoder
from tcompress.errors import ModelError
from tcompress.export.exporting import write_export
from tcompress.plain import plain
from tcompress.plan import Precision
from tcompress.tasks import Task
from tcompress.terms.rotary import Rotary

from .family_fixture import ANSWERS, INITIALIZER, SIZES, TEXT, sentences, stir_, write_tokenizer
from .plans import uneven

LENGTHS = (40, 7, 21)
HEADS = {
    Task.CLASSIFICATION: "AutoModelForSequenceClassification",
    Task.TOKEN_CLASSIFICATION: "AutoModelForTokenClassification",
    Task.QUESTION_ANSWERING: "AutoModelForQuestionAnswering",
    Task.EMBEDDING: "AutoModel",
}
# Nothing as it is by default: biases everywhere, the first token pooled, odd window and angles,
# and a last layer whose window counts.
SETTINGS = {
    "global_attn_every_n_layers": 2,
    "local_attention": 7,
    "attention_bias": True,
    "mlp_bias": True,
    "norm_bias": True,
    "classifier_bias": True,
    "classifier_activation": "silu",
    "num_hidden_layers": 4,
}
OLD = {"global_attn_every_n_layers": 2, "global_rope_theta": 500.0, "local_rope_theta": 20.0}
NEW = {
    "layer_types": ["full_attention", "sliding_attention"] * 2,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
    },
}


def write(directory: Path, task: Task = Task.CLASSIFICATION) -> Path:
    torch.manual_seed(0)
    config = ModernBertConfig(**TEXT | SIZES | ANSWERS | INITIALIZER | SETTINGS)
    model = getattr(transformers, HEADS[task]).from_config(config)
    stir_(model)
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return directory


def reconfigure(directory: Path, changes: dict[str, Any]) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for name in (*OLD, *NEW):
        config.pop(name, None)
    path.write_text(json.dumps(config | changes))


def padded(*lengths: int) -> dict[str, np.ndarray]:
    """Inputs up to the longest that there is, of which the windows see a part."""
    ids = np.random.default_rng(0).integers(4, 20, (len(lengths), max(lengths)))
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return {"input_ids": np.where(mask == 1, ids, 1), "attention_mask": mask}


def tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in batch.items()}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("modernbert"))


@pytest.fixture
def encoder(directory: Path) -> Encoder:
    return open_encoder(directory)


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("lengths", [(40,), LENGTHS], ids=["one", "padded"])
def test_every_head_answers_as_in_transformers_and_in_the_plain_encoder(
    task: Task, lengths: tuple[int, ...], tmp_path: Path
) -> None:
    encoder = open_encoder(write(tmp_path, task), task=task)
    reference = getattr(transformers, HEADS[task]).from_pretrained(str(tmp_path)).eval()
    batch = padded(*lengths)
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


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.EMBEDDING])
def test_a_dense_encoder_is_saved_as_transformers_reads_it_and_a_pruned_one_is_not(
    task: Task, tmp_path: Path
) -> None:
    source, target = write(tmp_path / "source", task), tmp_path / "target"
    encoder = open_encoder(source, task=task)
    target.mkdir()
    encoder.save(target)
    before, after = (load_file(d / WEIGHTS_FILE) for d in (source, target))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    prune_(encoder, uneven(encoder))
    encoder.save(target)
    cut = load_file(target / WEIGHTS_FILE)
    assert not any("Wqkv" in name or "Wi" in name for name in cut)
    batch, again = padded(*LENGTHS), open_encoder(target, encoder.plan, task)
    np.testing.assert_allclose(again.predict(batch), encoder.predict(batch), rtol=0, atol=1e-6)


def test_configurations_of_both_lines_say_the_same(directory: Path, tmp_path: Path) -> None:
    answers = []
    for changes in (OLD, NEW):
        reconfigure(write(tmp_path), changes)
        answers.append(open_encoder(tmp_path).predict(padded(*LENGTHS)))
    np.testing.assert_array_equal(*answers)
    assert np.abs(answers[0] - open_encoder(directory).predict(padded(*LENGTHS))).max() > 1e-3


def test_rotations_of_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    rotations = {"full_attention": scaled, "sliding_attention": scaled}
    reconfigure(write(tmp_path), NEW | {"rope_parameters": rotations})
    with pytest.raises(ModelError, match="type 'linear' are not known; only 'default' ones are"):
        open_encoder(tmp_path)


def test_a_window_shows_as_many_tokens_on_either_side() -> None:
    q, k = torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 9, 4)
    bias = Rotary(4, 100.0, 16, window=2).bias(q, k)
    assert bias is not None
    assert bias.shape == (1, 1, 3, 9)
    shown = [row.nonzero().flatten().tolist() for row in bias[0, 0] == 0]
    assert shown == [[0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert torch.isfinite(bias + bias).all()


def test_scores_of_rotated_tokens_depend_on_their_distance_only() -> None:
    terms, (q, k) = Rotary(8, 100.0, 64), torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    q, k = terms.rotated(q.expand(1, 1, 64, 8), k.expand(1, 1, 64, 8))
    scores = (q @ k.mT)[0, 0]
    for distance in (-5, 0, 11):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8, Precision.FP16])
def test_layers_of_the_onnx_file_share_tables_and_windows(
    encoder: Encoder, precision: Precision, tmp_path: Path
) -> None:
    prune_(encoder, encoder.plan.with_precision(precision))
    parity = write_export(encoder, "onnx", tmp_path)["parity"]
    assert max(tokens for _, tokens in parity["shapes"]) > 2 * 3
    graph = onnx.load(tmp_path / "model.onnx").graph
    tables = [w.name for w in graph.initializer if w.name.startswith("rotary.")]
    assert len(tables) == 4, "cosines and sines of two angles"
    operators = [node.op_type for node in graph.node]
    assert operators.count("RotaryEmbedding") == 2 * 4
    assert operators.count("Abs") == 1


def test_macs_count_the_gate(encoder: Encoder) -> None:
    attention = 4 * 10 * 32 * 32 + 2 * 10 * 10 * 32
    assert encoder.anatomy.macs(10) == 4 * (attention + 3 * 10 * 32 * 48)
    assert encoder.anatomy.unit_macs(0, 10) == (attention // 4, 3 * 10 * 32)


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
    outputs = outputs_of(encoder, encoder.anatomy, padded(*LENGTHS))
    assert [tuple(layer.shape) for layer in outputs.layers] == [(3, 40, 32)] * 4
