"""Fine-tuning: to make a first model, and to recover after pruning."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tcompress.encoder import Encoder
from tcompress.errors import CalibrationError, RequestError
from tcompress.machine import cpu_features, has_fast_bf16, threads_for
from tcompress.preprocessing import Encoded

_BATCHES_PER_BUCKET = 32


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
        batch_size: Examples per step.
        freeze_layers: Lowest layers to leave as they are; the embeddings with them.
        precision: Of the matrix products.
        weight_decay: Of AdamW, on matrices only.
        warmup: Fraction of all steps to warm up over.
        seed: Of shuffling and dropout.
    """

    epochs: int = 1
    learning_rate: float = 5e-5
    batch_size: int = 32
    freeze_layers: int = 0
    precision: TrainingPrecision = TrainingPrecision.FP32
    weight_decay: float = 0.01
    warmup: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Coerce the mode and check the numbers."""
        object.__setattr__(self, "precision", TrainingPrecision(self.precision))
        if self.epochs < 0 or self.batch_size < 1 or self.freeze_layers < 0:
            msg = f"epochs, batch_size and freeze_layers out of range: {self}"
            raise RequestError(msg)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a JSON document."""
        return asdict(self) | {"precision": self.precision.value}


@dataclass(frozen=True)
class Split:
    """Labelled examples, ready for the model.

    Attributes:
        encoded: The inputs.
        labels: `(examples,)`, class indices.
    """

    encoded: Encoded
    labels: Tensor


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave.

    Attributes:
        number: From 1; 0 is the encoder before training.
        loss: Mean training loss, or None before training.
        accuracy: On the validation split, 0 to 1.
    """

    number: int
    loss: float | None
    accuracy: float


Progress = Callable[[Iterable[list[int]], str, int], Iterable[list[int]]]
"""Passes batches on and shows how far it is: (batches, description, total)."""


def finetune_(
    encoder: Encoder,
    train: Split,
    validation: Split,
    recipe: FinetuneRecipe,
    progress: Progress = lambda batches, _what, _total: batches,
) -> list[Epoch]:
    """Fine-tune an encoder in place by cross-entropy, and keep the best epoch's weights.

    The encoder before training counts as epoch 0, so the accuracy on the validation split never
    falls. Frozen parameters are not changed, to the bit.

    Args:
        encoder: The encoder; left in evaluation mode.
        train: Examples to learn from.
        validation: Examples to choose the epoch by.
        recipe: How.
        progress: Shows progress.

    Returns:
        What each epoch gave, epoch 0 first.

    Raises:
        RequestError: If the precision or the number of frozen layers does not fit.
        CalibrationError: If the loss is no longer finite.
    """
    check_precision(encoder, recipe.precision)
    with threads_for(encoder.parameters):
        return _finetune(encoder, train, validation, recipe, progress)


def _finetune(
    encoder: Encoder, train: Split, validation: Split, recipe: FinetuneRecipe, progress: Progress
) -> list[Epoch]:
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    model = encoder.model
    states = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    trainable = _freeze_(encoder, recipe.freeze_layers)
    history = [Epoch(0, None, accuracy(encoder, validation))]
    best = _copy_state(encoder)
    steps_per_epoch = math.ceil(len(train.labels) / recipe.batch_size)
    optimizer, schedule = _optimizer(trainable, recipe, steps_per_epoch * recipe.epochs)
    scaler = torch.amp.GradScaler(enabled=recipe.precision is TrainingPrecision.FP16)
    try:
        for number in range(1, recipe.epochs + 1):
            model.train()
            batches = _shuffled(train.encoded.lengths, recipe.batch_size, rng)
            losses = []
            what = f"fine-tuning, epoch {number} of {recipe.epochs}"
            for rows in progress(batches, what, steps_per_epoch):
                scale = scaler.get_scale()
                losses.append(_step(encoder, train, rows, recipe, optimizer, scaler))
                if scaler.get_scale() >= scale:  # else fp16 overflowed and the step was skipped
                    schedule.step()
            model.eval()
            history.append(Epoch(number, float(np.mean(losses)), accuracy(encoder, validation)))
            if history[-1].accuracy > max(epoch.accuracy for epoch in history[:-1]):
                best = _copy_state(encoder)
    finally:
        model.eval()
        for parameter, state in states:
            parameter.requires_grad_(state)
        model.load_state_dict(best)
    return history


def accuracy(encoder: Encoder, split: Split, batch_size: int = 64) -> float:
    """Return the fraction of examples that an encoder classifies as labelled.

    Args:
        encoder: The encoder.
        split: The examples.
        batch_size: Examples per batch.
    """
    right = 0
    for rows, batch in split.encoded.batches(batch_size):
        predicted = torch.from_numpy(encoder.predict(batch)).argmax(-1)
        right += int((predicted == split.labels[rows]).sum())
    return right / len(split.labels)


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


def _step(
    encoder: Encoder,
    train: Split,
    rows: list[int],
    recipe: FinetuneRecipe,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> float:
    targets = train.labels[rows].to(encoder.device)
    with _autocast(encoder, recipe.precision):
        logits = encoder.logits(train.encoded.collate(rows))
    loss = functional.cross_entropy(logits.float(), targets)
    if not torch.isfinite(loss):
        msg = f"the training loss is {float(loss)}; lower --learning-rate or use --precision fp32"
        raise CalibrationError(msg)
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    scaler.step(optimizer)
    scaler.update()
    return float(loss.detach())


def _autocast(encoder: Encoder, precision: TrainingPrecision) -> AbstractContextManager[Any]:
    if precision is TrainingPrecision.FP32:
        return nullcontext()
    kind = torch.bfloat16 if precision is TrainingPrecision.BF16 else torch.float16
    return torch.autocast(encoder.device.type, dtype=kind)


def _freeze_(encoder: Encoder, freeze_layers: int) -> list[torch.nn.Parameter]:
    """Switch gradients off for the embeddings and lowest layers; returns what is left."""
    anatomy = encoder.anatomy
    if freeze_layers > len(anatomy.layers):
        msg = f"--freeze-layers {freeze_layers}: the encoder has {len(anatomy.layers)} layers"
        raise RequestError(msg)
    if freeze_layers:
        embedding = anatomy.embedding
        modules: list[torch.nn.Module | None] = [embedding.tokens, embedding.token_types]
        modules += [embedding.norm, embedding.projection]
        for layer in anatomy.layers[:freeze_layers]:
            modules += [*layer.projections(), layer.output, layer.ffn_in, layer.ffn_out]
            modules += [layer.attention_norm, layer.ffn_norm]
        for module in modules:
            if module is not None:
                module.requires_grad_(False)
        if isinstance(embedding.positions, torch.nn.Parameter):
            embedding.positions.requires_grad_(False)
    return [parameter for parameter in encoder.model.parameters() if parameter.requires_grad]


def _optimizer(
    parameters: Sequence[torch.nn.Parameter], recipe: FinetuneRecipe, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
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
