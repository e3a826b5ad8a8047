"""Every criterion against a slow computation of what it claims to be."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor, nn
from torch.nn import functional

from tcompress.anatomy import LayerAnatomy
from tcompress.compress.criteria import Criterion, Settings
from tcompress.compress.gating import Gates, Units, gated, head_closed, masked
from tcompress.compress.probes import exact_probe, sampled_probe
from tcompress.compress.scores import HeadScores
from tcompress.compress.scoring import rank_units, score_units
from tcompress.encoder import Encoder, open_encoder

EXAMPLES = 5
TARGETS = torch.tensor([0, 1, 1, 0, 1])


def _batch(encoder: Encoder, tokens: int = 9) -> dict[str, np.ndarray]:
    batch = encoder.preprocessor.random_batch(EXAMPLES, tokens)
    batch["attention_mask"][1, 4:] = 0
    batch["attention_mask"][3, 1:] = 0
    return batch


def _example(batch: dict[str, np.ndarray], i: int) -> dict[str, np.ndarray]:
    return {name: array[i : i + 1] for name, array in batch.items()}


def _with_classes(encoder: Encoder, classes: int) -> Encoder:
    torch.manual_seed(0)
    encoder.model.classifier = nn.Linear(encoder.anatomy.hidden_size, classes)
    return encoder


def _vector(scores: HeadScores) -> Tensor:
    return torch.tensor([s for layer in (*scores.heads, *scores.neurons) for s in layer])


def _logits_of_gates(encoder: Encoder, example: dict[str, np.ndarray], gates: Tensor) -> Tensor:
    units = Units.of(encoder.anatomy).split(gates)
    shared = Gates(*(tuple(g[None] for g in side) for side in (units.heads, units.neurons)))
    with gated(encoder.anatomy, shared):
        return encoder.logits(example)[0]


def _jacobians(encoder: Encoder, batch: dict[str, np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each example's class probabilities and Jacobian, `(classes, units)`."""
    ones = torch.ones(sum((*encoder.anatomy.head_counts, *encoder.anatomy.neuron_counts)))
    for i in range(EXAMPLES):
        example = _example(batch, i)
        jacobian = torch.autograd.functional.jacobian(
            lambda gates, example=example: _logits_of_gates(encoder, example, gates), ones
        )
        yield encoder.logits(example)[0].detach().softmax(-1), jacobian


def _layer_norms(encoder: Encoder, scores: Tensor) -> Tensor:
    layers = Units.of(encoder.anatomy).split(scores)
    return torch.cat([part / part.norm() for part in (*layers.heads, *layers.neurons)])


@pytest.mark.parametrize("classes", [2, 4, 12])
def test_gradient_criteria_are_those_of_each_example_alone(bert: Encoder, classes: int) -> None:
    """dL/dm_h of one example is the sum over head h's columns of dL/dW_o * W_o."""
    encoder = _with_classes(bert, classes)
    batch = _batch(encoder)
    layers = encoder.anatomy.layers
    gradients = []
    for i, target in enumerate(TARGETS):
        encoder.model.zero_grad()
        functional.cross_entropy(encoder.logits(_example(batch, i)), target[None]).backward()
        by_column = [
            [(w.grad * w).sum(0).detach() for w in (layer.output.weight, layer.ffn_out.weight)]
            for layer in layers
        ]
        heads = [columns.unflatten(0, (-1, 8)).sum(1) for columns, _ in by_column]
        gradients.append(torch.cat([*heads, *(neurons for _, neurons in by_column)]))
    expected = torch.stack(gradients)
    criteria = [Criterion.GATE_GRADIENT, Criterion.FISHER, Criterion.CURVATURE]
    size, square, _ = (r.scores for r in rank_units(encoder, criteria, [(batch, TARGETS)]))
    mean_size = _layer_norms(encoder, expected.abs().mean(0))
    torch.testing.assert_close(_vector(size), mean_size, rtol=1e-3, atol=1e-5)
    mean_square = expected.square().mean(0) / 2
    torch.testing.assert_close(_vector(square), mean_square, rtol=1e-3, atol=1e-7)
    alone = score_units(encoder, Criterion.GATE_GRADIENT, [(batch, TARGETS)])
    torch.testing.assert_close(_vector(alone), _vector(size), rtol=1e-4, atol=1e-6)


def test_curvature_is_the_gauss_newton_matrix_of_every_model(any_encoder: Encoder) -> None:
    batch = _batch(any_encoder)
    found = score_units(any_encoder, Criterion.CURVATURE, [(batch, None)])
    expected = torch.stack(
        [j.T @ (p.diag() - p.outer(p)) @ j for p, j in _jacobians(any_encoder, batch)]
    ).mean(0)
    torch.testing.assert_close(_vector(found), expected.diagonal() / 2, rtol=1e-3, atol=1e-6)
    heads = sum(any_encoder.anatomy.head_counts)
    torch.testing.assert_close(
        torch.tensor(found.curvature), expected[:heads, :heads], rtol=1e-3, atol=1e-6
    )


