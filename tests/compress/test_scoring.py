import numpy as np
import pytest
import torch

from tcompress.compress.criteria import Criterion, neuron_criteria
from tcompress.compress.gating import masked
from tcompress.compress.pruning import prune_
from tcompress.compress.scores import HeadScores
from tcompress.compress.scoring import rank_agreement, rank_units, score_units
from tcompress.encoder import Encoder
from tcompress.errors import ArtifactError, CalibrationError
from tcompress.plan import CompressionPlan

ALL = [criterion for criterion in Criterion if criterion is not Criterion.OBS]


def _batch(encoder: Encoder, size: int = 6, tokens: int = 9) -> dict[str, np.ndarray]:
    batch = encoder.preprocessor.random_batch(size, tokens)
    batch["attention_mask"][1, 4:] = 0
    batch["attention_mask"][-2, 1:] = 0
    return batch


def _assert_close(found: HeadScores, expected: HeadScores, rel: float = 1e-3) -> None:
    layers = zip((*found.heads, *found.neurons), (*expected.heads, *expected.neurons), strict=True)
    for a, b in layers:
        assert a == pytest.approx(b, rel=rel, abs=1e-6), found.criterion


def test_all_criteria_in_one_pass_equal_those_of_separate_passes(bert: Encoder) -> None:
    batches = [(_batch(bert), None)]
    for ranking in rank_units(bert, ALL, batches):
        _assert_close(ranking.scores, score_units(bert, ranking.scores.criterion, batches))


def test_scores_depend_neither_on_the_batch_size_nor_on_padding(bert: Encoder) -> None:
    batch = _batch(bert)
    lengths = batch["attention_mask"].sum(1)
    parts = [
        ({k: v[i : i + 1, :length] for k, v in batch.items()}, None)
        for i, length in enumerate(lengths)
    ]
    pairs = zip(rank_units(bert, ALL, [(batch, None)]), rank_units(bert, ALL, parts), strict=True)
    for whole, single in pairs:
        _assert_close(whole.scores, single.scores)
        assert whole.stability == pytest.approx(single.stability)


def test_a_pruned_encoder_can_be_scored_and_masked_again(
    any_encoder: Encoder, uneven_plan: CompressionPlan
) -> None:
    prune_(any_encoder, uneven_plan)
    batch = _batch(any_encoder)
    for ranking in rank_units(any_encoder, ALL, [(batch, None)]):
        scores = ranking.scores
        assert [len(layer) for layer in scores.heads] == [3, 0, 1]
        scored = scores.criterion.value in neuron_criteria()
        assert [len(layer) for layer in scores.neurons] == ([24, 35, 0] if scored else [])
    expected = any_encoder.predict(batch)
    with masked(any_encoder, any_encoder.plan):
        np.testing.assert_allclose(any_encoder.predict(batch), expected, atol=1e-6)


def test_without_labels_the_models_own_predictions_are_used(bert: Encoder) -> None:
    batch = _batch(bert)
    predicted = torch.from_numpy(bert.predict(batch)).argmax(-1)
    for criterion in (Criterion.GATE_GRADIENT, Criterion.FISHER):
        own = score_units(bert, criterion, [(batch, None)])
        given = score_units(bert, criterion, [(batch, predicted)])
        opposite = score_units(bert, criterion, [(batch, 1 - predicted)])
        assert own.heads == given.heads != opposite.heads


def test_curvature_does_not_depend_on_labels(bert: Encoder) -> None:
    batch = _batch(bert)
    labels = torch.zeros(6, dtype=torch.int64)
    first, second = (
        score_units(bert, Criterion.CURVATURE, [(batch, targets)])
        for targets in (labels, 1 - labels)
    )
    assert first == second


def test_scoring_leaves_the_encoder_as_it_was(bert: Encoder) -> None:
    bert.model.train()
    before = {name: value.clone() for name, value in bert.model.state_dict().items()}
    rank_units(bert, ALL, [(_batch(bert), None)])
    assert bert.model.training
    assert all(p.requires_grad and p.grad is None for p in bert.model.parameters())
    assert all(torch.equal(v, before[n]) for n, v in bert.model.state_dict().items())
    for module in bert.model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


