import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from tcompress.encoder import Encoder
from tcompress.errors import ModelError
from tcompress.loading import load
from tcompress.transformer import TransformerClassifier, TransformerSpec


def test_an_opened_encoder_equals_the_model_that_was_saved(any_encoder: Encoder) -> None:
    directory = any_encoder.directory
    batch = any_encoder.preprocessor.random_batch(3, 9)
    batch["attention_mask"][1, 5:] = 0
    if (directory / "architecture.json").is_file():
        original = TransformerClassifier(TransformerSpec.read(directory / "architecture.json"))
        original.load_state_dict(load_file(directory / "model.safetensors"))
        inputs = (torch.from_numpy(batch["inputs"]), torch.from_numpy(batch["attention_mask"]))
        expected = original.eval()(*inputs)
    else:
        original = AutoModelForSequenceClassification.from_pretrained(str(directory))
        expected = original.eval()(**{k: torch.from_numpy(v) for k, v in batch.items()}).logits
    np.testing.assert_allclose(
        any_encoder.predict(batch), expected.detach().numpy(), rtol=0, atol=1e-5
    )


def test_macs_follow_the_published_count(bert: Encoder) -> None:
    # 3 layers of 4 heads of 8 and 48 neurons on a stream of 32, at 10 tokens
    head = 3 * 10 * 32 * 8 + 2 * 10 * 10 * 8 + 10 * 8 * 32
    neuron = 2 * 10 * 32
    assert bert.anatomy.macs(10) == 3 * (4 * head + 48 * neuron)


@pytest.fixture
def broken(bert: Encoder, tmp_path: Path) -> Path:
    """A copy of the tiny BERT, to be damaged."""
    for path in bert.directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def _edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _edit_weights(directory: Path, change) -> None:
    state = load_file(directory / "model.safetensors")
    change(state)
    save_file(state, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "model.safetensors").unlink(), "no model.safetensors in it"),
        (lambda d: (d / "model.safetensors").write_bytes(b"x"), "damaged or not safetensors"),
        (lambda d: (d / "config.json").unlink(), "neither config.json nor architecture.json"),
        (lambda d: (d / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda d: _edit_config(d, model_type="gpt2"), "'gpt2' is no encoder family"),
        (lambda d: _edit_config(d, hidden_act="mish"), "activation 'mish' is not known"),
        (lambda d: _edit_config(d, intermediate_size=64), "has shape .* the model expects"),
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer"),
        (
            lambda d: _edit_weights(d, lambda s: s["classifier.bias"].fill_(torch.nan)),
            "'classifier.bias' holds values that are not finite",
        ),
        (
            lambda d: _edit_weights(
                d, lambda s: [s.pop("classifier." + n) for n in ("weight", "bias")]
            ),
            r"a classification head is missing \(fine-tune it",
        ),
    ],
)
def test_a_bad_model_directory_is_named_with_what_is_wrong(
    broken: Path, damage, message: str
) -> None:
    damage(broken)
    with pytest.raises(ModelError, match=message):
        load(broken)


def test_half_precision_checkpoints_open_in_fp32(broken: Path, bert: Encoder) -> None:
    path = broken / "model.safetensors"
    save_file({name: value.half() for name, value in load_file(path).items()}, path)
    _edit_config(broken, dtype="float16", torch_dtype="float16")
    assert {p.dtype for p in load(broken).model.parameters()} == {torch.float32}


def test_an_exported_file_is_not_an_encoder(text_workspace: Path, tcompress) -> None:
    tcompress("export", "--workspace", text_workspace)
    exported = text_workspace / "artifacts/export/onnx"
    result = tcompress("quantize", "--model", exported, "--output", text_workspace / "x")
    assert result.exit_code == 5
    assert "an exported onnx file; this needs an encoder with weights" in result.stderr
