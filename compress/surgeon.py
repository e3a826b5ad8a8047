"""Importance by elimination: what is lost when a unit goes and all others make up for it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

from tcompress.encoder import Encoder
from tcompress.errors import CalibrationError
from tcompress.plan import CompressionPlan
from tcompress.preprocessing import Batch

from .checkpoint import State
from .criteria import Criterion
from .elimination import Elimination, eliminate, exchange
from .progress import Progress, silent
from .scores import HeadScores
from .sensitivity import Sensitivity, Survey, measure_sensitivity


@dataclass(frozen=True)
class Surgeon:
    """Scores of an encoder's units, and choices refined by exchanges.

    Attributes:
        scores: In nats: the divergence that is added when the unit goes, in the best order.
        plan: What the encoder had when it was measured.
        survey: What was measured.
    """

    scores: HeadScores
    plan: CompressionPlan
    survey: Survey

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        batches: Iterable[Batch],
        calibration: dict[str, Any],
        progress: Progress = silent,
    ) -> "Surgeon":
        """Measure an encoder.

        Args:
            encoder: The encoder; not changed.
            batches: Calibration inputs.
            calibration: What to record about them.
            progress: Shows progress.

        Raises:
            CalibrationError: If there are no examples, or something is not finite.
        """
        survey = measure_sensitivity(encoder, batches)
        layers = progress(survey.sublayers, "ordering heads and neurons", len(survey.sublayers))
        orders = [[eliminate(part.regression()) for part in pair] for pair in layers]
        heads, neurons = (
            tuple(_scores(pair[kind], index, name) for index, pair in enumerate(orders))
            for kind, name in enumerate(("head", "neuron"))
        )
        return cls(HeadScores(Criterion.OBS, heads, neurons, calibration), encoder.plan, survey)

    def state(self) -> State:
        """Return what was measured, for a checkpoint."""
        return {"scores": self.scores.to_json(), "survey": self.survey.state()}

    @classmethod
    def from_state(cls, state: State, plan: CompressionPlan) -> Self:
        """Return the surgeon that a state was taken from.

        Args:
            state: From `state`.
            plan: What the encoder has.
        """
        return cls(HeadScores.from_json(state["scores"]), plan, Survey.from_state(state["survey"]))

    def refined(self, plan: CompressionPlan) -> CompressionPlan:
        """Exchange units between those kept and those removed where that loses less.

        Args:
            plan: A plan within the encoder's.

        Returns:
            A plan of the same widths.
        """
        layers = tuple(
            replace(
                mine,
                heads=_exchanged(mine.heads, old.heads, attention),
                neurons=_exchanged(mine.neurons, old.neurons, feed_forward),
            )
            for mine, old, (attention, feed_forward) in zip(
                plan.layers, self.plan.layers, self.survey.sublayers, strict=True
            )
        )
        return replace(plan, layers=layers)


def _scores(order: Elimination, layer: int, name: str) -> tuple[float, ...]:
    """Return what each unit adds to the loss when it goes; never less than those before it."""
    scores = [0.0] * len(order.order)
    before = highest = 0.0
    for unit, loss in zip(order.order, order.losses, strict=True):
        # strictly rising, so that sorting the scores gives the order back
        highest = max(loss - before, highest * (1 + 1e-12), 1e-300)
        scores[unit], before = highest, loss
        if not highest < float("inf"):
            msg = f"the obs score of layer {layer} {name} {unit} is not finite; check the weights"
            raise CalibrationError(msg)
    return tuple(scores)


def _exchanged(
    kept: tuple[int, ...], units: tuple[int, ...], sublayer: Sensitivity
) -> tuple[int, ...]:
    if len(kept) in (0, len(units)):
        return kept
    position = {unit: i for i, unit in enumerate(units)}
    better = exchange(sublayer.regression(), tuple(position[unit] for unit in kept))
    return tuple(units[i] for i in better)
