"""Whether an exported file computes what its source computes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax

from tcompress.anatomy import Anatomy
from tcompress.encoder import Encoder
from tcompress.errors import ExportError, ModelError, ParityError
from tcompress.plan import CompressionPlan, Precision
from tcompress.preprocessing import Batch, real_tokens
from tcompress.runtime import Predict
from tcompress.tasks import Task, decision_of
from tcompress.transformer import Pooling

Array = npt.NDArray[Any]
_SHAPES = ((1, 1), (1, 17), (2, 8), (3, 33), (8, 5), (8, 33))
_SIZES = (1, 2, 3, 8)
_LONG_TOKENS = 128
_CLEAR_MARGIN = 0.2
_EXCLUSIVE = (Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION)
_DISTANCES = {
    Task.REGRESSION: "half the mean squared difference",
    Task.EMBEDDING: "one less the mean cosine",
}
# What ONNX Runtime may execute for an operator of the file.
_EXECUTED_AS = {"MatMulIntegerToFloat": ("MatMulIntegerToFloat", "DynamicQuantizeMatMul")}


@dataclass(frozen=True)
class ParityLimits:
    """How far an exported file may be from its source.

    Attributes:
        max_abs_difference: Largest allowed difference of a logit, relative to the largest logit
            of the source where that exceeds 1; None: not limited.
        max_mean_kl: Largest allowed mean KL divergence from source to file, in nats, or what
            stands for it in the task: of numbers half the squared difference, relative as above,
            of vectors one less the cosine.
        min_agreement: Smallest allowed fraction of equal decisions among the inputs where the
            source is clear (its two best probabilities differ by 0.2 or more).
        if_not_finite: What to do about logits that are not finite.
    """

    max_abs_difference: float | None = None
    max_mean_kl: float = 0.05
    min_agreement: float = 0.97
    if_not_finite: str = "check its weights"


FP32_LIMITS = ParityLimits(max_abs_difference=1e-4, max_mean_kl=1e-6, min_agreement=1.0)
INT8_LIMITS = ParityLimits()
# Of all-MiniLM-L6-v2's vectors int8 takes 0.014 of the cosine in ONNX Runtime and 0.049 in torch
# (0.009 and 0.030 of real sentences), of tiny BERTs' 0.0015; whether that is good enough is for
# `evaluate` and `gate` to say.
INT8_VECTOR_LIMITS = ParityLimits(max_mean_kl=0.1)
# On MiniLM-L6 and eight families of tiny encoders bf16 is off by up to 0.018 and 6e-5 nats, int8
# by up to 0.3 and 0.01. fp16 rounds 8 times as finely, and divergence goes by the square: up to
# 0.0026 and 1e-6 were found. The limits leave room for more layers.
BF16_LIMITS = ParityLimits(max_abs_difference=0.1, max_mean_kl=1e-3, min_agreement=0.99)
FP16_LIMITS = ParityLimits(
    max_abs_difference=0.0125,
    max_mean_kl=2e-5,
    min_agreement=1.0,
    if_not_finite="values above 65504 overflow fp16; quantize with --precision bf16 or mixed",
)


def limits_for(plan: CompressionPlan, task: Task) -> ParityLimits:
    """Return how far a file may be off: as far as its coarsest precision.

    Args:
        plan: The precisions that it runs in.
        task: What its outputs mean.
    """
    used = plan.precisions
    int8 = INT8_VECTOR_LIMITS if task is Task.EMBEDDING else INT8_LIMITS
    limits = int8 if Precision.INT8 in used else FP32_LIMITS
    if limits is FP32_LIMITS and used & {Precision.BF16, Precision.FP16}:
        limits = BF16_LIMITS if Precision.BF16 in used else FP16_LIMITS
    if Precision.FP16 in used:
        limits = replace(limits, if_not_finite=FP16_LIMITS.if_not_finite)
    return limits


@dataclass(frozen=True)
class Parity:
    """How far an exported file is from its source, over all inputs tried.

    Attributes:
        examples: Inputs tried.
        shapes: Batch sizes and lengths tried, each also with padding.
        max_abs_difference: Largest difference of a logit, relative to the largest logit of the
            source where that exceeds 1.
        mean_kl: Mean KL divergence from source to file, in nats, or what stands for it in the
            task, as in `ParityLimits`.
        agreement: Fraction of equal decisions where the source is clear; None of tasks that decide
            on no classes: spans, numbers and vectors.
    """

    examples: int
    shapes: tuple[tuple[int, int], ...]
    max_abs_difference: float
    mean_kl: float
    agreement: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as a JSON document."""
        return asdict(self) | {"shapes": [list(shape) for shape in self.shapes]}


