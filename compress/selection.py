"""From scores and ratios to a plan."""

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

from tcompress.errors import RequestError
from tcompress.plan import CompressionPlan

from .scoring import HeadScores

Layers = Sequence[Sequence[float]]


class Scope(StrEnum):
    """Among which units the least important are sought."""

    GLOBAL = "global"
    LAYER = "layer"


def select_units(
    scores: HeadScores,
    plan: CompressionPlan,
    *,
    heads: float = 0.0,
    neurons: float = 0.0,
    scope: Scope = Scope.GLOBAL,
    drop_sublayers: bool = False,
) -> CompressionPlan:
    """Choose the units to remove: the least important ones, as many as asked for.

    Args:
        scores: Scores of the units that `plan` keeps.
        plan: What the encoder has now.
        heads: Fraction of its heads to remove, 0 to 1.
        neurons: Fraction of its FFN neurons to remove, 0 to 1.
        scope: Over the whole encoder, or the same fraction of every layer.
        drop_sublayers: Whether a sublayer may lose all its units; otherwise the best one stays.

    Returns:
        The plan for what is left.

    Raises:
        RequestError: If a ratio is out of range or asks for more than may go.
    """
    floor = 0 if drop_sublayers else 1
    kept_heads = _keep("heads", scores.heads, heads, scope, floor)
    kept_neurons = _keep("neurons", scores.neurons, neurons, scope, floor)
    layers = tuple(
        replace(
            layer,
            heads=tuple(layer.heads[i] for i in kept_h),
            neurons=tuple(layer.neurons[i] for i in kept_n),
        )
        for layer, kept_h, kept_n in zip(plan.layers, kept_heads, kept_neurons, strict=True)
    )
    return replace(plan, layers=layers)


def _keep(what: str, scores: Layers, ratio: float, scope: Scope, floor: int) -> list[list[int]]:
    """Return the positions to keep, per layer, ascending."""
    if not 0 <= ratio <= 1:
        msg = f"--{what} is the fraction to remove, from 0 to 1, got {ratio}"
        raise RequestError(msg)
    kept: list[set[int]] = [set() for _ in scores]
    if scope is Scope.LAYER:
        for index, layer in enumerate(scores):
            kept[index] = _best(what, [layer], ratio, floor)[0]
    else:
        kept = _best(what, scores, ratio, floor)
    return [sorted(positions) for positions in kept]


def _best(what: str, scores: Layers, ratio: float, floor: int) -> list[set[int]]:
    total = sum(len(layer) for layer in scores)
    remove = round(ratio * total)
    # per layer, the most important `floor` units stay in any case
    order = [_descending(layer) for layer in scores]
    free = [(scores[n][i], n, i) for n, layer in enumerate(order) for i in layer[floor:]]
    if remove > len(free):
        msg = (
            f"--{what} {ratio:g} would remove {remove} of {total} and leave a sublayer without "
            f"any; at most {len(free) / total:.3g} can go, or allow whole sublayers to go with "
            "--drop-sublayers"
        )
        raise RequestError(msg)
    gone = {(n, i) for _, n, i in sorted(free)[:remove]}
    return [{i for i in range(len(layer)) if (n, i) not in gone} for n, layer in enumerate(scores)]


def _descending(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))
