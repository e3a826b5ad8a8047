from pathlib import Path

import pytest
import torch
from transformers import AlbertConfig

from tcompress.compress.gating import masked
from tcompress.compress.judging import predict_all
from tcompress.compress.pruning import prune_
from tcompress.compress.questions import Questions
from tcompress.compress.reconstruction import reconstruct_
from tcompress.compress.surgeon import Surgeon
from tcompress.encoder import Encoder, open_encoder
from tcompress.plan import CompressionPlan, LayerPlan

from .family_fixture import ANSWERS, INITIALIZER, SIZES, TEXT, hugging_face, sentences

PLAN = CompressionPlan(
    (LayerPlan((0, 3), tuple(range(0, 48, 3))), LayerPlan((), tuple(range(40)))),
    source_heads=(4, 4),
    source_neurons=(48, 48),
)


@pytest.fixture
def two_groups(tmp_path: Path) -> Encoder:
    """Five applications of two layers: three of the first, then two of the second."""
    sizes = {**SIZES, "num_hidden_layers": 5, "intermediate_size": 48}
    fixture = hugging_face(
        lambda: AlbertConfig(
            **TEXT, **sizes, **ANSWERS, **INITIALIZER, embedding_size=16, num_hidden_groups=2
        )
    )
    fixture.write(tmp_path / "model", 0)
    return open_encoder(tmp_path / "model")


def test_a_layer_stands_for_all_its_applications(two_groups: Encoder) -> None:
    anatomy = two_groups.anatomy
    assert anatomy.order == (0, 0, 0, 1, 1)
    assert (len(two_groups.plan.layers), len(anatomy.applied)) == (2, 5)
    (heads, neurons), (fewer, _) = anatomy.unit_macs(0, 8), anatomy.unit_macs(1, 8)
    assert heads / fewer == 3 / 2
    assert anatomy.macs(8) == 4 * (heads + fewer) + 48 * neurons * 5 // 3


def test_masked_equals_pruned_where_a_shared_layer_loses_its_attention(
    two_groups: Encoder,
) -> None:
    encoded = two_groups.preprocessor.encode(sentences(12))
    with masked(two_groups, PLAN):
        wanted = predict_all(two_groups, encoded)
    prune_(two_groups, PLAN)
    assert (predict_all(two_groups, encoded) - wanted).abs().max() < 1e-5


def test_units_are_scored_by_what_all_applications_lose(two_groups: Encoder) -> None:
    encoded = two_groups.preprocessor.encode(sentences(48))
    batches = (batch for _, batch in encoded.batches(16))
    surgeon = Surgeon.of(two_groups, batches, {})
    asked, answers = Questions.of(two_groups, encoded), predict_all(two_groups, encoded)
    found = []
    for head in range(4):
        plan = two_groups.plan
        kept = tuple(h for h in range(4) if h != head)
        layers = (LayerPlan(kept, plan.layers[0].neurons), plan.layers[1])
        without = CompressionPlan(layers, plan.source_heads, plan.source_neurons)
        with masked(two_groups, without):
            found.append(asked.divergence(answers, predict_all(two_groups, encoded)))
    # the least important head by the scores is not the most harmful one to lose
    scores = torch.tensor(surgeon.scores.heads[0])
    assert int(scores.argmin()) != int(torch.tensor(found).argmax())
    assert min(surgeon.scores.heads[0]) > 0


def test_shared_layers_are_left_as_they_were_cut(two_groups: Encoder) -> None:
    encoded = two_groups.preprocessor.encode(sentences(12))
    teacher = open_encoder(two_groups.directory)
    prune_(two_groups, PLAN)
    before = predict_all(two_groups, encoded)
    assert reconstruct_(two_groups, teacher, encoded) == []
    assert torch.equal(predict_all(two_groups, encoded), before)