def check_parity(
    encoder: Encoder,
    predict: Predict,
    limits: ParityLimits,
    examples: tuple[Batch, ...] = (),
    *,
    random_inputs: bool = True,
) -> Parity:
    """Compare a file with its source at several batch sizes, lengths and paddings.

    Args:
        encoder: The source, in fp32.
        predict: The file, opened in the engine that serves it.
        limits: How far it may be off.
        examples: Real inputs to try as well.
        random_inputs: Whether to try inputs that were made up; int8 that was calibrated holds for
            inputs like those it was calibrated on, and for no others.

    Returns:
        How far it is off.

    Raises:
        ParityError: If it is off by more than the limits, in shape, or not finite.
        ModelError: If the source's own answers are not finite.
    """
    batches = [*(parity_batches(encoder) if random_inputs else ()), *examples]
    pairs = [(encoder.predict(batch), predict(batch)) for batch in batches]
    for batch, (source, exported) in zip(batches, pairs, strict=True):
        if not np.isfinite(source).all():
            msg = f"{encoder.directory}: its own answers are not finite; check its weights"
            raise ModelError(msg)
        _check_form(batch, source, exported, limits)
    fixed_tokens = encoder.preprocessor.fixed_tokens
    source, exported = (
        np.concatenate(
            [_read(b, pair[i], fixed_tokens) for b, pair in zip(batches, pairs, strict=True)]
        )
        for i in range(2)
    )
    members = [_members(b, pair[0], fixed_tokens) for b, pair in zip(batches, pairs, strict=True)]
    scale = max(1.0, float(np.abs(source).max()))
    unit = scale if encoder.task is Task.REGRESSION else 1.0
    parity = Parity(
        examples=sum(len(pair[0]) for pair in pairs),
        shapes=tuple(sorted({_shape_of(b, fixed_tokens) for b in batches})),
        max_abs_difference=float(np.abs(source - exported).max()) / scale,
        mean_kl=_divergence(encoder.task, source / unit, exported / unit, members),
        agreement=_agreement(encoder.task, source, exported),
    )
    _check_limits(parity, limits, encoder.task)
    return parity


def check_executed(executed: Mapping[str, int], expected: Mapping[str, int]) -> None:
    """Raise unless the engine executes what the plan asks for: equal answers do not tell.

    Args:
        executed: How many operators of each kind ONNX Runtime executes.
        expected: How many of each kind that matters the file has to hold.

    Raises:
        ExportError: If there are more or fewer.
    """
    for op, count in expected.items():
        names = _EXECUTED_AS.get(op, (op,))
        found = sum(executed.get(name, 0) for name in names)
        if found != count:
            msg = (
                f"ONNX Runtime executes {found} {' or '.join(names)} for this file, "
                f"the plan asks for {count}; another version of onnxruntime may do better"
            )
            raise ExportError(msg)


def parity_batches(encoder: Encoder, seed: int = 0) -> Iterator[Batch]:
    """Yield inputs of several shapes: whole, and padded at the right and at the left.

    Images and spectrograms, which all have one shape, come in several numbers.

    Token types vary and padded places hold the padding id, as in real batches, so that a file
    which mistakes one input for another cannot look right.

    Args:
        encoder: The encoder that is to be compared.
        seed: Seed of the values.

    Yields:
        Batches.
    """
    preprocessor, embedding = encoder.preprocessor, encoder.anatomy.embedding
    types = 0 if embedding.token_types is None else embedding.token_types.num_embeddings
    rng = np.random.default_rng(seed)
    if preprocessor.fixed_tokens is not None:
        for size in _SIZES:
            yield preprocessor.random_batch(size, preprocessor.fixed_tokens, seed)
        return
    longest = min(preprocessor.max_tokens, _LONG_TOKENS)
    for size, tokens in (*_SHAPES, (1, longest), (4, longest)):
        batch = preprocessor.random_batch(size, min(tokens, longest), seed)
        if types and "token_type_ids" in batch:
            batch["token_type_ids"] = rng.integers(0, types, _shape_of(batch), dtype=np.int64)
        yield batch
        if _shape_of(batch)[1] > 1:
            right = _with_padding(batch, embedding.input_name, preprocessor.padding_id, rng)
            yield right
            if not _first_may_mean_nothing(encoder.anatomy):
                yield {name: np.ascontiguousarray(a[:, ::-1]) for name, a in right.items()}