def test_curvature_is_the_hessian_of_the_divergence(bert: Encoder) -> None:
    encoder = _with_classes(bert, 4)
    batch = _batch(encoder)
    neurons = torch.ones(sum(encoder.anatomy.neuron_counts))
    total = torch.zeros(12, 12)
    for i in range(EXAMPLES):
        example = _example(batch, i)
        teacher = encoder.logits(example)[0].detach().log_softmax(-1)

        def divergence(heads: Tensor, example=example, teacher=teacher) -> Tensor:
            logits = _logits_of_gates(encoder, example, torch.cat([heads, neurons]))
            student = logits.log_softmax(-1)
            return functional.kl_div(student, teacher, reduction="sum", log_target=True)

        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            total += torch.autograd.functional.hessian(divergence, torch.ones(12)) / EXAMPLES
    found = score_units(encoder, Criterion.CURVATURE, [(batch, None)])
    torch.testing.assert_close(torch.tensor(found.curvature), total, rtol=1e-3, atol=1e-5)


def test_curvature_predicts_the_divergence_of_small_changes(bert: Encoder) -> None:
    bert.model.double()
    batch = _batch(bert)
    matrix = torch.tensor(score_units(bert, Criterion.CURVATURE, [(batch, None)]).curvature)
    change = 0.01 * torch.randn(12, generator=torch.Generator().manual_seed(0))
    gates = Gates(
        tuple(1 - part[None] for part in change.split(4)), tuple(torch.ones(1, 48) for _ in "123")
    )
    teacher = bert.predict(batch)
    with gated(bert.anatomy, gates):
        measured = _divergence(teacher, bert.predict(batch)).mean()
    assert float(change @ matrix @ change / 2) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("classes", [2, 5])
def test_an_exact_probe_combines_to_gradient_and_curvature(classes: int) -> None:
    logits = torch.randn(EXAMPLES, classes, generator=torch.Generator().manual_seed(0))
    probe = exact_probe(logits, TARGETS)
    assert len(probe.directions) == classes - 1
    _check_probe(probe, logits, atol=1e-6)


def test_drawn_labels_estimate_the_same_curvature() -> None:
    logits = torch.randn(EXAMPLES, 12, generator=torch.Generator().manual_seed(0))
    evenly = ((torch.arange(2000) + 0.5) / 2000).expand(EXAMPLES, -1)
    _check_probe(sampled_probe(logits, TARGETS, evenly.contiguous()), logits, atol=1e-3)


def _check_probe(probe, logits: Tensor, atol: float) -> None:
    p = logits.softmax(-1)
    loss = torch.einsum("rb,rbc->bc", probe.loss, probe.directions)
    torch.testing.assert_close(loss, p - functional.one_hot(TARGETS, p.shape[1]))
    rows = torch.einsum("qrb,rbc->qbc", probe.curvature, probe.directions)
    expected = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    torch.testing.assert_close(
        torch.einsum("qbi,qbj->bij", rows, rows), expected, rtol=1e-4, atol=atol
    )


def test_activation_is_the_change_that_is_left_when_the_mean_stays(any_encoder: Encoder) -> None:
    batch = _batch(any_encoder)
    real = torch.from_numpy(batch["attention_mask"] != 0)
    scores = score_units(any_encoder, Criterion.ACTIVATION, [(batch, None)])
    layer = any_encoder.anatomy.layers[1]
    with _outputs(layer.output) as outputs:
        any_encoder.predict(batch)
        for head in range(layer.num_heads):
            with head_closed(layer, head):
                any_encoder.predict(batch)
    whole, *without = (output[real] for output in outputs)
    expected = [(whole - rest).var(0, correction=0).sum() for rest in without]
    torch.testing.assert_close(torch.tensor(scores.heads[1]), torch.stack(expected))
    with _inputs(layer.ffn_out) as inputs:
        any_encoder.predict(batch)
    neurons = (inputs[0].transpose(0, 1) if layer.ffn_batch_dim else inputs[0])[real]
    expected = neurons.var(0, correction=0) * layer.ffn_out.weight.detach().square().sum(0)
    torch.testing.assert_close(torch.tensor(scores.neurons[1]), expected, rtol=1e-3, atol=1e-6)


@contextmanager
def _outputs(module: nn.Module) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, inputs, output: found.append(output))
    yield found
    handle.remove()


@contextmanager
def _inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    yield found
    handle.remove()


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert"])
def test_attention_criteria_read_the_maps_that_eager_attention_returns(
    model_directories, kind: str
) -> None:
    encoder = open_encoder(model_directories(kind))
    batch = _batch(encoder)
    entropy, confidence = _attention_scores(encoder, batch)
    encoder.model.set_attn_implementation("eager")
    inputs = {name: torch.from_numpy(array) for name, array in batch.items()}
    with torch.no_grad():
        maps = encoder.model(**inputs, output_attentions=True).attentions
    _check_maps(maps, batch, entropy, confidence)


