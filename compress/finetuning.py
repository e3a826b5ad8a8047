"""Fine-tuning: to make a first model, and to recover after pruning."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tcompress.encoder import Encoder
from tcompress.errors import CalibrationError, RequestError
from tcompress.machine import cpu_features, has_fast_bf16, threads_for
from tcompress.preprocessing import Encoded

from .checkpoint import Checkpoint, State
from .distillation import Teacher
from .freezing import frozen
from .judging import predict_all
from .objective import Objective
from .progress import Progress, silent
from .questions import Questions

_BATCHES_PER_BUCKET = 32
# Left out of a recipe's JSON while they are at these values, so that recipes from before they
# existed keep their digests.
_LATER_FIELDS = {"accumulate": 1, "patience": None, "vary_texts": 0.0}


class TrainingPrecision(StrEnum):
    """Number format of the matrix products while training; weights stay fp32."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


@dataclass(frozen=True)
class FinetuneRecipe:
    """How to fine-tune.

    Attributes:
        epochs: Passes over the training split; 0 leaves the encoder as it is.
        learning_rate: Peak of a linear warm-up and linear decay.
        batch_size: Examples per batch.
        freeze_layers: Lowest layers to leave as they are; the embeddings with them.
        precision: Of the matrix products.
        weight_decay: Of AdamW, on matrices only.
        warmup: Fraction of all steps to warm up over.
        seed: Of shuffling and dropout.
        accumulate: Batches per step; their gradients add up to that of one large batch.
        patience: Epochs without improvement after which to stop, or None to go on to the end.
        vary_texts: Fraction of the texts that each epoch replaces by new ones; then the teacher
            alone says what is right.
    """

    epochs: int = 1
    learning_rate: float = 5e-5
    batch_size: int = 32
    freeze_layers: int = 0
    precision: TrainingPrecision = TrainingPrecision.FP32
    weight_decay: float = 0.01
    warmup: float = 0.1
    seed: int = 0
    accumulate: int = 1
    patience: int | None = None
    vary_texts: float = 0.0

    def __post_init__(self) -> None:
        """Coerce the mode and check the numbers."""
        object.__setattr__(self, "precision", TrainingPrecision(self.precision))
        if self.epochs < 0 or self.batch_size < 1 or self.freeze_layers < 0:
            msg = f"epochs, batch_size and freeze_layers out of range: {self}"
            raise RequestError(msg)
        if self.accumulate < 1 or (self.patience is not None and self.patience < 1):
            msg = f"accumulate and patience must be at least 1: {self}"
            raise RequestError(msg)
        if not 0 <= self.vary_texts <= 1:
            msg = f"vary_texts must be a fraction, got {self.vary_texts}"
            raise RequestError(msg)

    @property
    def step_size(self) -> int:
        """Examples per step."""
        return self.batch_size * self.accumulate

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a JSON document."""
        document = asdict(self) | {"precision": self.precision.value}
        for name, value in _LATER_FIELDS.items():
            if document[name] == value:
                del document[name]
        return document


@dataclass(frozen=True)
class Split:
    """Examples, ready for the model.

    Attributes:
        encoded: The inputs.
        labels: What is right, `(rows, ...)`, as the task says; None where that is not known.
        variant: Returns the inputs of an epoch, by its number; None for the same in all.
    """

    encoded: Encoded
    labels: Tensor | None
    variant: Callable[[int], Encoded] | None = None

    def __len__(self) -> int:
        return len(self.encoded.lengths)


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave; fractions and KL divergence are those on the validation split.

    Attributes:
        number: From 1; 0 is the encoder before training.
        loss: Mean training loss, or None before training.
        accuracy: Fraction answered as labelled, or what stands for it in the task; None without
            labels.
        agreement: The same by the teacher's answers; None without a teacher.
        divergence: Mean KL(teacher || encoder) in nats, lower is better; None without a teacher.
        parts: Mean of each part of the training loss, before its weight.
    """

    number: int
    loss: float | None
    accuracy: float | None
    agreement: float | None = None
    divergence: float | None = None
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def rank(self) -> tuple[float, float]:
        """What epochs are chosen by, higher is better.

        Accuracy, or without labels agreement with the teacher; equal ones by closeness to it.
        """
        first = self.agreement if self.accuracy is None else self.accuracy
        assert first is not None
        return first, -(self.divergence or 0.0)


