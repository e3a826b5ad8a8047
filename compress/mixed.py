"""Choosing each sublayer's precision by what it costs in the answers and wins in time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import isfinite
from typing import Any, cast

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

from tcompress.encoder import Encoder
from tcompress.errors import CalibrationError
from tcompress.plain import PlainEncoder, PlainLayer, attention_bias, plain
from tcompress.plan import CompressionPlan, Precision
from tcompress.preprocessing import Batch
from tcompress.tasks import decision_of

from .cost import Engine, LatencyMeter
from .precision import RuntimeInt8Linear, ToInt8, dynamic_int8, lowered, runtime_int8
from .questions import Questions, real_rows


class Part(StrEnum):
    """The two sublayers of a layer, by their names in a `LayerPlan`."""

    ATTENTION = "attention"
    FEED_FORWARD = "feed_forward"


@dataclass(frozen=True)
class Lowering:
    """One sublayer in one precision below fp32.

    Attributes:
        layer: Position of the layer.
        part: Which of its sublayers.
        precision: The precision.
    """

    layer: int
    part: Part
    precision: Precision


@dataclass(frozen=True)
class Option:
    """What a lowering does when everything else stays in fp32.

    Attributes:
        lowering: The lowering.
        divergence: Mean KL(source || lowered) in nats.
        saved_ms: Latency saved; below 0 where it is slower.
    """

    lowering: Lowering
    divergence: float
    saved_ms: float

    @property
    def is_useful(self) -> bool:
        """Whether it is faster and gives numbers at all."""
        return self.saved_ms > 0 and isfinite(self.divergence)


def lowerings(plan: CompressionPlan, precisions: Sequence[Precision]) -> list[Lowering]:
    """Return everything that can be lowered; dropped sublayers have nothing to lower.

    Args:
        plan: The plan.
        precisions: To what.
    """
    return [
        Lowering(index, part, precision)
        for index, layer in enumerate(plan.layers)
        for part, width in ((Part.ATTENTION, layer.heads), (Part.FEED_FORWARD, layer.neurons))
        for precision in precisions
        if width
    ]


def with_lowerings(plan: CompressionPlan, chosen: Iterable[Lowering]) -> CompressionPlan:
    """Return a plan in fp32 but for some sublayers.

    Args:
        plan: The plan.
        chosen: What is lowered.
    """
    layers = list(plan.with_precision(Precision.FP32).layers)
    for lowering in chosen:
        changed: dict[str, Any] = {lowering.part.value: lowering.precision}
        layers[lowering.layer] = replace(layers[lowering.layer], **changed)
    return replace(plan, layers=tuple(layers))


def int8_of(engine: Engine) -> ToInt8:
    """Return what int8 means in an engine, as PyTorch computes it.

    Args:
        engine: The engine.
    """
    return RuntimeInt8Linear if engine is Engine.ONNXRUNTIME else dynamic_int8


def in_precision(encoder: Encoder, plan: CompressionPlan, to_int8: ToInt8) -> PlainEncoder:
    """Return an encoder as a plain module whose sublayers round as those of a file will.

    Args:
        encoder: The encoder; not changed.
        plan: The precisions.
        to_int8: What int8 means there.
    """
    return lowered(plain(replace(encoder, plan=plan)), to_int8)


def as_served(encoder: Encoder, plan: CompressionPlan, engine: Engine) -> PlainEncoder:
    """Return an encoder as a plain module that rounds as the file in an engine will, tables too.

    Args:
        encoder: The encoder; not changed.
        plan: The precisions.
        engine: The engine.
    """
    if engine is Engine.ONNXRUNTIME:
        return runtime_int8(plain(replace(encoder, plan=plan)))
    return in_precision(encoder, plan, int8_of(engine))


def measure_divergences(
    encoder: Encoder, batches: Iterable[Batch], candidates: Sequence[Lowering], to_int8: ToInt8
) -> dict[Lowering, float]:
    """Measure what each lowering alone does to the answers, all in one pass.

    A lowering's stream leaves the source's where its sublayer stands, so what comes before is
    computed once for all.

    Args:
        encoder: The encoder; not changed.
        batches: Calibration inputs.
        candidates: The lowerings.
        to_int8: What int8 means in the engine.

    Returns:
        Mean KL(source || lowered) in nats; not finite where values overflow.

    Raises:
        CalibrationError: If there is no example.
    """
    source = in_precision(encoder, encoder.plan.with_precision(Precision.FP32), to_int8)
    layers = {
        precision: list(
            in_precision(encoder, encoder.plan.with_precision(precision), to_int8).layers
        )
        for precision in {lowering.precision for lowering in candidates}
    }
    changes = {
        lowering: cast("PlainLayer", layers[lowering.precision][lowering.layer])
        for lowering in candidates
    }
    found: list[dict[Lowering | None, Tensor]] = []
    members: list[Tensor] = []
    inputs = 0
    with torch.inference_mode():
        for batch in batches:
            given = [torch.from_numpy(batch[name]) for name in source.input_names]
            answers, owners = _answers(source, given, changes)
            found.append(answers)
            members.append(owners + inputs)
            inputs += len(given[0])
    if not found:
        msg = "measuring sensitivity needs at least one example in the training split"
        raise CalibrationError(msg)
    asked = Questions(decision_of(encoder.task), torch.cat(members), inputs)
    whole = torch.cat([rows[None] for rows in found])
    return {
        lowering: asked.divergence(whole, torch.cat([rows[lowering] for rows in found]))
        for lowering in candidates
    }


def _answers(
    source: PlainEncoder, inputs: list[Tensor], changes: Mapping[Lowering, PlainLayer]
) -> tuple[dict[Lowering | None, Tensor], Tensor]:
    """Return the rows of a batch by lowering, under None those of the source; and their inputs."""
    embedded, mask = source.embed(*inputs)
    streams: dict[Lowering | None, Tensor] = {None: embedded}
    for index, layer in zip(source.order, source.applied, strict=True):
        for part in Part:
            here = {
                lowering: changed
                for lowering, changed in changes.items()
                if (lowering.layer, lowering.part) == (index, part)
            }
            # one that has begun already goes on from its own stream: the layer is applied again
            branches: dict[Lowering | None, Tensor] = {
                lowering: _apply(changed, part, streams.get(lowering, streams[None]), mask)
                for lowering, changed in here.items()
            }
            streams = {
                key: _apply(layer, part, x, mask) for key, x in streams.items() if key not in here
            }
            streams.update(branches)
    cut = {key: real_rows(source.classify(x, mask), mask != 0) for key, x in streams.items()}
    return {key: rows for key, (rows, _) in cut.items()}, cut[None][1]


def _apply(layer: PlainLayer, part: Part, x: Tensor, mask: Tensor) -> Tensor:
    if part is Part.FEED_FORWARD:
        return layer.feed(x)
    return layer.attend(x, attention_bias(mask, layer.attention_dtype))


def measure_savings(
    plan: CompressionPlan, candidates: Sequence[Lowering], meter: LatencyMeter, budget_s: float
) -> dict[Lowering, float]:
    """Measure what each lowering saves in the engine, in ms.

    Sublayers of equal width are lowered together and share what that saves: the difference then
    is as many times larger than the noise. The last layer, which may compute one token only,
    stands alone.

    Args:
        plan: What the encoder has.
        candidates: The lowerings.
        meter: Measures plans, each in its own precisions.
        budget_s: Seconds for all measurements.
    """
    last = len(plan.layers) - 1
    groups: dict[tuple[Any, ...], list[Lowering]] = {}
    for lowering in candidates:
        counts = plan.head_counts if lowering.part is Part.ATTENTION else plan.neuron_counts
        kind = (lowering.part, lowering.precision, counts[lowering.layer], lowering.layer == last)
        groups.setdefault(kind, []).append(lowering)
    plans = [with_lowerings(plan, group) for group in ((), *groups.values())]
    whole, *others = meter.latencies_ms(plans, budget_s)
    return {
        lowering: (whole - other) / len(group)
        for group, other in zip(groups.values(), others, strict=True)
        for lowering in group
    }


def choose(options: Sequence[Option], budget: float) -> list[Option]:
    """Choose at most one option per sublayer: the most ms saved within a summed divergence.

    A multiple-choice knapsack, solved exactly: it is small, and a greedy choice can end with an
    option that blocks two better ones.

    Args:
        options: All options.
        budget: Largest sum of divergences, in nats; without one, nothing is chosen.
    """
    useful = [option for option in options if option.is_useful and option.divergence <= budget]
    if not useful or budget <= 0:
        return []
    places = [(option.lowering.layer, option.lowering.part) for option in useful]
    one_each = np.array([[place == other for place in places] for other in dict.fromkeys(places)])
    spent = np.array([[max(0.0, option.divergence) / budget for option in useful]])
    solved = milp(
        -np.array([option.saved_ms for option in useful]),
        integrality=np.ones(len(useful), dtype=np.int64),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each.astype(float), ub=1), LinearConstraint(spent, ub=1)],
        options={"mip_rel_gap": 0},
    )
    assert solved.x is not None, "choosing nothing is always possible"
    return [option for option, taken in zip(useful, solved.x, strict=True) if taken > 0.5]
