"""What one pass measures, against Jacobians taken example by example and measured divergences."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tcompress.compress.elimination import loss_of
from tcompress.compress.judging import mean_divergence, predict_all
from tcompress.compress.pruning import prune_
from tcompress.compress.sensitivity import (
    Sensitivity,
    divergence_directions,
    measure_sensitivity,
)
from tcompress.compress.surgeon import Surgeon
from tcompress.encoder import Encoder
from tcompress.errors import CalibrationError
from tcompress.plan import CompressionPlan


def batch_of(encoder: Encoder) -> dict[str, np.ndarray]:
    batch = encoder.preprocessor.random_batch(3, 6)
    batch["attention_mask"][1, 4:] = 0
    return batch


def with_classes(encoder: Encoder, classes: int) -> Encoder:
    torch.manual_seed(0)
    linears = [module for module in encoder.model.modules() if isinstance(module, nn.Linear)]
    head = next(linear for linear in linears[::-1] if linear.out_features == 2)
    head.weight = nn.Parameter(torch.randn(classes, head.in_features) / 3)
    head.bias = None if head.bias is None else nn.Parameter(torch.randn(classes) / 3)
    return replace(encoder, labels=tuple(map(str, range(classes))))


@contextmanager
def changed(linear: nn.Linear, change: Tensor) -> Iterator[None]:
    """Add to what a projection gives, `(tokens, hidden)`, for one example."""
    handle = linear.register_forward_hook(lambda _m, _i, y: y + change.view(y.shape))
    try:
        yield
    finally:
        handle.remove()


def test_one_class_is_refused_and_gradients_are_left_as_they_were(bert: Encoder) -> None:
    encoder = with_classes(bert, 1)
    bias = encoder.anatomy.layers[0].output.bias.requires_grad_(False)
    with pytest.raises(CalibrationError, match=r"one class.*; use --criterion activation"):
        measure_sensitivity(encoder, [batch_of(encoder)])
    assert [p for p in encoder.model.parameters() if not p.requires_grad] == [bias]


def explicit_metric(encoder: Encoder, linear: nn.Linear, batch: dict[str, np.ndarray]) -> Tensor:
    """1/2 E[sum_t J_t^T (diag p - p p^T) J_t], J_t = d logits / d the projection's output."""
    total = torch.zeros(linear.out_features, linear.out_features, dtype=torch.float64)
    for i in range(3):
        example = {name: array[i : i + 1] for name, array in batch.items()}

        def logits(change: Tensor, example: dict[str, np.ndarray] = example) -> Tensor:
            with changed(linear, change):
                return encoder.logits(example)[0]

        nothing = torch.zeros(example["attention_mask"].shape[1], linear.out_features)
        jacobian = torch.autograd.functional.jacobian(logits, nothing).double()
        p = encoder.logits(example)[0].detach().double().softmax(-1)
        total += torch.einsum("cth,cd,dtg->hg", jacobian, p.diag() - p.outer(p), jacobian)
    return total / 6


@pytest.mark.parametrize("classes", [2, 4])
def test_the_metric_is_made_of_every_examples_jacobian(any_encoder: Encoder, classes: int) -> None:
    encoder = with_classes(any_encoder, classes)
    batch = batch_of(encoder)
    found = measure_sensitivity(encoder, [batch])
    for layer, pair in zip(encoder.anatomy.layers, found.sublayers, strict=True):
        for linear, sublayer in zip((layer.output, layer.ffn_out), pair, strict=True):
            expected = explicit_metric(encoder, linear, batch)
            scale = float(expected.diagonal().mean())
            torch.testing.assert_close(sublayer.metric, expected, rtol=1e-3, atol=1e-3 * scale)
    p = torch.tensor(encoder.predict(batch)).double().softmax(-1)
    assert found.doubt == pytest.approx(float((1 - p.square().sum(-1)).mean()), rel=1e-5)


def test_only_tokens_that_somebody_reads_count(bert: Encoder) -> None:
    """A classifier on [CLS] reads one token of the last FFN; its neighbours' keys read them all."""
    sublayers = measure_sensitivity(bert, [batch_of(bert)]).sublayers
    assert sublayers[-1][1].features.weight == pytest.approx(2 * 3)
    assert sublayers[-2][1].features.weight == pytest.approx(2 * 16)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_few_classes_have_exact_directions(classes: int) -> None:
    logits = 3 * torch.randn(6, classes, generator=torch.Generator().manual_seed(0))
    directions = divergence_directions(logits, torch.Generator()).double()
    assert directions.shape == (classes - 1, 6, classes)
    p = logits.double().softmax(-1)
    expected = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    found = torch.einsum("kec,ked->ecd", directions, directions)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_an_answer_that_is_certain_has_directions_without_nan() -> None:
    directions = divergence_directions(torch.tensor([[80.0, -80.0, -90.0]]), torch.Generator())
    assert directions.abs().max() < 1e-5