def kept_epoch(history: Sequence[Epoch]) -> Epoch:
    """Return the epoch whose weights are kept: the best, the first of equals.

    Args:
        history: What each epoch gave.
    """
    return max(history, key=lambda epoch: epoch.rank)


def finetune_(
    encoder: Encoder,
    train: Split,
    validation: Split,
    recipe: FinetuneRecipe,
    progress: Progress = silent,
    *,
    teacher: Teacher | None = None,
    checkpoint: Checkpoint | None = None,
) -> list[Epoch]:
    """Fine-tune an encoder in place, from labels, a teacher or both; keep the best epoch.

    The encoder before training counts as epoch 0, so the accuracy on the validation split (without
    labels, the agreement with the teacher) never falls. Frozen parameters are not changed, to
    the bit.

    Args:
        encoder: The encoder; left in evaluation mode.
        train: Examples to learn from.
        validation: Examples to choose the epoch by.
        recipe: How.
        progress: Shows progress.
        teacher: Whom to learn from besides the labels, which may then be missing.
        checkpoint: Where the state is kept after each epoch; a run of the same key continues
            from there, to the same weights. The caller removes it.

    Returns:
        What each epoch gave, epoch 0 first.

    Raises:
        RequestError: If the precision, the number of frozen layers or the teacher does not fit,
            or there is nothing to learn from.
        CalibrationError: If the loss is no longer finite.
        StorageError: If the checkpoint cannot be written.
    """
    check_precision(encoder, recipe.precision)
    if teacher is not None:
        teacher.check(encoder)
    elif train.labels is None or validation.labels is None or train.variant is not None:
        what = "without labels" if train.variant is None else "on varied texts"
        msg = f"fine-tuning {what} needs a teacher: --distill, or --teacher DIR"
        raise RequestError(msg)
    with threads_for(encoder.parameters), frozen(encoder, recipe.freeze_layers) as trainable:
        training = _Training(encoder, train, validation, recipe, teacher, trainable)
        training.run(progress, checkpoint)
    return training.history


class _Training:
    """A training run between two epochs.

    Args:
        encoder: The encoder to train.
        train: Examples to learn from.
        validation: Examples to choose the epoch by.
        recipe: How.
        teacher: Whom to learn from, or None.
        trainable: The parameters to change.
    """

    def __init__(
        self,
        encoder: Encoder,
        train: Split,
        validation: Split,
        recipe: FinetuneRecipe,
        teacher: Teacher | None,
        trainable: Sequence[torch.nn.Parameter],
    ) -> None:
        self.encoder = encoder
        self.train = train
        self.validation = validation
        self.recipe = recipe
        self.objective = Objective(encoder, train.encoded, train.labels, teacher)
        self.right_logits = (
            None if teacher is None else predict_all(teacher.encoder, validation.encoded)
        )
        self.rng = np.random.default_rng(recipe.seed)
        self.steps_per_epoch = math.ceil(len(train) / recipe.step_size)
        steps = self.steps_per_epoch * recipe.epochs
        self.optimizer, self.schedule = _optimizer(trainable, recipe, steps)
        self.scaler = torch.amp.GradScaler(enabled=recipe.precision is TrainingPrecision.FP16)
        self.history: list[Epoch] = []
        self.best = _copy_state(encoder)

    def run(self, progress: Progress, checkpoint: Checkpoint | None) -> None:
        """Train to the end, and leave the best epoch's weights in the encoder."""
        torch.manual_seed(self.recipe.seed)
        if checkpoint is not None and (state := checkpoint.read()) is not None:
            self._load(state)
            checkpoint.tell(f"fine-tuning continues after epoch {len(self.history) - 1}")
        else:
            self.history.append(self._judge(0, {}))
        try:
            while not self._is_over():
                self._epoch(progress)
                if checkpoint is not None:
                    checkpoint.write(self._state())
        finally:
            self.encoder.model.eval()
            self.encoder.model.load_state_dict(self.best)

    def _is_over(self) -> bool:
        done = self.history[-1].number
        waited = done - kept_epoch(self.history).number
        patience = self.recipe.patience
        return done >= self.recipe.epochs or (patience is not None and waited >= patience)

    def _epoch(self, progress: Progress) -> None:
        number = len(self.history)
        self.encoder.model.train(self.objective.dropout)
        encoded = self.train.encoded
        if self.train.variant is not None:
            encoded = self.train.variant(number)
            self.objective = self.objective.over(encoded)
        batches = _shuffled(encoded.lengths, self.recipe.step_size, self.rng)
        steps = []
        what = f"fine-tuning, epoch {number} of {self.recipe.epochs}"
        for rows in progress(batches, what, self.steps_per_epoch):
            scale = self.scaler.get_scale()
            steps.append(self._step(rows))
            if self.scaler.get_scale() >= scale:  # else fp16 overflowed and the step was skipped
                self.schedule.step()
        self.encoder.model.eval()
        means = {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}
        self.history.append(self._judge(number, means))
        if kept_epoch(self.history).number == number:
            self.best = _copy_state(self.encoder)

    def _step(self, rows: list[int]) -> dict[str, float]:
        """Take one step; returns the loss and its parts."""
        self.optimizer.zero_grad(set_to_none=True)
        sums: defaultdict[str, float] = defaultdict(float)
        for part in self.objective.parts(rows, self.recipe.batch_size):
            with _autocast(self.encoder, self.recipe.precision):
                losses = self.objective.losses(part)
            self.scaler.scale(losses["loss"]).backward()
            for name, value in losses.items():
                sums[name] += float(value.detach())
        if not math.isfinite(sums["loss"]):
            msg = (
                f"the training loss is {sums['loss']}; lower --learning-rate "
                "or use --precision fp32"
            )
            raise CalibrationError(msg)
        self.scaler.unscale_(self.optimizer)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return sums

    def _judge(self, number: int, losses: dict[str, float]) -> Epoch:
        """Look at the validation split after an epoch."""
        logits = predict_all(self.encoder, self.validation.encoded)
        labels, right = self.validation.labels, self.right_logits
        asked = Questions.of(self.encoder, self.validation.encoded)
        return Epoch(
            number,
            losses.get("loss"),
            accuracy=None if labels is None else asked.score(logits, labels),
            agreement=None if right is None else asked.score(logits, asked.own(right)),
            divergence=None if right is None else asked.divergence(right, logits),
            parts={name: loss for name, loss in losses.items() if name != "loss"},
        )

    def _state(self) -> State:
        """Return everything that the next epoch depends on."""
        return {
            "model": self.encoder.model.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": [asdict(epoch) for epoch in self.history],
            "order": json.dumps(self.rng.bit_generator.state),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if self.encoder.device.type == "cuda" else [],
        }

    def _load(self, state: State) -> None:
        self.encoder.model.load_state_dict(state["model"])
        self.best = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.rng.bit_generator.state = json.loads(state["order"])
        torch.set_rng_state(state["torch"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])