def _first_may_mean_nothing(anatomy: Anatomy) -> bool:
    """Tell whether with padding at the left a token would be read from which all is hidden.

    Libraries differ in what attention to nothing gives.
    """
    local = any(layer.terms is not None and layer.terms.local for layer in anatomy.layers)
    return (local or not anatomy.padding_reads) and anatomy.head.pooling is Pooling.FIRST


def _shape_of(batch: Batch, fixed_tokens: int | None = None) -> tuple[int, int]:
    size, tokens = real_tokens(batch, fixed_tokens).shape
    return size, tokens


def _with_padding(
    batch: Batch, main: str, padding_id: int | None, rng: np.random.Generator
) -> Batch:
    size, tokens = _shape_of(batch)
    lengths = rng.integers(1, tokens, size)  # at least one token, at least one padded place
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    padded = batch | {"attention_mask": mask}
    if padding_id is not None:
        padded[main] = np.where(mask == 1, batch[main], padding_id)
    return padded


def _read(batch: Batch, answers: Array, fixed_tokens: int | None) -> Array:
    """Return the answers that anybody reads, `(rows, channels)`: those at padding are not."""
    answers = answers.astype(np.float64)
    return answers[real_tokens(batch, fixed_tokens)] if answers.ndim == 3 else answers


def _members(batch: Batch, answers: Array, fixed_tokens: int | None) -> npt.NDArray[np.int64]:
    """Return the place in the batch of each row that `_read` returns."""
    if answers.ndim == 3:
        return np.nonzero(real_tokens(batch, fixed_tokens))[0]
    return np.arange(len(answers))


def _check_form(batch: Batch, source: Array, exported: Array, limits: ParityLimits) -> None:
    what = f"on a batch of shape {next(iter(batch.values())).shape}"
    if exported.shape != source.shape:
        msg = f"{what} the file gives logits {exported.shape}, its source {source.shape}"
        raise ParityError(msg)
    if not np.isfinite(exported).all():
        msg = f"{what} the file gives logits that are not finite; {limits.if_not_finite}"
        raise ParityError(msg)


def _check_limits(parity: Parity, limits: ParityLimits, task: Task) -> None:
    faults = []
    top = limits.max_abs_difference
    if top is not None and not parity.max_abs_difference <= top:
        faults.append(f"logits differ by {parity.max_abs_difference:.3g} (limit {top:.3g})")
    if not parity.mean_kl <= limits.max_mean_kl:
        what = _DISTANCES.get(task, "mean KL")
        faults.append(f"{what} is {parity.mean_kl:.3g} (limit {limits.max_mean_kl:.3g})")
    if parity.agreement is not None and not parity.agreement >= limits.min_agreement:
        faults.append(
            f"clear decisions agree in {parity.agreement:.2%} (limit {limits.min_agreement:.2%})"
        )
    if faults:
        msg = f"the exported file does not compute what its source does: {'; '.join(faults)}"
        raise ParityError(msg)


def _divergence(
    task: Task, source: Array, exported: Array, members: Sequence[npt.NDArray[np.int64]]
) -> float:
    """Return the mean over inputs of the task's own divergence, for most tasks the KL in nats."""
    sizes = [int(part.max()) + 1 for part in members]
    starts = np.cumsum([0, *sizes])
    owners = np.concatenate([part + start for part, start in zip(members, starts, strict=False)])
    rows = (torch.from_numpy(source), torch.from_numpy(exported))
    found = decision_of(task).divergences(*rows, torch.from_numpy(owners), int(starts[-1]))
    return float(found.mean())


def _agreement(task: Task, source: Array, exported: Array) -> float | None:
    if task is Task.MULTI_LABEL:  # every label against none
        source, exported = (np.stack([z.ravel(), np.zeros(z.size)], -1) for z in (source, exported))
    elif task not in _EXCLUSIVE:
        return None
    return _clear_agreement(source, exported)


def _clear_agreement(source: Array, exported: Array) -> float:
    best: Array = np.sort(np.exp(log_softmax(source, axis=-1)), axis=-1)
    if best.shape[1] < 2:
        return 1.0
    clear = best[:, -1] - best[:, -2] >= _CLEAR_MARGIN
    equal: Array = np.asarray(source.argmax(-1) == exported.argmax(-1))
    return float(equal[clear].mean()) if clear.any() else 1.0
