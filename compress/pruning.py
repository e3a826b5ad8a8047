"""Cutting heads and neurons out of an encoder, so that its matrices get smaller."""

from collections.abc import Sequence
from typing import Any, Protocol

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
    the first, and of the gate. Where the graph cannot see it (projections that are used twice,
    layers that are applied several times) the anatomy alone says it. A sublayer without units
    left is replaced by its output bias. A plan that removes nothing touches nothing.

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
        cutter = _Traced(encoder) if anatomy.traceable else _Declared()
        for layer, new, old in zip(anatomy.layers, plan.layers, encoder.plan.layers, strict=True):
            _prune_heads(cutter, layer, _removed(new.heads, old.heads), new.heads)
            _prune_neurons(cutter, layer, _removed(new.neurons, old.neurons))
        for name, parameter in encoder.model.named_parameters():
            parameter.requires_grad_(trainable[name])
    encoder.plan = plan


def _removed(kept: tuple[int, ...], current: tuple[int, ...]) -> list[int]:
    """Return the positions, among the current units, of those that go."""
    stay = set(kept)
    return [position for position, unit in enumerate(current) if unit not in stay]


def _prune_heads(
    cutter: "_Cutter", layer: LayerAnatomy, positions: Sequence[int], kept: tuple[int, ...]
) -> None:
    if not positions:
        return
    if len(positions) == layer.num_heads:
        layer.drop_attention_()
        return
    size = layer.head_size
    channels = [p * size + offset for p in positions for offset in range(size)]
    cutter.cut(layer.output, (*layer.projections(), *layer.companions), channels)
    layer.sync_heads_(kept)


def _prune_neurons(cutter: "_Cutter", layer: LayerAnatomy, positions: Sequence[int]) -> None:
    if not positions:
        return
    if len(positions) == layer.num_neurons:
        layer.drop_ffn_()
        return
    cutter.cut(layer.ffn_out, layer.ffn_readers(), positions)


class _Cutter(Protocol):
    """Removes units from the projections that hold them."""

    def cut(self, output: nn.Linear, givers: Sequence[nn.Linear], channels: Sequence[int]) -> None:
        """Remove input channels of a projection, and the same rows of those that give them."""


class _Declared:
    """Cuts what the anatomy says."""

    def cut(self, output: nn.Linear, givers: Sequence[nn.Linear], channels: Sequence[int]) -> None:
        """Remove channels; see `_Cutter`."""
        torch_pruning.prune_linear_in_channels(output, list(channels))
        for giver in givers:
            torch_pruning.prune_linear_out_channels(giver, list(channels))


class _Traced:
    """Cuts what is coupled in torch-pruning's graph, if that is what the anatomy says.

    Args:
        encoder: The encoder; traced once, its parameters and modes left as they were.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._graph: Any = torch_pruning.DependencyGraph()
        with evaluating(encoder.model), torch.enable_grad():
            self._graph.build_dependency(
                encoder.model, encoder.example_tensors(), forward_fn=logits_of, verbose=False
            )

    def cut(self, output: nn.Linear, givers: Sequence[nn.Linear], channels: Sequence[int]) -> None:
        """Remove channels; see `_Cutter`."""
        allowed = (*givers, output)
        coupled = self._cut(torch_pruning.prune_linear_in_channels, output, channels, allowed)
        # Fused attention couples all projections; unfused attention couples query with key only.
        for giver in givers:
            if giver not in coupled:
                coupled |= self._cut(
                    torch_pruning.prune_linear_out_channels, giver, channels, givers
                )

    def _cut(
        self,
        prune: Any,
        linear: nn.Linear,
        channels: Sequence[int],
        allowed: Sequence[nn.Module],
    ) -> set[nn.Module]:
        """Prune a group after checking that it holds only what it should, channel by channel."""
        group = self._graph.get_pruning_group(linear, prune, idxs=list(channels))
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
