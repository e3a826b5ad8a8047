"""Measuring what heads and neurons cost: which shapes to time, and how costs follow from them.

Layers that compute the same share one curve, and are resized together: a difference then is as
many times larger than the noise as there are layers.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from tcompress.digests import document_digest
from tcompress.encoder import Encoder
from tcompress.errors import ArtifactError, MeasurementError, StorageError
from tcompress.intake import read_json
from tcompress.machine import (
    cache_directory,
    cpu_features,
    cpu_name,
    gpu_name,
    library_versions,
)
from tcompress.plan import CompressionPlan
from tcompress.staging import write_text_atomically

from .cost import (
    NEURON_STEP,
    SCHEMA_VERSION,
    CostCurve,
    CostTable,
    Engine,
    LatencyMeter,
    OpenMeter,
    Serving,
)

DEFAULT_BUDGET_S = 30.0
_NEURON_POINTS = 7
_MIXTURES = 4

Array = npt.NDArray[np.float64]
Shape = tuple[tuple[int, ...], tuple[int, ...]]
"""Heads per layer, and neurons per layer."""


def known_costs(
    encoder: Encoder,
    serving: Serving,
    open_meter: OpenMeter,
    *,
    budget_s: float = DEFAULT_BUDGET_S,
) -> CostTable:
    """Return the table of an encoder's costs; measured only where it was not before.

    Tables are kept in the user's cache directory, under a digest of all they depend on.

    Args:
        encoder: The encoder; only its shape matters.
        serving: How it will be run.
        open_meter: Starts the engine; from the command line this is click's `ctx.obj`.
        budget_s: Seconds for measuring.

    Raises:
        DeviceError: If the engine needs a GPU that is not there.
        MeasurementError: If the engine fails.
    """
    path = cache_directory() / "costs" / f"{document_digest(_key(encoder, serving, budget_s))}.json"
    if (kept := _kept(path)) is not None:
        return kept
    # exported files leave out what a head on the first token does not read
    first_only = serving.engine is Engine.ONNXRUNTIME and encoder.anatomy.first_only_last
    times = tuple(times for *_, times in encoder.anatomy.geometry)
    with open_meter(encoder, serving) as meter:
        table = measure_costs(
            encoder.plan, meter, first_only_last=first_only, times=times, budget_s=budget_s
        )
    with suppress(StorageError):  # a cache that cannot be written costs time, nothing else
        write_text_atomically(path, json.dumps(table.to_json(), indent=2) + "\n")
    return table


def measure_costs(
    dense: CompressionPlan,
    meter: LatencyMeter,
    *,
    first_only_last: bool,
    times: tuple[int, ...] = (),
    budget_s: float = DEFAULT_BUDGET_S,
) -> CostTable:
    """Measure what the sublayers of an encoder cost.

    Args:
        dense: The encoder's plan: what it has.
        meter: Measures encoders of other shapes.
        first_only_last: Whether the engine computes the last layer for one token only, so that
            its costs are its own.
        times: How often each layer is applied; empty where each is applied once.
        budget_s: Seconds for all measurements.

    Raises:
        MeasurementError: If the latencies are not positive.
    """
    once = (1,) * len(dense.layers)
    groups = _groups(dense, times or once, first_only_last=first_only_last)
    shapes = _shapes(dense, groups)
    plans = [_cut(dense, *shape) for shape in shapes]
    latencies = np.asarray(meter.latencies_ms(plans, budget_s), dtype=np.float64)
    if not (np.isfinite(latencies).all() and (latencies > 0).all()):
        msg = f"latencies must be positive, got {latencies.tolist()} ms"
        raise MeasurementError(msg)
    steps, deviation = _fit(_design(shapes, groups), latencies)
    attention, feed_forward = _curves(groups, steps[1:], len(dense.layers))
    rest = float(steps[0])
    machine = _machine(meter.serving)
    return CostTable(meter.serving, machine, rest, attention, feed_forward, deviation)


@dataclass(frozen=True)
class _Group:
    """Layers that share their curves.

    Attributes:
        layers: Their positions.
        heads: Head counts to measure, ascending, above 0.
        neurons: Neuron counts to measure, likewise.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    neurons: tuple[int, ...]