@pytest.mark.parametrize("kind", ["torch-post-norm", "torch-pre-norm", "torch-sequence-first"])
def test_attention_criteria_read_the_maps_of_torch_attention(model_directories, kind: str) -> None:
    encoder = open_encoder(model_directories(kind))
    batch = _batch(encoder)
    padding = torch.from_numpy(batch["attention_mask"] == 0)
    entropy, confidence = _attention_scores(encoder, batch)
    maps = []
    for layer in encoder.anatomy.layers:
        with _inputs(layer.query) as inputs:
            encoder.predict(batch)
        _, weights = _torch_attention(layer)(
            *[inputs[0].clone()] * 3, padding, need_weights=True, average_attn_weights=False
        )
        maps.append(weights.detach())
    _check_maps(maps, batch, entropy, confidence)


def _torch_attention(layer: LayerAnatomy) -> nn.MultiheadAttention:
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([p.weight for p in layer.projections()]))
        attention.in_proj_bias.copy_(torch.cat([p.bias for p in layer.projections()]))
    return attention


def _attention_scores(encoder: Encoder, batch: dict[str, np.ndarray]) -> list[HeadScores]:
    criteria = [Criterion.ENTROPY, Criterion.CONFIDENCE]
    return [ranking.scores for ranking in rank_units(encoder, criteria, [(batch, None)])]


def _check_maps(maps, batch, entropy: HeadScores, confidence: HeadScores) -> None:
    lengths = batch["attention_mask"].sum(1)
    for layer, attention in enumerate(maps):
        # one row per real token of all examples: (heads, tokens)
        focus, peak = [], []
        for rows, n in zip(attention, lengths, strict=True):
            a = rows[:, :n, :n].double()
            focus.append(
                1 - (torch.special.entr(a).sum(-1) / np.log(n) if n > 1 else a[..., 0] * 0)
            )
            peak.append(a.amax(-1))
        expected = torch.cat(focus, 1).mean(1).tolist()
        assert entropy.heads[layer] == pytest.approx(expected, abs=1e-5)
        assert confidence.heads[layer] == pytest.approx(torch.cat(peak, 1).mean(1).tolist())


def test_leave_one_out_is_the_divergence_of_the_masked_model(any_encoder: Encoder) -> None:
    batch = _batch(any_encoder)
    scores = score_units(any_encoder, Criterion.LEAVE_ONE_OUT, [(batch, None)])
    teacher = any_encoder.predict(batch)
    plan = any_encoder.plan
    for index, layer in enumerate(plan.layers):
        for head in layer.heads:
            kept = replace(layer, heads=tuple(h for h in layer.heads if h != head))
            layers = (*plan.layers[:index], kept, *plan.layers[index + 1 :])
            with masked(any_encoder, replace(plan, layers=layers)):
                divergence = _divergence(teacher, any_encoder.predict(batch)).mean()
            assert scores.heads[index][head] == pytest.approx(divergence, rel=1e-3, abs=1e-6)


def _divergence(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    p, q = (log_softmax(logits.astype(np.float64), axis=-1) for logits in (teacher, student))
    return (np.exp(p) * (p - q)).sum(-1)


def test_hies_mixes_gradient_and_focus(bert: Encoder) -> None:
    batch = [(_batch(bert), TARGETS)]
    gradient, focus = (
        torch.tensor(score_units(bert, criterion, batch).heads).flatten()
        for criterion in (Criterion.GATE_GRADIENT, Criterion.ENTROPY)
    )
    gradient, focus = ((x - x.min()) / (x.max() - x.min()) for x in (gradient, focus))
    for alpha in (0.0, 0.3, 1.0):
        found = score_units(bert, Criterion.HIES, batch, settings=Settings(alpha=alpha))
        expected = alpha * gradient + (1 - alpha) * focus
        torch.testing.assert_close(torch.tensor(found.heads).flatten(), expected)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha must be from 0 to 1 .* alpha=1.5"):
        Settings(alpha=1.5)


def test_magnitude_is_the_norm_of_value_times_output(bert: Encoder) -> None:
    layer = bert.anatomy.layers[1]
    blocks = (layer.output.weight.split(8, dim=1), layer.value.weight.split(8))
    norms = [torch.linalg.matrix_norm(o @ v) for o, v in zip(*blocks, strict=True)]
    expected = torch.stack(norms).detach()
    found = torch.tensor(score_units(bert, Criterion.MAGNITUDE).heads[1])
    torch.testing.assert_close(found, expected / expected.norm(), rtol=1e-4, atol=1e-5)


def test_random_scores_follow_the_seed(bert: Encoder) -> None:
    first, again, other = (
        score_units(bert, Criterion.RANDOM, settings=Settings(seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first.heads != other.heads
    assert len({score for layer in (*first.heads, *first.neurons) for score in layer}) == 156
