"""Pruning towards a goal: plan, cut, reconstruct, and hold what came of it against the plan."""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from tcompress.digests import document_digest
from tcompress.encoder import Encoder
from tcompress.errors import RequestError
from tcompress.plan import CompressionPlan
from tcompress.preprocessing import Encoded
from tcompress.tasks import Task

from .checkpoint import Checkpoint, Phases
from .cost import LatencyMeter, OpenMeter
from .cost_measuring import known_costs
from .judging import LEAST_DIVERGENCE, Judge, Selection, Verdict
from .planning import LatencyCosts, MacCosts, Planner, smallest_within_loss
from .progress import Progress, silent
from .prune_recipe import PruneRecipe
from .pruning import prune_
from .reconstruction import Refit, reconstruct_
from .scores import HeadScores
from .selection import select_units
from .sensitivity import doubt
from .surgeon import Surgeon

MAC_TOKENS = 128
"""Length at which multiply-accumulates are counted, where the encoder takes so many."""
_LATENCY_TOLERANCE = 0.02
_LATENCY_ATTEMPTS = 4
_LATENCY_BUDGET_S = 10.0
_DROP_PROBES = 4


@dataclass(frozen=True)
class Outcome:
    """A pruned encoder and how it does on the selection split.

    Attributes:
        encoder: The encoder.
        refits: What reconstruction gave.
        verdict: How it answers beside the unpruned one; None without a selection split.
    """

    encoder: Encoder
    refits: list[Refit]
    verdict: Verdict | None = None


