import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import AutoModel, BertConfig, BertModel

from tcompress import load
from tcompress.data import Examples
from tcompress.embedder import Embedder, EmbedderSpec
from tcompress.encoder import Encoder, copy_carried_files, open_encoder
from tcompress.errors import ModelError
from tcompress.plain import plain

TEXTS = ("a good film", "the plot was very dull and not good", "bad")


def write_modules(directory: Path, *modules: tuple[str, str, dict[str, object]]) -> None:
    rows = [{"idx": 0, "name": "0", "path": "", "type": "any.module.Transformer"}]
    for kind, folder, config in modules:
        rows.append({"idx": len(rows), "name": kind, "path": folder, "type": f"any.{kind}"})
        (directory / folder).mkdir()
        (directory / folder / "config.json").write_text(json.dumps(config))
    (directory / "modules.json").write_text(json.dumps(rows))


@pytest.fixture
def embedder_directory(tmp_path: Path, model_directories: Callable) -> Path:
    directory = tmp_path / "embedder"
    directory.mkdir()
    copy_carried_files(model_directories("bert"), directory)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(**sizes, intermediate_size=48, vocab_size=20, initializer_range=0.3)
    BertModel(config).save_pretrained(directory)
    return directory


def encoded(encoder: Encoder) -> dict[str, np.ndarray]:
    examples = Examples(origin="test", ids=("0", "1", "2"), texts=TEXTS)
    return encoder.preprocessor.encode(examples).collate([0, 1, 2])


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_a_sentence_transformers_directory_gives_the_vectors_that_its_modules_describe(
    pooling: str, embedder_directory: Path, tmp_path: Path
) -> None:
    dense = {"in_features": 32, "out_features": 8, "bias": True}
    dense["activation_function"] = "torch.nn.modules.activation.Tanh"
    write_modules(
        embedder_directory,
        ("Pooling", "1_Pooling", {"pooling_mode": pooling}),
        ("Dense", "2_Dense", dense),
        ("Normalize", "3_Normalize", {}),
    )
    weights = {"linear.weight": torch.randn(8, 32), "linear.bias": torch.randn(8)}
    save_file(weights, embedder_directory / "2_Dense/model.safetensors")
    encoder = open_encoder(embedder_directory)
    batch = encoded(encoder)

    base = AutoModel.from_pretrained(embedder_directory, attn_implementation="eager").eval()
    inputs = {name: torch.from_numpy(array) for name, array in batch.items()}
    with torch.no_grad():
        hidden = base(**inputs).last_hidden_state
    rows = [h[m.bool()] for h, m in zip(hidden, inputs["attention_mask"], strict=True)]
    pool = {"cls": lambda h: h[0], "mean": lambda h: h.mean(0), "max": lambda h: h.amax(0)}
    pooled = torch.stack([pool[pooling](row) for row in rows])
    y = torch.tanh(pooled @ weights["linear.weight"].T + weights["linear.bias"])
    expected = functional.normalize(y, dim=-1).numpy()

    found = encoder.predict(batch)
    assert np.abs(found - expected).max() < 1e-5
    module = plain(encoder)
    with torch.no_grad():
        walked = module(*(inputs[name] for name in module.input_names)).numpy()
    assert np.abs(walked - expected).max() < 1e-5

    copy = tmp_path / "copy"
    copy.mkdir()
    encoder.save(copy)
    again = load(copy)
    assert isinstance(again, Encoder)
    assert isinstance(again.model, Embedder)
    assert np.array_equal(again.predict(batch), found)


def test_an_unpruned_embedder_that_was_saved_opens_in_sentence_transformers(
    embedder_directory: Path, tmp_path: Path
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    write_modules(
        embedder_directory,
        ("Pooling", "1_Pooling", {"pooling_mode_mean_tokens": True}),
        ("Normalize", "2_Normalize", {}),
    )
    modules = json.loads((embedder_directory / "modules.json").read_text())
    for module in modules:
        module["type"] = f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"
    (embedder_directory / "modules.json").write_text(json.dumps(modules))
    config = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (embedder_directory / "1_Pooling/config.json").write_text(json.dumps(config))
    encoder = open_encoder(embedder_directory)
    with torch.no_grad():
        encoder.anatomy.layers[0].ffn_out.weight.mul_(0.5)
    copy = tmp_path / "copy"
    copy.mkdir()
    encoder.save(copy)
    model = sentence_transformers.SentenceTransformer(str(copy), device="cpu")
    assert np.abs(model.encode(list(TEXTS)) - encoder.predict(encoded(encoder))).max() < 1e-5


def test_inputs_end_where_the_directory_says(embedder_directory: Path) -> None:
    write_modules(embedder_directory, ("Pooling", "1_Pooling", {"pooling_mode": "mean"}))
    (embedder_directory / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')
    assert open_encoder(embedder_directory).preprocessor.max_tokens == 5


@pytest.mark.parametrize(
    ("kind", "folder", "config", "message"),
    [
        ("WeightedLayerPooling", "1_W", {}, "'WeightedLayerPooling' is not supported"),
        ("Pooling", "1_P", {"pooling_mode": "lasttoken"}, "exactly one pooling"),
        (
            "Pooling",
            "1_P",
            {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
            "exactly one pooling",
        ),
        ("Dense", "1_D", {"activation_function": "os.system"}, "activation 'system' is not one"),
    ],
)
def test_modules_that_would_be_computed_wrongly_are_refused(
    kind: str, folder: str, config: dict[str, object], message: str, tmp_path: Path
) -> None:
    write_modules(tmp_path, (kind, folder, config))
    with pytest.raises(ModelError, match=message):
        EmbedderSpec.read(tmp_path)


def test_modules_outside_the_directory_are_refused(tmp_path: Path) -> None:
    rows = [{"idx": 0, "path": "../other", "type": "any.Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(rows))
    with pytest.raises(ModelError, match=r"Pooling lies in '\.\./other'"):
        EmbedderSpec.read(tmp_path)