def test_many_classes_have_directions_that_are_right_in_expectation() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 12, generator=generator).expand(100_000, 12)
    (drawn,) = divergence_directions(logits, generator).double()
    p = logits[0].double().softmax(-1)
    expected = p.diag() - p.outer(p)
    torch.testing.assert_close(drawn.T @ drawn / len(drawn), expected, rtol=0, atol=2e-3)


def without_unit(encoder: Encoder, linear: nn.Linear, sublayer: Sensitivity, gone: int) -> float:
    """Take a unit out of a projection, solve for its other rows by least squares, and undo it.

    Returns what the loss was predicted to be.
    """
    problem = sublayer.regression(ridge=1e-6)
    kept = tuple(unit for unit in range(problem.units) if unit != gone)
    rows = [unit * problem.width + i for unit in kept for i in range(problem.width)]
    old = sublayer.weights.double()
    new = torch.zeros_like(old)
    covariance = problem.covariance
    new[rows] = torch.linalg.solve(covariance[rows][:, rows], (covariance @ old)[rows])
    with torch.no_grad():
        linear.weight.copy_(new.T)
        linear.bias.add_(sublayer.features.means[0] @ (old - new))
    return loss_of(problem, kept)


def test_predicted_divergences_are_near_the_measured_ones(bert: Encoder, encode) -> None:
    """Each unit is removed alone and made up for; tokens do not err independently, hence 2.5."""
    encoded = encode(bert, 100)
    survey = measure_sensitivity(bert, (batch for _, batch in encoded.batches(32)))
    answers = predict_all(bert, encoded)
    for index in range(3):
        for kind in range(2):
            sublayer = survey.sublayers[index][kind]
            predicted, measured = 0.0, 0.0
            for unit in range(0, sublayer.regression().units, 3 * kind + 1):
                cut = replace(bert, model=copy.deepcopy(bert.model))
                layer = cut.anatomy.layers[index]
                linear = (layer.output, layer.ffn_out)[kind]
                predicted += without_unit(cut, linear, sublayer, unit)
                measured += mean_divergence(answers, predict_all(cut, encoded))
            # of the last layer one token is read: nothing is assumed about its neighbours
            factor = 1.5 if index == 2 else 2.5
            assert 1e-5 < measured < 0.1
            assert measured / factor < predicted < measured * factor


def test_elimination_works_on_an_encoder_that_has_lost_sublayers_already(
    any_encoder: Encoder, uneven_plan: CompressionPlan
) -> None:
    prune_(any_encoder, uneven_plan)
    surgeon = Surgeon.of(any_encoder, [batch_of(any_encoder)], {})
    assert [len(layer) for layer in surgeon.scores.heads] == [3, 0, 1]
    assert [len(layer) for layer in surgeon.scores.neurons] == [24, 35, 0]
    assert surgeon.refined(uneven_plan) == uneven_plan


def test_what_cannot_be_measured_is_refused(bert: Encoder) -> None:
    with pytest.raises(CalibrationError, match="at least one example"):
        measure_sensitivity(bert, [])
    with torch.no_grad():
        bert.anatomy.layers[1].ffn_in.weight[0, 0] = float("nan")
    with pytest.raises(CalibrationError, match="logits are not finite"):
        measure_sensitivity(bert, [batch_of(bert)])


def test_answers_that_do_not_depend_on_the_encoder_are_refused(bert: Encoder) -> None:
    with torch.no_grad():
        bert.model.classifier.weight.zero_()
    with pytest.raises(CalibrationError, match=r"obs score of layer 0 head \d is not finite"):
        Surgeon.of(bert, [batch_of(bert)], {})


def test_the_encoder_is_left_as_it_was(any_encoder: Encoder) -> None:
    any_encoder.anatomy.layers[0].ffn_in.weight.requires_grad_(False)
    before = {n: (p.clone(), p.requires_grad) for n, p in any_encoder.model.named_parameters()}
    measure_sensitivity(any_encoder, [batch_of(any_encoder)])
    for name, parameter in any_encoder.model.named_parameters():
        value, trainable = before[name]
        assert torch.equal(parameter, value)
        assert parameter.requires_grad is trainable
        assert parameter.grad is None