def test_agreement_and_stability_are_rank_correlations(bert: Encoder) -> None:
    """Stability: the same example four times ranks alike; four different ones do not."""
    batch = _batch(bert, size=4)
    same = {name: array[:1].repeat(4, 0) for name, array in batch.items()}
    criteria = [Criterion.CURVATURE, Criterion.FISHER, Criterion.RANDOM]
    curvature, fisher, chance = rank_units(bert, criteria, [(same, None)])
    assert curvature.stability == fisher.stability == pytest.approx(1)
    assert chance.stability is None
    assert curvature.agreement == pytest.approx(1)
    different = rank_units(bert, criteria, [(batch, None)])[0]
    assert different.stability < 0.99
    few = rank_units(bert, criteria, [({k: v[:3] for k, v in batch.items()}, None)])[0]
    assert few.stability is None


def test_rank_agreement_knows_ties_and_what_ranks_nothing() -> None:
    assert rank_agreement([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1)
    assert rank_agreement([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert rank_agreement([1, 2, 3, 4], [1, 1, 2, 2]) == pytest.approx(0.894427, abs=1e-6)
    assert rank_agreement([1, 2], [5, 5]) is None
    assert rank_agreement([1], [2]) is None


def test_a_score_that_is_not_finite_names_layer_and_unit(bert: Encoder) -> None:
    with torch.no_grad():
        bert.anatomy.layers[1].value.weight[8] = float("nan")
    with pytest.raises(CalibrationError, match="score of layer 1 head 1 is not finite"):
        score_units(bert, Criterion.MAGNITUDE)
    with torch.no_grad():
        bert.anatomy.layers[1].value.weight[8] = 0
        bert.anatomy.layers[2].ffn_out.weight[0, 7] = float("inf")
    with pytest.raises(CalibrationError, match="score of layer 2 neuron 7 is not finite"):
        score_units(bert, Criterion.MAGNITUDE)


@pytest.mark.parametrize("criterion", [c for c in ALL if c.needs_data])
def test_logits_that_are_not_finite_are_an_error(bert: Encoder, criterion: Criterion) -> None:
    with torch.no_grad():
        bert.model.classifier.bias[0] = float("nan")
    with pytest.raises(CalibrationError, match="logits are not finite for 6 of 6"):
        score_units(bert, criterion, [(_batch(bert), None)])


@pytest.mark.parametrize("criterion", [c for c in ALL if c.needs_data])
def test_calibration_without_examples_is_an_error(bert: Encoder, criterion: Criterion) -> None:
    with pytest.raises(CalibrationError, match="at least one example"):
        score_units(bert, criterion, [])


def test_an_encoder_with_one_class_is_scored_only_by_what_needs_no_answers(bert: Encoder) -> None:
    bert.model.classifier = torch.nn.Linear(32, 1)
    assert score_units(bert, Criterion.ACTIVATION, [(_batch(bert), None)]).heads
    with pytest.raises(CalibrationError, match="has one class"):
        score_units(bert, Criterion.CURVATURE, [(_batch(bert), None)])


def test_scores_survive_json(bert: Encoder) -> None:
    for ranking in rank_units(bert, ALL, [(_batch(bert), None)], {"digest": "0"}):
        scores = ranking.scores
        assert HeadScores.from_json(scores.to_json()) == scores
        assert (scores.curvature is not None) == (scores.criterion is Criterion.CURVATURE)


@pytest.mark.parametrize("curvature", [None, [[1.0]], [[1.0, 2.0], [3.0]], [[1, 2], [3, "nan"]]])
def test_scores_by_curvature_without_a_square_matrix_are_refused(curvature) -> None:
    document = HeadScores(Criterion.CURVATURE, ((1.0, 2.0),), ((1.0,),), {}).to_json()
    with pytest.raises(ArtifactError, match="not a document of head scores"):
        HeadScores.from_json(document | {"curvature": curvature})