def choose_precision(device: str) -> TrainingPrecision:
    """Return bf16 where the hardware multiplies in it, else fp32.

    Args:
        device: `cpu` or `cuda`.
    """
    if device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = has_fast_bf16(cpu_features())
    return TrainingPrecision.BF16 if fast else TrainingPrecision.FP32


def check_precision(encoder: Encoder, precision: TrainingPrecision) -> None:
    """Raise unless an encoder can be trained in a precision where it is.

    Args:
        encoder: The encoder, on its device.
        precision: The precision.

    Raises:
        RequestError: For fp16 on a CPU.
    """
    if precision is TrainingPrecision.FP16 and encoder.device.type == "cpu":
        msg = "--precision fp16 trains on a GPU only; on a CPU use bf16 or fp32"
        raise RequestError(msg)


def _autocast(encoder: Encoder, precision: TrainingPrecision) -> AbstractContextManager[Any]:
    if precision is TrainingPrecision.FP32:
        return nullcontext()
    kind = torch.bfloat16 if precision is TrainingPrecision.BF16 else torch.float16
    return torch.autocast(encoder.device.type, dtype=kind)


def _optimizer(
    parameters: Sequence[torch.nn.Parameter], recipe: FinetuneRecipe, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    # fused: the tables of a small encoder would cost a quarter of the step
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    warm = max(1, round(recipe.warmup * steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return max(0.0, (steps - step) / max(1, steps - warm))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _shuffled(lengths: Any, batch_size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Yield random batches of examples of similar length, in random order."""
    order = rng.permutation(len(lengths))
    size = batch_size * _BATCHES_PER_BUCKET
    batches: list[list[int]] = []
    for start in range(0, len(order), size):
        bucket = order[start : start + size]
        bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
        batches += [bucket[i : i + batch_size].tolist() for i in range(0, len(bucket), batch_size)]
    for i in rng.permutation(len(batches)):
        yield batches[int(i)]


def _copy_state(encoder: Encoder) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in encoder.model.state_dict().items()}
