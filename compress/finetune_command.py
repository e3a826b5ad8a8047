"""`tcompress finetune`."""

from typing import TYPE_CHECKING, Any

import click

from tcompress.options import (
    CONTEXT,
    Common,
    DataOptions,
    StageOptions,
    common_options,
    data_options,
    stage_options,
)

if TYPE_CHECKING:
    from tcompress.encoder import Encoder


@click.command(context_settings=CONTEXT, short_help="Fine-tune, to recover after pruning.")
@click.option("--epochs", type=click.IntRange(min=0), default=1, help="Passes over the data.")
@click.option(
    "--learning-rate", type=click.FloatRange(0, min_open=True), default=5e-5, help="At its peak."
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
@stage_options
@data_options
@common_options
def finetune(
    epochs: int,
    learning_rate: float,
    batch_size: int,
    freeze_layers: int,
    precision: str,
    device: str,
    stage: StageOptions,
    data: DataOptions,
    common: Common,
) -> None:
    """Fine-tune the newest encoder: to recover after pruning, or to begin with.

    The epoch that is best on the validation split is kept; the encoder as it came counts as
    epoch 0.

    \b
    Example:
      tcompress finetune
      tcompress finetune --epochs 2 --freeze-layers 3 --precision bf16
    """
    from dataclasses import asdict

    from tcompress.encoder import label_indices
    from tcompress.stages import StageRun

    from .finetuning import FinetuneRecipe, Split, TrainingPrecision, choose_precision, finetune_

    run = StageRun.open("finetune", common, stage, builds_on=("prune",), data=data)
    device = _device(device)
    recipe = FinetuneRecipe(
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        freeze_layers=freeze_layers,
        precision=(
            choose_precision(device) if precision == "auto" else TrainingPrecision(precision)
        ),
        seed=run.seed,
    )
    if run.data.workspace is None:
        msg = (
            "finetune chooses its epoch on a workspace's validation split; "
            "start one with `tcompress init MODEL --data FILE`"
        )
        raise click.UsageError(msg)
    train = run.data.training_examples()
    validation = run.data.workspace_split("validation")

    def work(encoder: "Encoder") -> dict[str, Any]:
        learn, select = (
            Split(run.encode(encoder, examples), label_indices(encoder.labels, examples))
            for examples in (train, validation)
        )
        history = finetune_(encoder.to(device), learn, select, recipe, run.console.track)
        encoder.to("cpu")
        return {"epochs": [asdict(epoch) for epoch in history]}

    key = recipe.to_json() | {"train": train.digest, "validation": validation.digest}
    key["device"] = device
    done = run.transform(key, work)
    history = [epoch["accuracy"] for epoch in done.manifest.details["epochs"]]
    line = f"finetune: validation accuracy {history[0]:.4f} before, {max(history):.4f} after"
    run.show(done, line)


def _device(device: str) -> str:
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
