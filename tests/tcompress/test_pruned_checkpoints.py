import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertModel

from tcompress.compress.pruning import prune_
from tcompress.encoder import Encoder, open_encoder
from tcompress.errors import ModelError
from tcompress.plan import CompressionPlan, LayerPlan

PRUNED = {0: [1], 2: [0, 3]}
KEPT = ((0, 2, 3), (0, 1, 2, 3), (1, 2))


@pytest.fixture
def checkpoint(bert: Encoder, tmp_path: Path) -> Path:
    """The tiny BERT without some heads, in the form in which transformers 4 saves it."""
    dense = bert.plan
    layers = tuple(
        LayerPlan(heads, layer.neurons) for heads, layer in zip(KEPT, dense.layers, strict=True)
    )
    prune_(bert, CompressionPlan(layers, dense.source_heads, dense.source_neurons))
    bert.save(tmp_path)
    set_pruned_heads(tmp_path, PRUNED)
    return tmp_path


def set_pruned_heads(directory: Path, pruned: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pruned_heads": pruned}))


def test_the_heads_that_a_configuration_calls_pruned_are_not_in_the_plan(
    bert: Encoder, checkpoint: Path
) -> None:
    opened = open_encoder(checkpoint)
    assert tuple(layer.heads for layer in opened.plan.layers) == KEPT
    assert opened.plan.source_heads == (4, 4, 4)
    batch = bert.preprocessor.random_batch(3, 9)
    np.testing.assert_array_equal(opened.predict(batch), bert.predict(batch))


@pytest.mark.skipif(not hasattr(BertModel, "prune_heads"), reason="needs transformers 4")
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
def test_what_transformers_pruned_answers_as_it_does(
    kind: str, model_directories: Callable, tmp_path: Path
) -> None:
    source = open_encoder(model_directories(kind))
    model = AutoModelForSequenceClassification.from_pretrained(str(source.directory)).eval()
    model.prune_heads(PRUNED)
    source.save(tmp_path)
    model.save_pretrained(tmp_path)
    opened = open_encoder(tmp_path)
    assert tuple(layer.heads for layer in opened.plan.layers) == KEPT
    batch = opened.preprocessor.random_batch(3, 9)
    with torch.no_grad():
        expected = model(**{n: torch.from_numpy(array) for n, array in batch.items()}).logits
    np.testing.assert_allclose(opened.predict(batch), expected, rtol=0, atol=1e-5)


def test_a_plan_of_tcompress_goes_before_the_configuration(
    checkpoint: Path, bert: Encoder, tmp_path: Path
) -> None:
    plan = bert.plan
    (tmp_path / "again").mkdir()
    opened = open_encoder(checkpoint)
    fewer = (LayerPlan((2,), plan.layers[0].neurons), *plan.layers[1:])
    prune_(opened, CompressionPlan(fewer, plan.source_heads, plan.source_neurons))
    opened.save(tmp_path / "again")
    assert open_encoder(tmp_path / "again", opened.plan).anatomy.head_counts == (1, 4, 2)


@pytest.mark.parametrize(
    ("pruned", "message"),
    [
        ({"3": [0]}, "names layer 3, the model has 3"),
        ({"0": [4]}, r"removes heads \[4\] of layer 0; it can remove some of 0 to 3"),
        ({"0": [-1]}, r"removes heads \[-1\] of layer 0"),
        ({"1": [0, 1, 2, 3]}, "of layer 1; .* not all"),
        ({"0": "x"}, r"must be \{layer: \[head, ...\]\}, got"),
    ],
)
def test_heads_that_cannot_be_missing_are_refused(
    checkpoint: Path, pruned: Any, message: str
) -> None:
    set_pruned_heads(checkpoint, pruned)
    with pytest.raises(ModelError, match=message):
        open_encoder(checkpoint)
