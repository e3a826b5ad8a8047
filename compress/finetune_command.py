"""`tcompress finetune`."""

from pathlib import Path

import click

from tcompress.options import (
    CONTEXT,
    DIRECTORY,
    Common,
    DataOptions,
    StageOptions,
    common_options,
    data_options,
    stage_options,
)

_LEARNING_RATE = 5e-5
# what is left of a pruned encoder has further to go
_DISTILLING_RATE = 1e-4


@click.command(context_settings=CONTEXT, short_help="Fine-tune, to recover after pruning.")
@click.option("--epochs", type=click.IntRange(min=0), default=1, help="Passes over the data.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    help="At its peak.  [default: 1e-4 when it distils, else 5e-5]",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, help="Examples per step.")
@click.option(
    "--freeze-layers",
    type=click.IntRange(min=0),
    default=0,
    help="Lowest layers to leave as they are, the embeddings with them.",
)
@click.option(
    "--precision",
    type=click.Choice(("auto", "fp32", "bf16", "fp16")),
    default="auto",
    help="Of the matrix products; auto is bf16 where the hardware has it, else fp32.",
)
@click.option(
    "--device", type=click.Choice(("auto", "cpu", "cuda")), default="auto", help="Where to train."
)
@click.option(
    "--accumulate",
    type=click.IntRange(min=1),
    default=1,
    help="Batches per step; as one large batch, in less memory.",
)
@click.option(
    "--patience",
    type=click.IntRange(min=1),
    help="Stop after so many epochs without improvement; else go on to the end.",
)
@click.option(
    "--vary-texts",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Fraction of texts that each epoch cuts, joins or thins anew; needs a teacher.",
)
@click.option(
    "--distill/--no-distill",
    default=None,
    help="Learn from the unpruned model, too; the default where the encoder is pruned.",
    show_default=False,
)
@click.option(
    "--teacher",
    type=DIRECTORY,
    help="Model to learn from; else the one that the encoder was cut from.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    help="Softens the answers of both while they are compared.",
)
@click.option(
    "--logits-weight",
    type=click.FloatRange(0),
    default=1.0,
    help="Of the teacher's answers, beside its tokens at 1.",
)
@stage_options
@data_options
@common_options
def finetune(
    epochs: int,
    learning_rate: float | None,
    batch_size: int,
    freeze_layers: int,
    precision: str,
    device: str,
    accumulate: int,
    patience: int | None,
    vary_texts: float,
    distill: bool | None,
    teacher: Path | None,
    temperature: float,
    logits_weight: float,
    stage: StageOptions,
    data: DataOptions,
    common: Common,
) -> None:
    """Fine-tune the newest encoder: to recover after pruning, or to begin with.

    A pruned encoder learns from the unpruned model that it was cut from, and from labels where
    there are any: from the teacher's answers, and from its tokens behind every layer.

    The epoch that is best on the validation split is kept: by accuracy, without labels by
    agreement with the teacher. The encoder as it came counts as epoch 0. A run that was killed
    continues after its last finished epoch when it is started again.

    Where texts are few, or to be met in many forms, as by an encoder of vectors, --vary-texts
    makes more of them. Labels do not hold for them, so the teacher alone is learned from.

    \b
    Example:
      tcompress finetune
      tcompress finetune --epochs 2 --freeze-layers 3 --precision bf16
      tcompress finetune --epochs 8 --learning-rate 4e-4 --vary-texts 0.7 --logits-weight 3
      tcompress finetune --teacher ./my-bert --temperature 4 --patience 1 --epochs 5
    """
    from tcompress.stages import StageRun

    from .distillation import Distillation
    from .finetuning import FinetuneRecipe, TrainingPrecision, choose_precision
    from .recovery import Recovery, choose_teacher, closing_line

    run = StageRun.open("finetune", common, stage, builds_on=("prune",), data=data)
    if run.data.workspace is None:
        msg = (
            "finetune chooses its epoch on a workspace's validation split; "
            "start one with `tcompress init MODEL --data FILE`"
        )
        raise click.UsageError(msg)
    device = _device(device)
    from_whom = choose_teacher(run.directory, distill, teacher)
    recipe = FinetuneRecipe(
        epochs=epochs,
        learning_rate=learning_rate or (_DISTILLING_RATE if from_whom else _LEARNING_RATE),
        batch_size=batch_size,
        freeze_layers=freeze_layers,
        precision=(
            choose_precision(device) if precision == "auto" else TrainingPrecision(precision)
        ),
        seed=run.seed,
        accumulate=accumulate,
        patience=patience,
        vary_texts=vary_texts,
    )
    distillation = Distillation(temperature=temperature, logits_weight=logits_weight)
    done = Recovery(run, recipe, device, from_whom, distillation).artifact()
    run.show(done, closing_line(done))


def _device(device: str) -> str:
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
