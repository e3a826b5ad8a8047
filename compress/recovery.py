"""Fine-tuning from artifact to artifact: finds the teacher, resumes, and says what it brought."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tcompress.artifact import Artifact, Manifest, is_artifact
from tcompress.data import Examples
from tcompress.encoder import Encoder
from tcompress.errors import RequestError
from tcompress.loading import load_encoder
from tcompress.preprocessing import Encoded
from tcompress.stages import StageRun
from tcompress.tasks import decision_of
from tcompress.workspace import reference_to

from .augmentation import check_variable, varied
from .checkpoint import Checkpoint, Phases
from .distillation import Distillation, Teacher, unpruned_ancestor
from .finetuning import Epoch, FinetuneRecipe, Split, finetune_, kept_epoch
from .questions import targets_of


def choose_teacher(directory: Path, distill: bool | None, teacher: Path | None) -> Path | None:
    """Return the directory of the model to learn from, or None where only labels are.

    Args:
        directory: The encoder to fine-tune.
        distill: What `--distill` or `--no-distill` said; None: distil what is pruned.
        teacher: Directory from `--teacher`, or None for the unpruned ancestor.

    Raises:
        RequestError: If what was asked for contradicts itself or the encoder is not pruned.
        ArtifactError: If the ancestor was moved or changed.
    """
    if teacher is not None and distill is False:
        msg = "--no-distill and --teacher contradict each other; leave one of them out"
        raise RequestError(msg)
    if teacher is not None or distill is False:
        return teacher
    if is_artifact(directory) and not Manifest.read(directory).plan.is_dense:
        return unpruned_ancestor(directory)
    if distill:
        msg = f"--distill: {directory} is not pruned; name whom it learns from with --teacher DIR"
        raise RequestError(msg)
    return None


@dataclass(frozen=True)
class Recovery:
    """One run of the stage `finetune`.

    Attributes:
        run: What it reads and writes.
        recipe: How to fine-tune.
        device: `cpu` or `cuda`.
        teacher: Directory of the model to learn from, or None.
        distillation: What is learned from it.
    """

    run: StageRun
    recipe: FinetuneRecipe
    device: str
    teacher: Path | None
    distillation: Distillation

    def artifact(self) -> Artifact:
        """Fine-tune and write the artifact, unless that is done; continue what was killed."""
        train = self.run.data.training_examples()
        validation = self.run.data.workspace_split("validation")
        recipe = self.recipe.to_json() | {"train": train.digest, "validation": validation.digest}
        recipe["device"] = self.device
        if self.teacher is not None:
            reference = {"teacher": reference_to(self.teacher).digest}
            recipe["distillation"] = self.distillation.to_json() | reference
        key = self.run.key(recipe)
        with Phases(self.run.output, key.digest, self.run.console.say).kept() as phases:
            checkpoint = phases.checkpoint("epochs")
            return self.run.transform(
                key, lambda encoder: self._finetune(encoder, train, validation, checkpoint)
            )

    def _finetune(
        self, encoder: Encoder, train: Examples, validation: Examples, checkpoint: Checkpoint
    ) -> dict[str, Any]:
        history = finetune_(
            encoder.to(self.device),
            self._varied(encoder, train, self._split(encoder, train)),
            self._split(encoder, validation),
            self.recipe,
            self.run.console.track,
            teacher=self._teacher(),
            checkpoint=checkpoint,
        )
        encoder.to("cpu")
        return {
            "teacher": None if self.teacher is None else asdict(reference_to(self.teacher)),
            "kept_epoch": kept_epoch(history).number,
            "measure": decision_of(encoder.task).measure,
            "epochs": [asdict(epoch) for epoch in history],
        }

    def _teacher(self) -> Teacher | None:
        if self.teacher is None:
            return None
        return Teacher(load_encoder(self.teacher).to(self.device), self.distillation)

    def _split(self, encoder: Encoder, examples: Examples) -> Split:
        encoded = self.run.encode(encoder, examples)
        targets = targets_of(encoder, examples, encoded)
        if targets is None and self.teacher is None:
            decision_of(encoder.task).targets(
                encoder.labels, examples, encoded
            )  # says what is missing
        if targets is None:
            self.run.console.say(f"finetune: {examples.origin} has no labels; the teacher answers")
        return Split(encoded, targets)

    def _varied(self, encoder: Encoder, examples: Examples, split: Split) -> Split:
        fraction = self.recipe.vary_texts
        if not fraction:
            return split
        check_variable(examples)

        def variant(epoch: int) -> Encoded:
            return encoder.preprocessor.encode(
                varied(examples, fraction, (self.recipe.seed, epoch))
            )

        return replace(split, variant=variant)


def closing_line(artifact: Artifact) -> str:
    """Say what fine-tuning brought, by the measure that the epoch was chosen by.

    Args:
        artifact: What the stage wrote.
    """
    history = [Epoch(**epoch) for epoch in artifact.manifest.details["epochs"]]
    before, after = history[0], kept_epoch(history)
    # artifacts from before there were other tasks name none
    measured = artifact.manifest.details.get("measure", "accuracy")
    measure = "agreement with the teacher" if before.accuracy is None else measured
    return (
        f"finetune: validation {measure} {before.rank[0]:.4f} before, {after.rank[0]:.4f} after; "
        f"kept epoch {after.number} of {len(history) - 1}"
    )