def _groups(
    dense: CompressionPlan, times: tuple[int, ...], *, first_only_last: bool
) -> list[_Group]:
    last = len(dense.layers) - 1
    inner = range(last if first_only_last else last + 1)
    groups = []
    for count in sorted({times[layer] for layer in inner}):
        alike = tuple(layer for layer in inner if times[layer] == count)
        heads = max(dense.head_counts[layer] for layer in alike)
        neurons = max(dense.neuron_counts[layer] for layer in alike)
        groups.append(_Group(alike, _head_points(heads), _neuron_points(neurons, _NEURON_POINTS)))
    if first_only_last:
        heads, neurons = dense.head_counts[last], dense.neuron_counts[last]
        few = tuple(sorted({1, heads // 2, heads} - {0})) if heads else ()
        groups.append(_Group((last,), few, _neuron_points(neurons, 2)))
    return groups


def _head_points(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and all."""
    if most == 0:
        return ()
    return (*(2**i for i in range((most - 1).bit_length())), most)


def _neuron_points(most: int, points: int) -> tuple[int, ...]:
    """Multiples of the step, each about as many times the one before, and all."""
    if most == 0:
        return ()
    spread = np.geomspace(min(NEURON_STEP, most), most, points)
    whole = {NEURON_STEP * round(width / NEURON_STEP) for width in spread}
    return (*sorted(width for width in whole if 0 < width < most), most)


def _shapes(dense: CompressionPlan, groups: Sequence[_Group]) -> list[Shape]:
    """What to time: all; one kind of sublayer narrower; uneven mixtures, as planned; nothing."""
    heads, neurons = dense.head_counts, dense.neuron_counts
    shapes = [(heads, neurons)]
    for group in groups:
        shapes += [(_capped(heads, group.layers, n), neurons) for n in (0, *group.heads[:-1])]
        shapes += [(heads, _capped(neurons, group.layers, n)) for n in (0, *group.neurons[:-1])]
    rng = np.random.default_rng(0)
    for _ in range(_MIXTURES):
        shapes.append((_mixture(heads, 1, rng), _mixture(neurons, NEURON_STEP, rng)))
    nothing = (0,) * len(heads)
    return list(dict.fromkeys([*shapes, (nothing, nothing)]))


def _mixture(counts: tuple[int, ...], step: int, rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(step * int(rng.integers(0, count // step + 1)) for count in counts)


def _capped(counts: tuple[int, ...], layers: tuple[int, ...], most: int) -> tuple[int, ...]:
    return tuple(min(n, most) if layer in layers else n for layer, n in enumerate(counts))


def _cut(
    dense: CompressionPlan, heads: tuple[int, ...], neurons: tuple[int, ...]
) -> CompressionPlan:
    counts = zip(dense.layers, heads, neurons, strict=True)
    layers = tuple(replace(p, heads=p.heads[:h], neurons=p.neurons[:n]) for p, h, n in counts)
    return replace(dense, layers=layers)


def _design(shapes: Sequence[Shape], groups: Sequence[_Group]) -> Array:
    """Latencies are linear in the rest and in the steps between neighbouring points.

    Returns:
        `(shapes, 1 + points)`.
    """
    rows = []
    for heads, neurons in shapes:
        row = [np.ones(1)]
        for group in groups:
            row.append(np.sum([_steps(heads[i], group.heads) for i in group.layers], axis=0))
            row.append(np.sum([_steps(neurons[i], group.neurons) for i in group.layers], axis=0))
        rows.append(np.concatenate(row))
    return np.stack(rows)


def _steps(width: int, points: tuple[int, ...]) -> Array:
    """How much of each step a sublayer of this width pays, `(points,)`: see `CostCurve.at`."""
    if width == 0:
        return np.zeros(len(points))
    reached = np.tri(len(points))
    return np.array([np.interp(width, points, reached[:, i]) for i in range(len(points))])


def _fit(design: Array, latencies: Array) -> tuple[Array, float]:
    """Fit steps that are not negative by least squares of relative deviations.

    This is an isotonic regression of all curves at once.

    Returns:
        The rest and the steps in ms, `(1 + points,)`, and the root mean square deviation.
    """
    relative = design / latencies[:, None]
    steps, norm = nnls(relative, np.ones(len(latencies)))
    return steps, float(norm / np.sqrt(len(latencies)))


def _curves(
    groups: Sequence[_Group], steps: Array, layers: int
) -> tuple[tuple[CostCurve, ...], tuple[CostCurve, ...]]:
    attention: dict[int, CostCurve] = {}
    feed_forward: dict[int, CostCurve] = {}
    for group in groups:
        for points, curves in ((group.heads, attention), (group.neurons, feed_forward)):
            costs = np.cumsum(steps[: len(points)])
            steps = steps[len(points) :]
            curve = CostCurve(points, tuple(float(cost) for cost in costs))
            curves.update(dict.fromkeys(group.layers, curve))
    order = range(layers)
    return tuple(attention[i] for i in order), tuple(feed_forward[i] for i in order)


def _machine(serving: Serving) -> str:
    return (gpu_name() if serving.engine is Engine.CUDA else None) or cpu_name()


def _key(encoder: Encoder, serving: Serving, budget_s: float) -> dict[str, Any]:
    """Return everything that a table depends on."""
    anatomy = encoder.anatomy
    layers = [
        [layer.num_heads, layer.head_size, layer.num_neurons, layer.activation, layer.norm_first]
        for layer in anatomy.layers
    ]
    engine = ("onnxruntime",) if serving.engine is Engine.ONNXRUNTIME else ("torch", "transformers")
    versions = library_versions()
    return {
        "schema_version": SCHEMA_VERSION,
        "family": anatomy.family,
        "hidden_size": anatomy.hidden_size,
        "layers": layers,
        "order": anatomy.order,
        "pooling": anatomy.head.pooling,
        "serving": serving.to_json(),
        "budget_s": budget_s,
        "machine": _machine(serving),
        "cpu_features": cpu_features(),
        "versions": {name: versions.get(name) for name in ("tcompress", *engine)},
    }


def _kept(path: Path) -> CostTable | None:
    """Read a kept table; None where there is none or it is damaged."""
    try:
        return CostTable.from_json(read_json(path, error=ArtifactError))
    except (ArtifactError, StorageError):
        return None
