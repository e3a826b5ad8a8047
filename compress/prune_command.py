"""`tcompress prune`."""

from typing import TYPE_CHECKING, Any

import click

from tcompress.options import (
    CONTEXT,
    RATIO,
    Common,
    DataOptions,
    StageOptions,
    common_options,
    data_options,
    refuse_typed,
    stage_options,
)

from .score_command import CRITERIA

if TYPE_CHECKING:
    from tcompress.artifact import Artifact
    from tcompress.console import Console

    from .cost import OpenMeter

_PRUNE_CRITERIA = ("obs", *CRITERIA)
_POSITIVE = click.FloatRange(0, min_open=True)


@click.command(context_settings=CONTEXT, short_help="Remove heads and neurons, and make up for it.")
@click.option("--heads", type=RATIO, help="Fraction of the heads to remove.")
@click.option("--neurons", type=RATIO, help="Fraction of the FFN neurons to remove.")
@click.option("--macs", type=RATIO, help="Fraction of the multiply-accumulates to remove.")
@click.option(
    "--speedup",
    type=click.FloatRange(1, min_open=True),
    help="Latency before over latency after, in the engine of --engine.",
)
@click.option("--latency-ms", type=_POSITIVE, help="Latency to come down to, likewise.")
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Find the smallest model whose accuracy drops by no more, as a fraction.",
)
@click.option(
    "--criterion",
    type=click.Choice(_PRUNE_CRITERIA),
    metavar="NAME",
    default="obs",
    help=f"How importance is measured: {', '.join(_PRUNE_CRITERIA)}.",
)
@click.option(
    "--reconstruct/--no-reconstruct",
    default=None,
    help="Refit what is left, without labels.  [default: where there are examples]",
)
@click.option(
    "--scope",
    type=click.Choice(("global", "layer")),
    default="global",
    help="For ratios: the least important of the whole encoder, or of every layer.",
)
@click.option(
    "--drop-sublayers/--keep-sublayers",
    default=None,
    help="Let a sublayer lose all its heads or neurons.  [default: except for ratios]",
)
@click.option(
    "--engine",
    type=click.Choice(("onnxruntime", "pytorch", "cuda")),
    default="onnxruntime",
    help="Engine that --speedup and --latency-ms are about; onnxruntime runs int8.",
)
@click.option("--batch", type=click.IntRange(min=1), default=1, help="Examples per call there.")
@click.option("--tokens", type=click.IntRange(min=1), default=128, help="Tokens per example there.")
@click.option(
    "--max-examples",
    type=click.IntRange(min=1),
    default=4096,
    help="Calibration examples, drawn from the training split.",
)
@stage_options
@data_options
@common_options
@click.pass_obj
def prune(
    open_meter: "OpenMeter",
    /,
    engine: str,
    batch: int,
    tokens: int,
    stage: StageOptions,
    data: DataOptions,
    common: Common,
    **goal: Any,
) -> None:
    """Remove heads and neurons, so that the matrices get smaller, and refit what is left.

    Ask for a fraction of the heads and neurons, of the multiply-accumulates, for a speed-up or a
    latency in the engine that will serve, or for the smallest model within an accuracy drop.

    obs removes what the rest can make up for best, weighted by how the answers depend on it; it
    needs examples but no labels. Reconstruction then solves every sublayer's last projection
    again by least squares towards the unpruned encoder, bottom-up.

    \b
    Example:
      tcompress prune --heads 0.3
      tcompress prune --macs 0.6
      tcompress prune --speedup 2.0
      tcompress prune --max-drop 0.01
    """
    from tcompress.machine import usable_cpus
    from tcompress.stages import StageRun

    from .cost import PRECISIONS, Engine, Serving
    from .prune_recipe import PruneRecipe
    from .prune_stage import PruneStage

    timed = goal["speedup"] is not None or goal["latency_ms"] is not None
    if not timed:
        refuse_typed(("engine", "batch", "tokens"), "goes with --speedup and --latency-ms")
    run = StageRun.open("prune", common, stage, builds_on=("finetune",), unpruned=True, data=data)
    serving = None
    if timed:
        precision = PRECISIONS[Engine(engine)][0]
        serving = Serving(Engine(engine), precision, batch, tokens, usable_cpus())
    recipe = PruneRecipe(**goal, serving=serving, seed=run.seed)
    done = PruneStage(run, recipe, open_meter).artifact()
    run.show(done, *_summary(done))
    if not run.console.as_json:
        _show_widths(run.console, done)


def _summary(artifact: "Artifact") -> list[str]:
    plan, details = artifact.manifest.plan, artifact.manifest.details
    macs = details["macs"]
    lines = [
        f"prune: {sum(plan.head_counts)} of {sum(plan.source_heads)} heads and "
        f"{sum(plan.neuron_counts)} of {sum(plan.source_neurons)} neurons left, "
        f"{1 - macs['after'] / macs['before']:.1%} of the MACs removed"
    ]
    if (latency := details["latency"]) is not None:
        serving = latency["serving"]
        off = latency["predicted_speedup"] / latency["speedup"] - 1
        lines.append(
            f"speed-up in {serving['engine']} {serving['precision']} at ({serving['batch']}, "
            f"{serving['tokens']}): asked {latency['asked']['speedup']:.2f}x, predicted "
            f"{latency['predicted_speedup']:.2f}x ({off:+.1%}), measured "
            f"{latency['speedup']:.2f}x ({latency['before_ms']:.2f} to "
            f"{latency['after_ms']:.2f} ms)"
        )
    if (judged := details["selection"]) is not None and judged["accuracy"] is not None:
        what = "accuracy" if judged["labels"] == "data" else "agreement"
        lines.append(
            f"{what} on {judged['examples']} validation examples: "
            f"{judged['accuracy_before']:.4f} before, {_predicted(judged)}"
            f"{judged['accuracy']:.4f} after; divergence {judged['divergence']:.3g} nats"
        )
    return lines


def _predicted(judged: dict[str, Any]) -> str:
    predicted = judged["accuracy_predicted"]
    if predicted is None:
        return ""
    off = 100 * (predicted - judged["accuracy"])
    return f"predicted {predicted:.4f} ({off:+.2f} points off), "


def _show_widths(console: "Console", artifact: "Artifact") -> None:
    plan = artifact.manifest.plan
    counts = zip(plan.head_counts, plan.neuron_counts, strict=True)
    rows = [(i, heads_left, neurons_left) for i, (heads_left, neurons_left) in enumerate(counts)]
    console.table(("layer", "heads", "neurons"), rows)
