"""Checkpoints whose heads transformers 4 has cut off, as their configuration says."""

from pathlib import Path
from typing import Any

from .anatomy import Anatomy
from .errors import ModelError
from .plan import CompressionPlan, LayerPlan

_FIELD = "pruned_heads"


def take_pruned_heads_(config: Any) -> Any:
    """Empty a configuration's `pruned_heads`, in place: transformers 4 cuts, 5 ignores them.

    Args:
        config: A Hugging Face configuration.

    Returns:
        What stood there; an empty dict where there is none.
    """
    pruned = getattr(config, _FIELD, None) or {}
    config.pruned_heads = {}
    return pruned


def plan_without(path: Path, pruned: Any, anatomy: Anatomy) -> CompressionPlan:
    """Return the plan that a checkpoint's weights were cut by.

    Args:
        path: The configuration's file.
        pruned: `{layer: [head, ...]}` of the heads that are gone; layers may be strings.
        anatomy: The pieces of the whole model.

    Raises:
        ModelError: If a layer or head is named that the model does not have, or no head of a
            layer is left.
    """
    removed = _by_layer(path, pruned)
    dense = CompressionPlan.dense(anatomy.head_counts, anatomy.neuron_counts)
    if unknown := sorted(set(removed) - set(range(len(dense.layers)))):
        msg = f"{path}: {_FIELD} names layer {unknown[0]}, the model has {len(dense.layers)}"
        raise ModelError(msg)
    layers = tuple(
        _without(path, index, layer, removed.get(index, frozenset()))
        for index, layer in enumerate(dense.layers)
    )
    return CompressionPlan(layers, dense.source_heads, dense.source_neurons)


def _by_layer(path: Path, pruned: Any) -> dict[int, frozenset[int]]:
    try:
        return {int(layer): frozenset(map(int, heads)) for layer, heads in pruned.items()}
    except (AttributeError, TypeError, ValueError) as error:
        msg = f"{path}: {_FIELD} must be {{layer: [head, ...]}}, got {pruned!r}"
        raise ModelError(msg) from error


def _without(path: Path, index: int, layer: LayerPlan, removed: frozenset[int]) -> LayerPlan:
    if not removed < set(layer.heads):
        msg = (
            f"{path}: {_FIELD} removes heads {sorted(removed)} of layer {index}; "
            f"it can remove some of 0 to {len(layer.heads) - 1}, not all"
        )
        raise ModelError(msg)
    return LayerPlan(tuple(h for h in layer.heads if h not in removed), layer.neurons)
