"""Pruning from artifact to artifact: finds scores and examples, and says what came of it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tcompress.artifact import Artifact
from tcompress.data import Examples
from tcompress.encoder import Encoder
from tcompress.errors import RequestError
from tcompress.stage_key import Reads, StageKey
from tcompress.stages import StageRun

from .calibration import BATCH_SIZE, known_scores, score_on_examples
from .checkpoint import Checkpoint, Phases
from .cost import OpenMeter
from .criteria import Criterion
from .judging import Selection
from .prune_recipe import PruneRecipe
from .pruner import Pruner
from .score_command import SCORING_EXAMPLES
from .scores import HeadScores
from .surgeon import Surgeon

_SURGEON_EXAMPLES = 1024


@dataclass
class PruneStage:
    """One run of the stage `prune`.

    Attributes:
        run: What it reads and writes.
        recipe: What to remove.
        open_meter: Starts an engine to time shapes of the encoder.
    """

    run: StageRun
    recipe: PruneRecipe
    open_meter: OpenMeter

    def artifact(self) -> Artifact:
        """Prune and write the artifact, unless that is done.

        Raises:
            RequestError: If the goal needs examples and there are none.
        """
        if self.recipe.max_drop is not None and self.run.data.workspace is None:
            msg = (
                "--max-drop is confirmed on a workspace's validation split; start one with "
                "`tcompress init MODEL --data FILE`"
            )
            raise RequestError(msg)
        key = self._key()
        with Phases(self.run.output, key.digest, self.run.console.say).kept() as phases:
            return self.run.transform(key, lambda encoder: self._work(encoder, phases))

    def _key(self) -> StageKey:
        run, serving = self.run, self.recipe.serving
        data = run.data.training_examples().digest if self._needs_examples else None
        inputs = {}
        if run.data.workspace is not None:
            inputs["validation"] = Selection.examples(run).digest
        libraries = () if serving is None else serving.libraries
        reads = Reads(inputs, ("torch-pruning", *libraries), cpu=serving is not None)
        return run.key(self.recipe.to_json() | {"data": data}, reads)

    @cached_property
    def _needs_examples(self) -> bool:
        return self.recipe.criterion.needs_data or self._reconstructs

    @cached_property
    def _reconstructs(self) -> bool:
        named = self.run.data.workspace is not None or self.run.data.options.data is not None
        return named if self.recipe.reconstruct is None else self.recipe.reconstruct

    def _work(self, encoder: Encoder, phases: Phases) -> dict[str, Any]:
        console = self.run.console
        if self.recipe.serving is not None:
            self.recipe.serving.check_tokens(encoder)
        if not self._reconstructs and self.recipe.reconstruct is None:
            console.warn("no examples to reconstruct on; name some with --data")
        if self._reconstructs and encoder.anatomy.shared_order:
            console.say("prune: layers that are applied several times stay as cut; finetune them")
        scores, surgeon = self._importance(encoder, phases.checkpoint("survey"))
        calibration = self.run.encode(encoder, self._examples) if self._reconstructs else None
        judged = self.run.data.workspace is not None
        selection = Selection.of(self.run, encoder) if judged else None
        outcome, details = Pruner(
            encoder,
            self.recipe,
            scores,
            surgeon=surgeon,
            calibration=calibration,
            selection=selection,
            open_meter=self.open_meter,
            phases=phases,
            progress=console.track,
            tell=console.say,
        ).prune()
        encoder.model, encoder.plan = outcome.encoder.model, outcome.encoder.plan
        return {"calibration": scores.calibration} | details

    @cached_property
    def _examples(self) -> Examples:
        return self.run.data.training_examples(self.recipe.max_examples, self.recipe.seed)

    def _importance(
        self, encoder: Encoder, checkpoint: Checkpoint
    ) -> tuple[HeadScores, Surgeon | None]:
        recipe, run = self.recipe, self.run
        if recipe.criterion is not Criterion.OBS:
            count = min(recipe.max_examples, SCORING_EXAMPLES)
            scores = known_scores(run, recipe.criterion, count) or score_on_examples(
                encoder, recipe.criterion, count, run.data, recipe.seed, run.console
            )
            return scores, None
        if (state := checkpoint.read()) is not None:
            run.console.say("prune: continues with the importance that was measured before")
            surgeon = Surgeon.from_state(state, encoder.plan)
        else:
            surgeon = self._surgeon(encoder)
            checkpoint.write(surgeon.state())
        return surgeon.scores, surgeon

    def _surgeon(self, encoder: Encoder) -> Surgeon:
        recipe, run = self.recipe, self.run
        examples = self._examples.sample(_SURGEON_EXAMPLES, recipe.seed)
        encoded = encoder.preprocessor.encode(examples)
        batches = run.console.track(
            (batch for _, batch in encoded.batches(BATCH_SIZE)),
            "measuring what the answers depend on",
            -(-len(examples) // BATCH_SIZE),
        )
        calibration = {"examples": len(examples), "digest": examples.digest, "labels": None}
        return Surgeon.of(encoder, batches, calibration, run.console.track)