class Pruner:
    """Prunes one encoder towards one goal.

    Args:
        encoder: The encoder; not changed.
        recipe: The goal.
        scores: Importance of its units.
        surgeon: What the scores came from, if it was elimination.
        calibration: Inputs to reconstruct on; None: no reconstruction.
        selection: Examples to judge by, or None.
        open_meter: Starts an engine, for goals in latency.
        phases: Keeps what is done, for a run of the same key to continue from.
        progress: Shows progress.
        tell: Says one line.
    """

    def __init__(
        self,
        encoder: Encoder,
        recipe: PruneRecipe,
        scores: HeadScores,
        *,
        surgeon: Surgeon | None = None,
        calibration: Encoded | None = None,
        selection: Selection | None = None,
        open_meter: OpenMeter | None = None,
        phases: Phases | None = None,
        progress: Progress = silent,
        tell: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._encoder = encoder
        self._recipe = recipe
        self._scores = scores
        self._surgeon = surgeon
        self._calibration = calibration
        self._judge = None if selection is None else Judge(encoder, selection)
        self._open_meter = open_meter
        self._phases = phases
        self._progress = progress
        self._tell = tell

    def prune(self) -> tuple[Outcome, dict[str, Any]]:
        """Plan, cut and reconstruct.

        Returns:
            The pruned encoder, and what to put on record: MACs, prediction and measurement.

        Raises:
            RequestError: If the goal cannot be reached.
        """
        latency: dict[str, Any] | None = None
        if self._recipe.max_drop is not None:
            outcome = self._smallest(self._recipe.max_drop)
        else:
            plan, latency = self._plan()
            outcome = self._cut(plan)
        plan = outcome.encoder.plan
        tokens = self._mac_tokens
        macs = {
            "tokens": tokens,
            "before": self._encoder.anatomy.macs(tokens),
            "after": outcome.encoder.anatomy.macs(tokens),
        }
        return outcome, {
            "macs": macs,
            "loss": self._macs.loss(plan),
            "latency": latency,
            "selection": self._judged(outcome),
            "reconstruction": [asdict(refit) for refit in outcome.refits],
        }

    def _plan(self) -> tuple[CompressionPlan, dict[str, Any] | None]:
        recipe = self._recipe
        if recipe.by_ratio:
            plan = select_units(
                self._scores,
                self._encoder.plan,
                heads=recipe.heads or 0.0,
                neurons=recipe.neurons or 0.0,
                scope=recipe.scope,
                drop_sublayers=recipe.may_drop,
            )
            return self._not_empty(plan, "what --heads and --neurons remove together"), None
        if recipe.macs is not None:
            budget = (1 - recipe.macs) * self._macs.total(self._encoder.plan)
            return self._within(self._macs, budget, f"--macs {recipe.macs:g}"), None
        return self._kept_plan()

    def _within(self, planner: Planner, budget: float, asked: str) -> CompressionPlan:
        """Return the plan within a budget; say the option's name when there is none."""
        try:
            plan = planner.within(budget)
        except RequestError as error:
            msg = f"{asked} leaves nothing: {error}"
            raise RequestError(msg) from error
        return self._not_empty(plan, asked)

    def _not_empty(self, plan: CompressionPlan, asked: str) -> CompressionPlan:
        if not any((*plan.head_counts, *plan.neuron_counts)):
            msg = f"{asked} leaves nothing of the encoder; ask for less"
            raise RequestError(msg)
        return plan

    def _planner(self, costs: Any) -> Planner:
        return Planner(self._scores, self._encoder.plan, costs, self._recipe.may_drop)

    @property
    def _mac_tokens(self) -> int:
        preprocessor = self._encoder.preprocessor
        return preprocessor.fixed_tokens or min(MAC_TOKENS, preprocessor.max_tokens)

    @cached_property
    def _macs(self) -> Planner:
        return self._planner(MacCosts.of(self._encoder.anatomy, self._mac_tokens))

    def _cut(self, plan: CompressionPlan) -> Outcome:
        """Cut a copy down to a plan, reconstruct and judge it."""
        if self._surgeon is not None:
            plan = self._surgeon.refined(plan)
        student = replace(self._encoder, model=copy.deepcopy(self._encoder.model))
        prune_(student, plan)
        refits = []
        if self._calibration is not None:
            refits = reconstruct_(
                student,
                self._encoder,
                self._calibration,
                progress=self._progress,
                checkpoint=self._checkpoint(f"cut-{document_digest(plan.to_json())[:16]}"),
            )
        outcome = Outcome(student, refits)
        if self._judge is None:
            return outcome
        return replace(outcome, verdict=self._judge.verdict(student.predict))

    def _judged(self, outcome: Outcome) -> dict[str, Any] | None:
        if self._judge is None:
            return None
        return {
            **self._judge.record(outcome.verdict),
            "accuracy_predicted": self._predicted(self._judge, outcome.encoder.plan),
        }

    def _predicted(self, judge: Judge, plan: CompressionPlan) -> float | None:
        """Return the accuracy that the plan let expect, where its loss is a divergence.

        The calibration examples were mostly trained on, so the encoder is surer of them; the loss
        is scaled by how unsure it is of the selection split, E[1 - sum p^2].
        """
        if self._surgeon is None or self._calibration is None:
            return None
        ratio = 1.0
        if self._encoder.task is Task.CLASSIFICATION:
            ratio = float(doubt(judge.answers).mean()) / self._surgeon.survey.doubt
        return judge.expected_accuracy(ratio * self._macs.loss(plan))

    def _checkpoint(self, phase: str) -> Checkpoint | None:
        return None if self._phases is None else self._phases.checkpoint(phase)

    def _kept_plan(self) -> tuple[CompressionPlan, dict[str, Any]]:
        """Plan by latencies, once: measured again they would give another plan."""
        checkpoint = self._checkpoint("plan")
        if checkpoint is not None and (state := checkpoint.read()) is not None:
            self._tell("prune: continues with the latencies that were measured before")
            return CompressionPlan.from_json(state["plan"]), state["latency"]
        plan, latency = self._timed_plan()
        if checkpoint is not None:
            checkpoint.write({"plan": plan.to_json(), "latency": latency})
        return plan, latency

    def _timed_plan(self) -> tuple[CompressionPlan, dict[str, Any]]:
        """Plan by the table of costs, time the plan itself, and correct what the table missed."""
        serving = self._recipe.serving
        assert serving is not None
        assert self._open_meter is not None
        dense = self._encoder.plan
        self._tell(f"prune: what heads and neurons cost in {serving.engine} {serving.precision}")
        table = known_costs(self._encoder, serving, self._open_meter)
        planner = self._planner(LatencyCosts(table))
        whole_ms = planner.total(dense)
        wanted = self._recipe.speedup or whole_ms / (self._recipe.latency_ms or whole_ms)
        tried: list[tuple[float, CompressionPlan, dict[str, Any]]] = []
        with self._open_meter(self._encoder, serving) as meter:
            aim = whole_ms / wanted
            for _ in range(_LATENCY_ATTEMPTS):
                plan = self._within(planner, aim, self._asked)
                record = _timed(meter, planner, dense, plan)
                if self._recipe.latency_ms is not None:
                    wanted = record["before_ms"] / self._recipe.latency_ms
                off = record["speedup"] / wanted - 1
                tried.append((abs(off), plan, record))
                if abs(off) <= _LATENCY_TOLERANCE or (plan == dense and off > 0):
                    break
                aim *= 1 + off
        _, plan, record = min(tried, key=lambda attempt: attempt[0])
        asked = {"speedup": wanted, "latency_ms": self._recipe.latency_ms}
        first = tried[0][2]
        return plan, {
            "serving": serving.to_json(),
            "asked": asked,
            "attempts": len(tried),
            "table_off": first["predicted_speedup"] / first["speedup"] - 1,
            **record,
        }

    @property
    def _asked(self) -> str:
        name = self._recipe.goals[0]
        return f"--{name.replace('_', '-')} {getattr(self._recipe, name):g}"

    def _smallest(self, max_drop: float) -> Outcome:
        """Find the smallest encoder whose drop stays inside, by probes that are cut and judged.

        Between probes the divergence is taken for a power of the predicted loss.
        """
        assert self._judge is not None
        bound = self._judge.bound(max_drop)
        planner = self._macs
        plan = self._within(planner, planner.total(self._encoder.plan) / 2, self._asked)
        probes: list[tuple[float, float]] = []
        best: Outcome | None = None
        for number in range(1, _DROP_PROBES + 1):
            outcome = self._cut(plan)
            verdict = outcome.verdict
            assert verdict is not None
            probe = (planner.loss(plan), verdict.divergence)
            probes.append((max(probe[0], LEAST_DIVERGENCE), max(probe[1], LEAST_DIVERGENCE)))
            removed = 1 - planner.total(plan) / planner.total(self._encoder.plan)
            fits = self._judge.stays_inside(verdict, max_drop)
            self._tell(
                f"prune: probe {number}, {removed:.0%} of the MACs removed: accuracy "
                f"{verdict.accuracy:.4f} (expected {verdict.expected:.4f}), "
                f"{'inside' if fits else 'too low, or too close to it'}"
            )
            if fits and (best is None or _size(outcome) < _size(best)):
                best = outcome
            allowed = _loss_for(bound * (1.0 if fits else 0.9**number), probes)
            following = smallest_within_loss(planner, allowed)
            if following == self._encoder.plan or _same_size(following, plan, planner):
                break
            plan = following
        if best is None:
            self._tell(f"prune: nothing can go within --max-drop {max_drop:g}")
            return Outcome(replace(self._encoder), [])
        return best


def _timed(
    meter: LatencyMeter, planner: Planner, dense: CompressionPlan, plan: CompressionPlan
) -> dict[str, Any]:
    before, after = meter.latencies_ms([dense, plan], _LATENCY_BUDGET_S)
    predicted = planner.total(plan)
    return {
        "before_ms": before,
        "after_ms": after,
        "speedup": before / after,
        "predicted_ms": predicted,
        "predicted_speedup": planner.total(dense) / predicted,
    }


def _loss_for(divergence: float, probes: list[tuple[float, float]]) -> float:
    """Return the predicted loss at which a divergence is to be expected, after some probes.

    Through the two probes nearest to it goes a power law; through one, a straight line.
    """
    near = sorted(probes, key=lambda probe: abs(math.log(probe[1] / divergence)))[:2]
    (loss, found), *other = near
    power = 1.0
    if other and other[0][0] != loss and other[0][1] != found:
        power = math.log(other[0][1] / found) / math.log(other[0][0] / loss)
        power = min(3.0, max(0.5, power))
    return loss * float((divergence / found) ** (1 / power))


def _same_size(plan: CompressionPlan, other: CompressionPlan, planner: Planner) -> bool:
    whole = planner.total(planner.plan)
    return abs(planner.total(plan) - planner.total(other)) < 0.01 * whole


def _size(outcome: Outcome) -> int:
    return outcome.encoder.parameters
