"""Mixed precision from artifact to artifact: measures, chooses, and confirms the choice."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import isfinite
from typing import Any

import torch

from tcompress.artifact import Artifact
from tcompress.data import Examples
from tcompress.encoder import Encoder
from tcompress.errors import RequestError
from tcompress.plain import PlainEncoder
from tcompress.plan import Precision
from tcompress.preprocessing import Batch
from tcompress.stage_key import Reads
from tcompress.stages import StageRun
from tcompress.tasks import Task

from .cost import PRECISIONS, Engine, OpenMeter, Serving
from .judging import Judge, Selection, Verdict
from .mixed import (
    Option,
    as_served,
    choose,
    int8_of,
    lowerings,
    measure_divergences,
    measure_savings,
    with_lowerings,
)
from .probes import check_classes

_BATCH_SIZE = 16
_MEASURING_S = 30.0
_ATTEMPTS = 8


@dataclass
class MixedStage:
    """One run of `quantize --precision mixed`.

    Attributes:
        run: What it reads and writes.
        serving: How the encoder will be run; its precision is `MIXED`.
        max_drop: Largest accuracy drop, a fraction; None for the workspace's.
        max_examples: Calibration examples.
        open_meter: Starts an engine to time plans of the encoder.
    """

    run: StageRun
    serving: Serving
    max_drop: float | None
    max_examples: int
    open_meter: OpenMeter

    def artifact(self) -> Artifact:
        """Choose precisions and write the artifact, unless that is done.

        Raises:
            RequestError: If there is no workspace to confirm the drop in, or the encoder does not
                read so many tokens.
            CalibrationError: If the answers tell nothing.
        """
        recipe = {
            "precision": "mixed",
            "serving": self.serving.to_json(),
            "max_drop": self._allowed,
            "max_examples": self.max_examples,
            "seed": self.run.seed,
            "data": self._examples.digest,
        }
        judged = Selection.examples(self.run)
        reads = Reads({"validation": judged.digest}, self.serving.libraries, cpu=True)
        return self.run.transform(self.run.key(recipe, reads), self._work)

    @cached_property
    def _allowed(self) -> float:
        workspace = self.run.data.workspace
        if workspace is None:
            msg = (
                "--precision mixed confirms --max-drop on a workspace's validation split; start "
                "one with `tcompress init MODEL --data FILE`"
            )
            raise RequestError(msg)
        return workspace.config.max_drop if self.max_drop is None else self.max_drop

    @cached_property
    def _examples(self) -> Examples:
        return self.run.data.training_examples(self.max_examples, self.run.seed)

    def _work(self, encoder: Encoder) -> dict[str, Any]:
        self.serving.check_tokens(encoder)
        if encoder.task is Task.CLASSIFICATION:
            check_classes(len(encoder.labels), instead="--precision int8")
        encoder.plan = encoder.plan.with_precision(Precision.FP32)
        judge = Judge(encoder, Selection.of(self.run, encoder))
        options = self._options(encoder)
        chosen, verdict = confirmed(
            encoder,
            options,
            judge,
            engine=self.serving.engine,
            max_drop=self._allowed,
            tell=self.run.console.say,
        )
        encoder.plan = with_lowerings(encoder.plan, [option.lowering for option in chosen])
        return {
            "calibration": {"examples": len(self._examples), "digest": self._examples.digest},
            "serving": self.serving.to_json(),
            "options": [
                {
                    **asdict(option.lowering),
                    "divergence": option.divergence if isfinite(option.divergence) else None,
                    "saved_ms": option.saved_ms,
                    "chosen": option in chosen,
                }
                for option in options
            ],
            "selection": judge.record(verdict),
        }

    def _options(self, encoder: Encoder) -> list[Option]:
        """Measure every lowering that the engine can run."""
        engine, console = self.serving.engine, self.run.console
        known = [Precision(name) for name in PRECISIONS[engine]]
        candidates = lowerings(encoder.plan, [p for p in known if p is not Precision.FP32])
        encoded = self.run.encode(encoder, self._examples)
        batches = console.track(
            (batch for _, batch in encoded.batches(_BATCH_SIZE)),
            "quantize: how much the answers depend on each sublayer's precision",
            -(-len(self._examples) // _BATCH_SIZE),
        )
        divergences = measure_divergences(encoder, batches, candidates, int8_of(engine))
        console.say(f"quantize: what lower precisions save in {engine}")
        with self.open_meter(encoder, self.serving) as meter:
            saved = measure_savings(encoder.plan, candidates, meter, _MEASURING_S)
        return [Option(each, divergences[each], saved[each]) for each in candidates]


def confirmed(
    encoder: Encoder,
    options: Sequence[Option],
    judge: Judge,
    *,
    engine: Engine,
    max_drop: float,
    tell: Callable[[str], None],
) -> tuple[list[Option], Verdict | None]:
    """Choose, and step the budget down until what is chosen stays within a drop.

    Args:
        encoder: The encoder.
        options: What can be lowered.
        judge: Holds the lowered encoder against it.
        engine: Where it will run.
        max_drop: Largest accuracy drop, a fraction.
        tell: Says one line.

    Returns:
        What is lowered and how that answers; nothing and None where nothing can go lower.
    """
    budget = judge.bound(max_drop)
    for _ in range(_ATTEMPTS):
        chosen = choose(options, budget)
        if not chosen:
            break
        plan = with_lowerings(encoder.plan, [option.lowering for option in chosen])
        verdict = judge.verdict(_predict_of(as_served(encoder, plan, engine)))
        fits = judge.stays_inside(verdict, max_drop)
        tell(
            f"quantize: {len(chosen)} sublayers lowered: accuracy {verdict.accuracy:.4f} "
            f"(expected {verdict.expected:.4f}), "
            f"{'inside' if fits else 'too low, or too close to it'}"
        )
        if fits:
            return chosen, verdict
        budget = 0.5 * sum(option.divergence for option in chosen)
    tell(f"quantize: nothing can go lower within --max-drop {max_drop:g}")
    return [], None


def _predict_of(module: PlainEncoder) -> Callable[[Batch], Any]:
    def predict(batch: Batch) -> Any:
        with torch.inference_mode():
            return module(*(torch.from_numpy(batch[name]) for name in module.input_names)).numpy()

    return predict
