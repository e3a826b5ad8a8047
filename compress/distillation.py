"""Distillation: what a pruned encoder learns from the model that it was cut from."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tcompress.anatomy import Anatomy
from tcompress.artifact import Manifest, is_artifact
from tcompress.encoder import Encoder
from tcompress.errors import ArtifactError, InputError, RequestError
from tcompress.preprocessing import Batch, Encoded, real_tokens
from tcompress.transformer import Pooling
from tcompress.workspace import reference_to

from .questions import Questions

_TOKENS_READ = {Pooling.FIRST: 1, Pooling.FIRST_TWO: 2, Pooling.FIRST_PAIR: 2}
_SCALE_EXAMPLES = 256
_BATCH_SIZE = 64


@dataclass(frozen=True)
class Distillation:
    """How much an encoder learns from labels, and how from its teacher.

    The loss is the weighted sum of three parts, each a mean without a unit or in nats.

    Attributes:
        temperature: What both models' logits are divided by before they are compared.
        task_weight: Of the cross-entropy to the labels, where there are any. It counts less than
            the teacher, who has seen the same labels.
        logits_weight: Of the KL divergence from the teacher's answer, times the temperature
            squared, so that its gradient does not depend on the temperature's size.
        token_weight: Of the distance to the teacher's tokens behind every layer.
        dropout: Whether the encoder's dropout is on; its noise would be a distance that no
            weights can close.
    """

    temperature: float = 2.0
    task_weight: float = 0.5
    logits_weight: float = 1.0
    token_weight: float = 1.0
    dropout: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        learned = max(self.logits_weight, self.token_weight)
        if self.temperature <= 0 or learned <= 0 or min(self.weights.values()) < 0:
            msg = f"distillation needs a temperature above 0 and weights from 0 on, got {self}"
            raise RequestError(msg)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each part of the loss, by its name."""
        return {
            "task": self.task_weight,
            "logits": self.logits_weight,
            "tokens": self.token_weight,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a JSON document."""
        return asdict(self)


@dataclass(frozen=True)
class Teacher:
    """Whom an encoder learns from.

    Attributes:
        encoder: The unpruned model, in evaluation mode, on the same device as its student.
        recipe: What is learned from it.
    """

    encoder: Encoder
    recipe: Distillation = field(default_factory=Distillation)

    @cached_property
    def anatomy(self) -> Anatomy:
        """The pieces of the model."""
        return self.encoder.anatomy

    def check(self, student: Encoder) -> None:
        """Raise unless a student can be compared with the teacher, layer by layer.

        Args:
            student: The student.

        Raises:
            RequestError: If their labels, inputs, layers or widths differ.
        """
        for what, mine, theirs in zip(
            ("labels", "input table", "layers", "hidden size"),
            _comparable(self.encoder),
            _comparable(student),
            strict=True,
        ):
            if mine != theirs:
                msg = (
                    f"--teacher {self.encoder.directory}: its {what}: {mine}, the encoder's: "
                    f"{theirs}; name the unpruned model that the encoder was cut from"
                )
                raise RequestError(msg)


@dataclass(frozen=True)
class Outputs:
    """What a model computes on its way.

    Attributes:
        logits: `(batch, labels)`.
        layers: Output of every layer, `(batch, tokens, hidden)` each; of one that is applied
            several times, each time.
    """

    logits: Tensor
    layers: tuple[Tensor, ...]


def outputs_of(encoder: Encoder, anatomy: Anatomy, batch: Batch) -> Outputs:
    """Run an encoder and keep the output of every layer.

    Args:
        encoder: The encoder, in the mode that it is to run in.
        anatomy: Its pieces.
        batch: Model inputs.
    """
    with _recording(anatomy) as recorded:
        logits = encoder.logits(batch)
    layers = (
        output.transpose(0, 1) if layer.ffn_batch_dim else output
        for layer, output in zip(anatomy.applied, recorded, strict=True)
    )
    return Outputs(logits, tuple(layers))


def compared_tokens(anatomy: Anatomy, batch: Batch) -> Tensor:
    """Tell which tokens are compared behind which layer.

    Padding never is. Behind the last layer only the tokens that the head reads are: what stands
    in the others reaches no answer.

    Args:
        anatomy: The pieces of either model.
        batch: Model inputs.

    Returns:
        `(layers, batch, tokens)`, 1 where a token is compared, else 0.
    """
    # mask: (batch, tokens)
    mask = torch.from_numpy(real_tokens(batch, anatomy.embedding.fixed_tokens)).float()
    compared = mask.repeat(len(anatomy.order), 1, 1)
    if read := _TOKENS_READ.get(anatomy.head.pooling):
        compared[-1] = 0.0
        compared[-1, :, :read] = 1.0
    return compared


def token_scales(teacher: Teacher, encoded: Encoded) -> Tensor:
    """Return the mean square of the teacher's compared tokens, on a sample of the examples.

    Args:
        teacher: The teacher.
        encoded: The examples.

    Returns:
        `(layers,)`, on the teacher's device.
    """
    count = len(encoded.lengths)
    rows = list(range(0, count, math.ceil(count / _SCALE_EXAMPLES)))
    total = tokens = torch.zeros(len(teacher.anatomy.order), device=teacher.encoder.device)
    for start in range(0, len(rows), _BATCH_SIZE):
        batch = encoded.collate(rows[start : start + _BATCH_SIZE])
        compared = compared_tokens(teacher.anatomy, batch).to(total.device)
        with torch.no_grad():
            layers = torch.stack(outputs_of(teacher.encoder, teacher.anatomy, batch).layers)
        total = total + (layers.square().mean(-1) * compared).sum((1, 2))
        tokens = tokens + compared.sum((1, 2))
    return total / tokens


def logits_loss(
    student: Tensor, teacher: Tensor, temperature: float, questions: Questions | None = None
) -> Tensor:
    """Return T^2 KL(teacher / T || student / T), the mean over examples, in nats.

    Hinton et al. 2015, arXiv:1503.02531, section 2. Tasks whose answers have no temperature, as
    numbers and vectors, have their own divergence.

    Args:
        student: Logits, `(rows, channels)`.
        teacher: Logits, `(rows, channels)`.
        temperature: T.
        questions: What is asked; None for one class per row.
    """
    if questions is not None:
        decision = questions.decision
        factor = temperature if decision.tempered else 1.0
        theirs, ours = teacher.float() / factor, student.float() / factor
        found = decision.divergences(theirs, ours, questions.members, questions.inputs)
        return found.mean() * factor**2
    ours, theirs = (
        functional.log_softmax(logits.float() / temperature, dim=-1)
        for logits in (student, teacher)
    )
    loss = functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return loss * temperature**2


def token_losses(
    student: Sequence[Tensor], teacher: Sequence[Tensor], compared: Tensor, scales: Tensor
) -> Tensor:
    """Return the distance between the models' tokens behind every layer.

    For layer l with tokens h: the sum over compared tokens of |h_student - h_teacher|^2 over
    their number, the width and `scales[l]`: 0 for equal tokens, 1 for tokens that are all zero.

    Args:
        student: The layers' outputs, `(batch, tokens, hidden)` each.
        teacher: Likewise.
        compared: `(layers, batch, tokens)`, from `compared_tokens`.
        scales: `(layers,)`, from `token_scales`.

    Returns:
        `(layers,)`, non-negative.

    Reference:
        Kurtic et al. 2023 (ZipLM), arXiv:2302.04089, token-level distillation; there without the
        scale.
    """
    distances = (
        (ours.float() - theirs.float()).square().mean(-1)
        for ours, theirs in zip(student, teacher, strict=True)
    )
    # squared: (layers, batch, tokens)
    squared = torch.stack(list(distances))
    return (squared * compared).sum((1, 2)) / compared.sum((1, 2)) / scales


def unpruned_ancestor(directory: Path) -> Path:
    """Return the last model in an artifact's line of descent that had lost nothing yet.

    Args:
        directory: A pruned artifact, or a model directory (its own ancestor).

    Raises:
        ArtifactError: If a model of that line was moved or changed.
    """
    seen: set[Path] = set()
    current = directory
    while is_artifact(current) and not (manifest := Manifest.read(current)).plan.is_dense:
        seen.add(current)
        current = Path(manifest.parent.path)
        if current in seen or not _has_digest(current, manifest.parent.digest):
            msg = (
                f"{directory}: {current}, which it was made from, was moved or changed since; "
                "name the unpruned model with --teacher DIR, or pass --no-distill"
            )
            raise ArtifactError(msg)
    return current


def _has_digest(directory: Path, digest: str) -> bool:
    try:
        return reference_to(directory).digest == digest
    except InputError:
        return False


def _comparable(encoder: Encoder) -> tuple[Any, ...]:
    anatomy = encoder.anatomy
    table = tuple(anatomy.embedding.tokens.weight.shape)
    return encoder.labels, table, len(anatomy.order), anatomy.hidden_size


@contextmanager
def _recording(anatomy: Anatomy) -> Iterator[list[Tensor]]:
    """Collect the layers' outputs while the block runs, as the model lays them out."""
    outputs: list[Tensor] = []
    handles = []

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        # layers of transformers 4 may give a tuple
        outputs.append(output[0] if isinstance(output, tuple) else output)

    try:
        for layer in anatomy.layers:
            handles.append(layer.last_module.register_forward_hook(record))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
