"""Importance of heads and FFN neurons, by one criterion or several in one pass."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from tcompress.encoder import Encoder
from tcompress.errors import CalibrationError
from tcompress.machine import threads_for

from .criteria import Criterion, Settings
from .evidence import PARTS, Collector, Evidence, LabelledBatch, Statistic
from .gating import Units
from .scores import HeadScores, Layers

__all__ = ["Criterion", "HeadScores", "Ranking", "Settings", "rank_units", "score_units"]

DEFAULTS = Settings()


@dataclass(frozen=True)
class Ranking:
    """The scores by one of several criteria, and how they compare.

    Attributes:
        scores: The scores.
        agreement: Spearman rank correlation of the head scores with those by the first
            criterion, -1 to 1; None where it is not defined (fewer than two heads, or equal ones).
        stability: Mean Spearman rank correlation between the head scores from four disjoint
            quarters of the examples, 1 where every quarter ranks alike; None likewise, and where
            the criterion looks at no examples.
    """

    scores: HeadScores
    agreement: float | None
    stability: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the ranking as a part of a JSON document."""
        return {
            "heads": [list(layer) for layer in self.scores.heads],
            "neurons": [list(layer) for layer in self.scores.neurons],
            "agreement": self.agreement,
            "stability": self.stability,
        }


def score_units(
    encoder: Encoder,
    criterion: Criterion,
    batches: Iterable[LabelledBatch] = (),
    calibration: dict[str, Any] | None = None,
    settings: Settings = DEFAULTS,
) -> HeadScores:
    """Score every head and neuron that is left.

    Args:
        encoder: The encoder; its parameters are not modified.
        criterion: How to measure.
        batches: Calibration batches, for criteria that look at data.
        calibration: What to record about them.
        settings: Numbers that some criteria depend on.

    Raises:
        CalibrationError: If there are no examples, or a score is not finite.
    """
    return rank_units(encoder, [criterion], batches, calibration, settings)[0].scores


def rank_units(
    encoder: Encoder,
    criteria: Sequence[Criterion],
    batches: Iterable[LabelledBatch] = (),
    calibration: dict[str, Any] | None = None,
    settings: Settings = DEFAULTS,
) -> list[Ranking]:
    """Score every head and neuron that is left by several criteria, in one pass over the data.

    Args:
        encoder: The encoder; its parameters are not modified.
        criteria: How to measure; the others are compared with the first.
        batches: Calibration batches, for criteria that look at data.
        calibration: What to record about them.
        settings: Numbers that some criteria depend on.

    Returns:
        One ranking per criterion, in their order.

    Raises:
        CalibrationError: If there are no examples, or a score is not finite.
    """
    statistics = frozenset[Statistic]().union(*(c.measure.reads for c in criteria))
    collector = Collector(encoder, statistics, seed=settings.seed, draws=settings.draws)
    with threads_for(encoder.parameters):
        if any(criterion.needs_data for criterion in criteria):
            collector.add_all(batches)
        evidence = collector.evidence()
        quarters = (
            [collector.evidence([i]) for i in range(PARTS)] if collector.examples.all() else []
        )
    rankings: list[Ranking] = []
    for criterion in criteria:
        record = (calibration or {}) if criterion.needs_data else _record_of(criterion, settings)
        scores = _scores(criterion, evidence, settings, record)
        first = rankings[0].scores if rankings else scores
        agreement = rank_agreement(_flat(first.heads), _flat(scores.heads))
        rankings.append(Ranking(scores, agreement, _stability(criterion, quarters, settings)))
    return rankings


def rank_agreement(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the Spearman rank correlation of two scores of the same units.

    Args:
        first: Scores.
        second: Scores, in the same order.

    Returns:
        -1 to 1; None where one of them ranks nothing.
    """
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(spearmanr(first, second).statistic)


def _record_of(criterion: Criterion, settings: Settings) -> dict[str, Any]:
    return {"seed": settings.seed} if criterion is Criterion.RANDOM else {}


def _scores(
    criterion: Criterion, evidence: Evidence, settings: Settings, record: dict[str, Any]
) -> HeadScores:
    values = criterion.measure.score(evidence, settings)
    # scores that are normalized carry what is not finite to other units: look before that too
    for vector in (*(evidence[name] for name in criterion.measure.reads), values):
        _check_finite(criterion, vector, evidence.units)
    layers = evidence.units.split(values)
    curvature = None
    if criterion is Criterion.CURVATURE:
        curvature = _tuples(evidence[Statistic.HEAD_CURVATURE])
    return HeadScores(criterion, _tuples(layers.heads), _tuples(layers.neurons), record, curvature)


def _check_finite(criterion: Criterion, values: Tensor, units: Units) -> None:
    bad = torch.nonzero(~torch.isfinite(values))
    if len(bad):
        unit = units.name(int(bad[0, 0]))
        msg = f"the {criterion.value} score of {unit} is not finite; check the weights there"
        raise CalibrationError(msg)


def _stability(
    criterion: Criterion, quarters: Sequence[Evidence], settings: Settings
) -> float | None:
    if not quarters or not criterion.needs_data:
        return None
    heads = sum(quarters[0].units.heads)
    scores = [criterion.measure.score(quarter, settings)[:heads].tolist() for quarter in quarters]
    found = [rank_agreement(a, b) for a, b in combinations(scores, 2)]
    defined = [agreement for agreement in found if agreement is not None]
    return fmean(defined) if len(defined) == len(found) else None


def _tuples(rows: Iterable[Tensor]) -> Layers:
    return tuple(tuple(row.tolist()) for row in rows)


def _flat(layers: Layers) -> list[float]:
    return [score for layer in layers for score in layer]
