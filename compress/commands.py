"""Commands of the stages that change the encoder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tcompress.options import (
    CONTEXT,
    DIRECTORY,
    FILE,
    RATIO,
    Common,
    DataOptions,
    StageOptions,
    common_options,
    data_options,
    stage_options,
)

if TYPE_CHECKING:
    from tcompress.artifact import Artifact
    from tcompress.console import Console
    from tcompress.encoder import Encoder
    from tcompress.stages import DataSource, StageRun

    from .scoring import HeadScores

_CRITERIA = ("gate-gradient", "magnitude")
_SCORING_BATCH_SIZE = 32


def _calibration_options(function: Any) -> Any:
    for option in (
        click.option(
            "--max-examples",
            type=click.IntRange(min=1),
            default=512,
            help="Calibration examples, drawn from the training split.",
        ),
        click.option(
            "--criterion",
            type=click.Choice(_CRITERIA),
            default="gate-gradient",
            help="How importance is measured.",
        ),
    ):
        function = option(function)
    return function


@click.command(context_settings=CONTEXT, short_help="Score heads and neurons by importance.")
@_calibration_options
@click.option(
    "--model", type=DIRECTORY, help="Model or artifact to read; else the newest in the workspace."
)
@click.option("--output", type=FILE, help="File to write; else scores.json in the workspace.")
@data_options
@common_options
def score(
    criterion: str,
    max_examples: int,
    model: Path | None,
    output: Path | None,
    data: DataOptions,
    common: Common,
) -> None:
    """Score every attention head and FFN neuron by importance.

    gate-gradient looks at examples: their labels, or the model's own predictions where there
    are none. magnitude looks at the weights alone. Higher means keep.

    \b
    Example:
      tcompress score
      tcompress score --criterion magnitude --model ./my-model --output scores.json
    """
    import json
    from dataclasses import asdict

    from tcompress.artifact import write_text_atomically
    from tcompress.loading import load_encoder
    from tcompress.stages import DataSource, input_model, optional_workspace, seed_of
    from tcompress.workspace import reference_to

    console = common.console
    workspace = optional_workspace(common, needed=model is None)
    directory = input_model(workspace, model, ("finetune",), unpruned=True)
    encoder = load_encoder(directory)
    seed = seed_of(common, workspace)
    source = DataSource(workspace, data)
    scores = _score(encoder, criterion, max_examples, source, seed, console)
    document = scores.to_json() | {
        "model": asdict(reference_to(directory)),
        "kept_heads": [list(layer.heads) for layer in encoder.plan.layers],
    }
    if output is None and workspace is not None:
        output = workspace.scores_file
    if output is not None:
        write_text_atomically(output, json.dumps(document) + "\n")
        console.say(f"score: wrote {output}")
    if console.as_json:
        console.show_json(document)
    else:
        _show_heads(console, scores, document["kept_heads"])


@click.command(context_settings=CONTEXT, short_help="Remove the least important heads and neurons.")
@click.option("--heads", type=RATIO, help="Fraction of the heads to remove.")
@click.option("--neurons", type=RATIO, help="Fraction of the FFN neurons to remove.")
@click.option(
    "--scope",
    type=click.Choice(("global", "layer")),
    default="global",
    help="Remove the least important of the whole encoder, or of every layer.",
)
@click.option(
    "--drop-sublayers", is_flag=True, help="Let a sublayer lose all its heads or neurons."
)
@_calibration_options
@stage_options
@data_options
@common_options
def prune(
    heads: float | None,
    neurons: float | None,
    scope: str,
    drop_sublayers: bool,
    criterion: str,
    max_examples: int,
    stage: StageOptions,
    data: DataOptions,
    common: Common,
) -> None:
    """Remove the least important heads and neurons, so that the matrices get smaller.

    A ratio is the fraction removed. Every sublayer keeps at least one head or neuron, unless
    --drop-sublayers is given.

    \b
    Example:
      tcompress prune --heads 0.3
      tcompress prune --heads 0.3 --neurons 0.4 --criterion magnitude
    """
    from tcompress.stages import StageRun

    from .pruning import prune_
    from .scoring import Criterion
    from .selection import Scope, select_units

    run = StageRun.open("prune", common, stage, builds_on=("finetune",), unpruned=True, data=data)
    if heads is None and neurons is None:
        msg = "say what to remove: --heads RATIO, --neurons RATIO, or both"
        raise click.UsageError(msg)
    heads, neurons = heads or 0.0, neurons or 0.0
    needs_data = Criterion(criterion).needs_data
    recipe = {
        "heads": heads,
        "neurons": neurons,
        "scope": scope,
        "drop_sublayers": drop_sublayers,
        "criterion": criterion,
        "max_examples": max_examples,
        "seed": run.seed,
        "data": run.data.training_examples().digest if needs_data else None,
    }

    def work(encoder: "Encoder") -> dict[str, Any]:
        scores = _known_scores(run, criterion, max_examples) or _score(
            encoder, criterion, max_examples, run.data, run.seed, run.console
        )
        plan = select_units(
            scores,
            encoder.plan,
            heads=heads,
            neurons=neurons,
            scope=Scope(scope),
            drop_sublayers=drop_sublayers,
        )
        tokens = min(128, encoder.preprocessor.max_tokens)
        macs = {"tokens": tokens, "before": encoder.anatomy.macs(tokens)}
        prune_(encoder, plan)
        macs["after"] = encoder.anatomy.macs(tokens)
        return {"calibration": scores.calibration, "macs": macs}

    done = run.transform(recipe, work)
    plan, macs = done.manifest.plan, done.manifest.details["macs"]
    line = (
        f"prune: {sum(plan.head_counts)} of {sum(plan.source_heads)} heads and "
        f"{sum(plan.neuron_counts)} of {sum(plan.source_neurons)} neurons left, "
        f"{1 - macs['after'] / macs['before']:.1%} of the MACs removed"
    )
    _show_artifact(run.console, done, line)
    if not run.console.as_json:
        counts = zip(plan.head_counts, plan.neuron_counts, strict=True)
        rows = [
            (i, heads_left, neurons_left) for i, (heads_left, neurons_left) in enumerate(counts)
        ]
        run.console.table(("layer", "heads", "neurons"), rows)


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
    _show_artifact(run.console, done, line)


@click.command(context_settings=CONTEXT, short_help="Plan int8 for every sublayer.")
@click.option(
    "--precision", type=click.Choice(("int8", "fp32")), default="int8", help="Of all sublayers."
)
@stage_options
@common_options
def quantize(precision: str, stage: StageOptions, common: Common) -> None:
    """Write dynamic int8 into the plan; export makes it real for a format.

    The weights stay as they are, so that one artifact feeds every format.

    \b
    Example:
      tcompress quantize
      tcompress quantize && tcompress export --format onnx
    """
    from tcompress.plan import Precision
    from tcompress.stages import StageRun

    run = StageRun.open("quantize", common, stage, builds_on=("prune", "finetune"))

    def work(encoder: "Encoder") -> dict[str, Any]:
        encoder.plan = encoder.plan.with_precision(Precision(precision))
        return {}

    done = run.transform({"precision": precision}, work)
    _show_artifact(run.console, done, f"quantize: every sublayer planned in {precision}")


def _known_scores(run: "StageRun", criterion: str, max_examples: int) -> "HeadScores | None":
    """Return what `score` wrote, if it is what scoring again would give."""
    import json

    from tcompress.errors import ArtifactError
    from tcompress.workspace import reference_to

    from .scoring import HeadScores

    workspace = run.data.workspace
    if workspace is None or not workspace.scores_file.is_file():
        return None
    try:
        document = json.loads(workspace.scores_file.read_text(encoding="utf-8"))
        scores, model = HeadScores.from_json(document), document["model"]["digest"]
    except (OSError, ValueError, KeyError, TypeError, ArtifactError):
        return None  # by another version, or damaged: scored again
    calibration = {}
    if scores.criterion.needs_data:
        calibration["digest"] = run.data.training_examples().sample(max_examples, run.seed).digest
    same = scores.calibration.get("digest") == calibration.get("digest")
    if not same or scores.criterion != criterion or model != reference_to(run.directory).digest:
        return None
    run.console.say(f"prune: by the scores in {workspace.scores_file}")
    return scores


def _score(
    encoder: "Encoder",
    criterion: str,
    max_examples: int,
    source: "DataSource",
    seed: int,
    console: "Console",
) -> "HeadScores":
    """Score an encoder on calibration examples, where the criterion looks at any."""
    from tcompress.encoder import label_indices
    from tcompress.stages import encode_with_warning

    from .scoring import Criterion, score_units

    kind = Criterion(criterion)
    if not kind.needs_data:
        return score_units(encoder, kind)
    examples = source.training_examples().sample(max_examples, seed)
    encoded = encode_with_warning(encoder.preprocessor, examples, console)
    labels = None if examples.labels is None else label_indices(encoder.labels, examples)
    batches = console.track(
        encoded.batches(_SCORING_BATCH_SIZE),
        f"scoring by {criterion}",
        -(-len(examples) // _SCORING_BATCH_SIZE),
    )
    labelled = ((batch, None if labels is None else labels[rows]) for rows, batch in batches)
    calibration = {
        "examples": len(examples),
        "digest": examples.digest,
        "labels": "the model's own predictions" if labels is None else "data",
    }
    return score_units(encoder, kind, labelled, calibration)


def _device(device: str) -> str:
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _show_artifact(console: "Console", artifact: "Artifact", line: str) -> None:
    """Say what a stage wrote: the manifest's essence as JSON, or one line."""
    if console.as_json:
        console.show_json(artifact.summary())
    else:
        console.show(line)


def _show_heads(console: "Console", scores: "HeadScores", kept: list[list[int]]) -> None:
    """Print a table of head scores, darker where a head matters more."""
    width = max((max(layer, default=-1) for layer in kept), default=-1) + 1
    top = max((score for layer in scores.heads for score in layer), default=0) or 1
    rows = []
    for index, (layer, heads) in enumerate(zip(scores.heads, kept, strict=True)):
        cell = {h: f"{100 * s:.0f}{_shade(s / top)}" for h, s in zip(heads, layer, strict=True)}
        rows.append((index, *(cell.get(h, "-") for h in range(width))))
    calibration = scores.calibration
    detail = f", {calibration['examples']} examples" if calibration else ""
    console.show(
        f"importance x 100 of heads by {scores.criterion.value}{detail}; higher means keep"
    )
    console.table(("", *(f"{h} " for h in range(width))), rows, dense=True)


def _shade(fraction: float) -> str:
    return " ░▒▓█"[min(4, int(fraction * 5))]
