"""From scores and ratios to a plan."""

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from tcompress.errors import RequestError
from tcompress.plan import CompressionPlan

from .criteria import neuron_criteria
from .scores import HeadScores

Layers = Sequence[Sequence[float]]
Matrix = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]
_MOST_STARTS = 64


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

    Heads scored by `curvature` are chosen by what their removal costs together.

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
        RequestError: If a ratio is out of range or asks for more than may go, or neurons are to
            go by scores of heads only.
    """
    floor = 0 if drop_sublayers else 1
    if neurons and not scores.neurons:
        msg = (
            f"--criterion {scores.criterion.value} scores heads only; --neurons needs one of "
            f"{', '.join(neuron_criteria())}"
        )
        raise RequestError(msg)
    kept_heads = (
        _keep("heads", scores.heads, heads, scope, floor)
        if scores.curvature is None
        else _keep_jointly(scores.heads, scores.curvature, heads, scope, floor)
    )
    kept_neurons = (
        _keep("neurons", scores.neurons, neurons, scope, floor)
        if scores.neurons
        else [list(range(len(layer.neurons))) for layer in plan.layers]
    )
    layers = tuple(
        replace(
            layer,
            heads=tuple(layer.heads[i] for i in kept_h),
            neurons=tuple(layer.neurons[i] for i in kept_n),
        )
        for layer, kept_h, kept_n in zip(plan.layers, kept_heads, kept_neurons, strict=True)
    )
    return replace(plan, layers=layers)


def remove_jointly(
    curvature: Matrix, groups: Sequence[int], quotas: Sequence[int], start: Sequence[int]
) -> list[int]:
    """Choose units whose joint removal costs little: 1/2 sum of F over them.

    Starts are the given choice and, for every cheap unit, greedy elimination with that unit
    first (then always the one that adds the least, 1/2 F_ii + sum_j F_ij over those already
    gone). Each is improved by swapping one unit that goes with one that stays until no swap
    helps; the best end is returned. It costs no more than any start.

    Args:
        curvature: F, `(units, units)`, positive semidefinite.
        groups: Group of each unit.
        quotas: How many units may go per group.
        start: A choice within the quotas; its length says how many go.

    Returns:
        Positions of the units to remove, ascending.
    """
    group = np.asarray(groups, dtype=np.int64)
    room = np.asarray(quotas, dtype=np.int64)
    given = np.isin(np.arange(len(group)), start)
    starts = [given]
    if given.any():
        cheapest = np.argsort(curvature.diagonal(), kind="stable")
        firsts = cheapest[room[group[cheapest]] > 0][:_MOST_STARTS]
        starts += [_greedy(curvature, group, room, int(i), len(start)) for i in firsts]
    ends = [_swapped(curvature, group, room, gone) for gone in starts]
    best = min(ends, key=lambda gone: float(curvature[np.ix_(gone, gone)].sum()))
    return [int(i) for i in np.flatnonzero(best)]


def _greedy(curvature: Matrix, group: Integers, quotas: Integers, first: int, count: int) -> Flags:
    """Remove units one by one, each the one that adds the least, the first one given."""
    gone = np.zeros(len(group), dtype=bool)
    room = quotas.copy()
    cost = curvature.diagonal() / 2
    unit = first
    for _ in range(count):
        gone[unit] = True
        room[group[unit]] -= 1
        cost = cost + curvature[unit]
        unit = int(np.where(gone | (room[group] == 0), np.inf, cost).argmin())
    return gone


def _swapped(curvature: Matrix, group: Integers, quotas: Integers, gone: Flags) -> Flags:
    """Swap the best pair until none lowers the cost."""
    gone = gone.copy()
    half = curvature.diagonal() / 2
    while gone.any() and not gone.all():
        out, stay = np.flatnonzero(gone), np.flatnonzero(~gone)
        joint = curvature[:, gone].sum(1)
        # change[a, b]: unit out[a] comes back, unit stay[b] goes
        change = (half - joint)[out, None] + (half + joint)[stay] - curvature[np.ix_(out, stay)]
        full = np.bincount(group[out], minlength=len(quotas)) >= quotas
        change[full[group[stay]] & (group[out, None] != group[stay])] = np.inf
        a, b = np.unravel_index(change.argmin(), change.shape)
        # gains of rounding size could swap for ever
        if change[a, b] >= -1e-12 * half.sum():
            break
        gone[out[a]], gone[stay[b]] = False, True
    return gone


def _keep_jointly(
    scores: Layers, curvature: Layers, ratio: float, scope: Scope, floor: int
) -> list[list[int]]:
    """Return the heads to keep, per layer, by what their removal costs together."""
    alone = _keep("heads", scores, ratio, scope, floor)
    units = [(layer, i) for layer, row in enumerate(scores) for i in range(len(row))]
    start = [place for place, (layer, i) in enumerate(units) if i not in alone[layer]]
    quotas = [
        len(row) - (len(kept) if scope is Scope.LAYER else min(floor, len(row)))
        for row, kept in zip(scores, alone, strict=True)
    ]
    matrix = np.asarray(curvature, dtype=np.float64).reshape(len(units), len(units))
    gone = set(remove_jointly(matrix, [layer for layer, _ in units], quotas, start))
    kept: list[list[int]] = [[] for _ in scores]
    for place, (layer, i) in enumerate(units):
        if place not in gone:
            kept[layer].append(i)
    return kept


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
