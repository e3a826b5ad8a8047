from pathlib import Path

import numpy as np
import onnxruntime
import torch
from transformers import AutoModelForSequenceClassification, MPNetConfig

from tcompress.compress.pruning import prune_
from tcompress.encoder import open_encoder
from tcompress.export.deployment import deploy
from tcompress.export.onnx_graph import write_onnx
from tcompress.plain import plain

from .family_fixture import ANSWERS, INITIALIZER, SIZES, TEXT, hugging_face
from .plans import uneven

LONG = {**TEXT, "max_position_embeddings": 330}


def test_distances_beyond_the_buckets_have_the_biases_of_transformers(tmp_path: Path) -> None:
    fixture = hugging_face(lambda: MPNetConfig(**LONG, **SIZES, **ANSWERS, **INITIALIZER))
    fixture.write(tmp_path / "model", 0)
    encoder = open_encoder(tmp_path / "model")
    batch = {
        "input_ids": np.random.default_rng(0).integers(4, 20, (2, 300)),
        "attention_mask": np.ones((2, 300), np.int64),
    }
    batch["attention_mask"][1, 250:] = 0
    batch["input_ids"][1, 250:] = 1
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    inputs = {name: torch.from_numpy(array) for name, array in batch.items()}
    with torch.no_grad():
        wanted = model(**inputs).logits.numpy()
        walked = plain(encoder)(*inputs.values()).numpy()
    assert np.abs(encoder.predict(batch) - wanted).max() < 1e-5
    assert np.abs(walked - wanted).max() < 1e-5

    prune_(encoder, uneven(encoder))
    write_onnx(deploy(encoder), tmp_path / "model.onnx", metadata={})
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert np.abs(session.run(None, batch)[0] - encoder.predict(batch)).max() < 1e-4
