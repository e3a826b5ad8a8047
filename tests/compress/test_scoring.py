import numpy as np
import pytest
import torch
from torch.nn import functional

from tcompress.compress.gating import masked
from tcompress.compress.pruning import prune_
from tcompress.compress.scoring import (
    Criterion,
    score_gate_gradient,
    score_magnitude,
    score_units,
)
from tcompress.encoder import Encoder
from tcompress.errors import CalibrationError
from tcompress.plan import CompressionPlan


def _batch(encoder: Encoder, size: int = 5, tokens: int = 9):
    batch = encoder.preprocessor.random_batch(size, tokens)
    batch["attention_mask"][1, 4:] = 0
    return batch


def test_gate_gradient_equals_the_gradient_of_the_output_weights(any_encoder: Encoder) -> None:
    """dL/dm_h of one example is the sum over head h's columns of dL/dW_o * W_o."""
    encoder, batch = any_encoder, _batch(any_encoder)
    targets = torch.tensor([0, 1, 1, 0, 1])
    scores = score_gate_gradient(encoder, [(batch, targets)])
    layers = encoder.anatomy.layers
    heads = [torch.zeros(layer.num_heads) for layer in layers]
    neurons = [torch.zeros(layer.num_neurons) for layer in layers]
    for i, target in enumerate(targets):
        example = {name: array[i : i + 1] for name, array in batch.items()}
        encoder.model.zero_grad()
        functional.cross_entropy(encoder.logits(example), target[None]).backward()
        for index, layer in enumerate(layers):
            by_column = (layer.output.weight.grad * layer.output.weight).sum(0).detach()
            heads[index] += by_column.unflatten(0, (-1, layer.head_size)).sum(1).abs() / 5
            out = layer.ffn_out.weight
            neurons[index] += (out.grad * out).sum(0).detach().abs() / 5
    for found, expected in zip((*scores.heads, *scores.neurons), (*heads, *neurons), strict=True):
        torch.testing.assert_close(found, expected / expected.norm(), rtol=1e-3, atol=1e-5)


def test_a_pruned_encoder_can_be_scored_and_masked_again(
    any_encoder: Encoder, uneven_plan: CompressionPlan
) -> None:
    prune_(any_encoder, uneven_plan)
    batch = _batch(any_encoder)
    scores = score_gate_gradient(any_encoder, [(batch, None)])
    assert [len(layer) for layer in scores.heads] == [3, 0, 1]
    assert [len(layer) for layer in scores.neurons] == [24, 35, 0]
    expected = any_encoder.predict(batch)
    with masked(any_encoder, any_encoder.plan):
        np.testing.assert_allclose(any_encoder.predict(batch), expected, atol=1e-6)


def test_scores_do_not_depend_on_the_batch_size(bert: Encoder) -> None:
    batch = _batch(bert)
    whole = score_gate_gradient(bert, [(batch, None)])
    parts = [({k: v[i : i + 1] for k, v in batch.items()}, None) for i in range(5)]
    for a, b in zip(whole.heads, score_gate_gradient(bert, parts).heads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_without_labels_the_models_own_predictions_are_used(bert: Encoder) -> None:
    batch = _batch(bert)
    predicted = torch.from_numpy(bert.predict(batch)).argmax(-1)
    own = score_gate_gradient(bert, [(batch, None)])
    given = score_gate_gradient(bert, [(batch, predicted)])
    for a, b in zip(own.heads, given.heads, strict=True):
        assert torch.equal(a, b)


def test_scoring_leaves_the_encoder_as_it_was(bert: Encoder) -> None:
    bert.model.train()
    before = {name: value.clone() for name, value in bert.model.state_dict().items()}
    score_gate_gradient(bert, [(_batch(bert), None)])
    assert bert.model.training
    assert all(p.requires_grad and p.grad is None for p in bert.model.parameters())
    assert all(torch.equal(v, before[n]) for n, v in bert.model.state_dict().items())
    assert not bert.anatomy.layers[0].output._forward_pre_hooks


def test_magnitude_is_the_norm_of_value_times_output(bert: Encoder) -> None:
    layer = bert.anatomy.layers[1]
    size = layer.head_size
    expected = torch.stack(
        [
            torch.linalg.matrix_norm(
                layer.output.weight[:, h * size : (h + 1) * size]
                @ layer.value.weight[h * size : (h + 1) * size]
            )
            for h in range(layer.num_heads)
        ]
    ).detach()
    torch.testing.assert_close(
        score_magnitude(bert).heads[1], expected / expected.norm(), rtol=1e-4, atol=1e-5
    )


def test_a_score_that_is_not_finite_is_an_error(bert: Encoder) -> None:
    with torch.no_grad():
        bert.anatomy.layers[1].value.weight[1] = float("nan")
    with pytest.raises(CalibrationError, match="score of layer 1 head 0 is not finite"):
        score_units(bert, Criterion.MAGNITUDE)


def test_calibration_without_examples_is_an_error(bert: Encoder) -> None:
    with pytest.raises(CalibrationError, match="at least one example"):
        score_units(bert, Criterion.GATE_GRADIENT, [])


def test_scores_survive_json(bert: Encoder) -> None:
    scores = score_units(bert, Criterion.GATE_GRADIENT, [(_batch(bert), None)])
    assert type(scores).from_json(scores.to_json()) == scores
    assert np.isclose(np.linalg.norm(scores.heads[0]), 1, atol=1e-5)
