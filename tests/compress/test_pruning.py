import numpy as np
import pytest
import torch

from tcompress.compress.gating import masked
from tcompress.compress.pruning import prune_
from tcompress.encoder import Encoder
from tcompress.errors import RequestError
from tcompress.export.parity import parity_batches
from tcompress.loading import open_encoder
from tcompress.plan import CompressionPlan


def test_pruned_model_equals_masked_model(
    any_encoder: Encoder, uneven_plan: CompressionPlan
) -> None:
    batches = list(parity_batches(any_encoder))
    with masked(any_encoder, uneven_plan):
        expected = [any_encoder.predict(batch) for batch in batches]
    untouched = [any_encoder.predict(batch) for batch in batches]
    prune_(any_encoder, uneven_plan)
    assert any_encoder.anatomy.head_counts == (3, 0, 1)
    assert any_encoder.anatomy.neuron_counts == (24, 35, 0)
    for batch, wanted, before in zip(batches, expected, untouched, strict=True):
        np.testing.assert_allclose(any_encoder.predict(batch), wanted, atol=1e-5)
        assert np.abs(before - wanted).max() > 1e-3, "the mask must change something"


def test_pruned_weights_are_smaller_and_reload_in_one_call(
    any_encoder: Encoder, uneven_plan: CompressionPlan, tmp_path
) -> None:
    parameters = any_encoder.parameters
    prune_(any_encoder, uneven_plan)
    any_encoder.save(tmp_path)
    loaded = open_encoder(tmp_path, uneven_plan)
    assert loaded.parameters == any_encoder.parameters < parameters
    for batch in parity_batches(any_encoder):
        np.testing.assert_array_equal(loaded.predict(batch), any_encoder.predict(batch))


def test_pruning_in_two_steps_equals_pruning_at_once(
    any_encoder: Encoder, uneven_plan: CompressionPlan, model_directories
) -> None:
    at_once = open_encoder(any_encoder.directory)
    prune_(at_once, uneven_plan)
    halfway = CompressionPlan(
        tuple(
            type(layer)(tuple(sorted({*layer.heads, 1, 3})), tuple(range(48)))
            for layer in uneven_plan.layers
        ),
        uneven_plan.source_heads,
        uneven_plan.source_neurons,
    )
    prune_(any_encoder, halfway)
    prune_(any_encoder, uneven_plan)
    for name, value in at_once.model.state_dict().items():
        torch.testing.assert_close(any_encoder.model.state_dict()[name], value, rtol=0, atol=0)


def test_a_plan_that_removes_nothing_changes_no_bit(any_encoder: Encoder) -> None:
    before = dict(any_encoder.model.named_parameters())
    copies = {name: value.clone() for name, value in before.items()}
    prune_(any_encoder, any_encoder.plan)
    after = dict(any_encoder.model.named_parameters())
    assert list(after) == list(before)
    for name, value in after.items():
        assert value is before[name]
        assert torch.equal(value, copies[name])


def test_pruning_leaves_training_mode_and_gradients_as_they_were(
    bert: Encoder, uneven_plan: CompressionPlan
) -> None:
    bert.model.train()
    frozen = bert.anatomy.layers[0].ffn_in.bias
    frozen.requires_grad_(False)
    prune_(bert, uneven_plan)
    assert bert.model.training
    assert not bert.anatomy.layers[0].ffn_in.bias.requires_grad
    assert bert.anatomy.layers[0].ffn_out.weight.requires_grad


def test_a_plan_cannot_bring_back_what_is_gone(bert: Encoder, uneven_plan: CompressionPlan) -> None:
    dense = bert.plan
    prune_(bert, uneven_plan)
    with pytest.raises(RequestError, match="keeps heads of layer 0 that are already removed"):
        prune_(bert, dense)


def test_a_plan_for_another_encoder_is_refused(bert: Encoder) -> None:
    with pytest.raises(RequestError, match=r"made for another encoder.*\[6, 6, 6\]"):
        prune_(bert, CompressionPlan.dense((6, 6, 6), (48, 48, 48)))
