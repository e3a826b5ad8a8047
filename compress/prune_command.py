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
    stage_options,
)

from .score_command import calibration_options

if TYPE_CHECKING:
    from tcompress.encoder import Encoder


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
@calibration_options
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

    from .calibration import known_scores, score_on_examples
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
        scores = known_scores(run, criterion, max_examples) or score_on_examples(
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
    run.show(done, line)
    if not run.console.as_json:
        counts = zip(plan.head_counts, plan.neuron_counts, strict=True)
        rows = [
            (i, heads_left, neurons_left) for i, (heads_left, neurons_left) in enumerate(counts)
        ]
        run.console.table(("layer", "heads", "neurons"), rows)
