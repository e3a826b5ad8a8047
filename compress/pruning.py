"""Cutting heads and neurons out of an encoder, so that its matrices get smaller."""

from collections.abc import Sequence
from typing import Any

import torch
import torch_pruning
from torch import nn

from tcompress.anatomy import LayerAnatomy
from tcompress.encoder import Encoder, evaluating, logits_of
from tcompress.errors import ModelError
from tcompress.plan import CompressionPlan


def prune_(encoder: Encoder, plan: CompressionPlan) -> None:
    """Cut an encoder down to a plan, in place.

    What depends on what is read off torch-pruning's dependency graph, and held against the
    anatomy: a head is a block of columns of the output projection together with the same rows of
    query, key and value; a neuron is a column of the FFN's second matrix with the same row of
    the first. A sublayer without units left is replaced by its output bias. A plan that removes
    nothing touches nothing.

    Args:
        encoder: The encoder.
        plan: What to keep; no more than the encoder has. Its precisions are taken over.

    Raises:
        RequestError: If the plan is not for this encoder.
        ModelError: If the graph couples parameters in a way that the anatomy does not know.
    """
    plan.check_within(encoder.plan)
    anatomy = encoder.anatomy
    counts = (encoder.plan.head_counts, encoder.plan.neuron_counts)
    if (plan.head_counts, plan.neuron_counts) != counts:
        trainable = {n: p.requires_grad for n, p in encoder.model.named_parameters()}
        graph = _dependency_graph(encoder)
        for layer, new, old in zip(anatomy.layers, plan.layers, encoder.plan.layers, strict=True):
            _prune_heads(graph, layer, _removed(new.heads, old.heads))
            _prune_neurons(graph, layer, _removed(new.neurons, old.neurons))
        for name, parameter in encoder.model.named_parameters():
            parameter.requires_grad_(trainable[name])
    encoder.plan = plan


def _removed(kept: tuple[int, ...], current: tuple[int, ...]) -> list[int]:
    """Return the positions, among the current units, of those that go."""
    stay = set(kept)
    return [position for position, unit in enumerate(current) if unit not in stay]


def _prune_heads(graph: Any, layer: LayerAnatomy, positions: Sequence[int]) -> None:
    if not positions:
        return
    if len(positions) == layer.num_heads:
        layer.drop_attention_()
        return
    size = layer.head_size
    channels = [p * size + offset for p in positions for offset in range(size)]
    projections = layer.projections()
    coupled = _cut(graph, layer.output, channels, allowed=(*projections, layer.output))
    # Fused attention couples all four; unfused attention couples query with key only.
    if layer.query is not None and layer.query not in coupled:
        coupled |= _cut_rows(graph, layer.query, channels, allowed=projections)
    if missing := set(projections) - coupled:
        msg = f"layer {layer.index}: {len(missing)} attention projections are not coupled"
        raise ModelError(msg)
    layer.sync_head_count_()


def _prune_neurons(graph: Any, layer: LayerAnatomy, positions: Sequence[int]) -> None:
    if not positions:
        return
    if len(positions) == layer.num_neurons:
        layer.drop_ffn_()
        return
    coupled = _cut(graph, layer.ffn_out, positions, allowed=(layer.ffn_in, layer.ffn_out))
    if layer.ffn_in not in coupled:
        msg = f"layer {layer.index}: the two FFN projections are not coupled"
        raise ModelError(msg)


def _cut(
    graph: Any, linear: nn.Linear, channels: Sequence[int], allowed: Sequence[nn.Module]
) -> set[nn.Module]:
    """Remove input channels of a layer and whatever is coupled with them."""
    prune = torch_pruning.prune_linear_in_channels
    return _apply(graph.get_pruning_group(linear, prune, idxs=list(channels)), channels, allowed)


def _cut_rows(
    graph: Any, linear: nn.Linear, channels: Sequence[int], allowed: Sequence[nn.Module]
) -> set[nn.Module]:
    """Remove output channels of a layer and whatever is coupled with them."""
    prune = torch_pruning.prune_linear_out_channels
    return _apply(graph.get_pruning_group(linear, prune, idxs=list(channels)), channels, allowed)


def _apply(group: Any, channels: Sequence[int], allowed: Sequence[nn.Module]) -> set[nn.Module]:
    """Prune a group after checking that it holds only what it should, channel by channel."""
    coupled = set()
    for item in group:
        node = item.dep.target
        module = node.module
        if not list(module.parameters()):
            continue  # a view, a transpose, an activation
        if module not in allowed or sorted(item.idxs) != sorted(channels):
            msg = f"the dependency graph couples {node.name} in an unexpected way"
            raise ModelError(msg)
        coupled.add(module)
    group.prune(record_history=False)
    return coupled


def _dependency_graph(encoder: Encoder) -> Any:
    """Trace the encoder once; leaves parameters and modes as they were."""
    graph = torch_pruning.DependencyGraph()
    with evaluating(encoder.model), torch.enable_grad():
        graph.build_dependency(
            encoder.model, encoder.example_tensors(), forward_fn=logits_of, verbose=False
        )
    return graph
