"""`tcompress score`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tcompress.options import (
    CONTEXT,
    FILE,
    MODEL,
    Common,
    DataOptions,
    common_options,
    data_options,
)

if TYPE_CHECKING:
    from tcompress.console import Console

    from .scores import HeadScores

CRITERIA = (
    "curvature",
    "gate-gradient",
    "fisher",
    "activation",
    "magnitude",
    "entropy",
    "confidence",
    "hies",
    "leave-one-out",
    "random",
)
SCORING_EXAMPLES = 512
"""Calibration examples by default; `prune` scores on as many, so that it can use what is known."""
# one forward pass per head, where all others share one
_SLOW = "leave-one-out"
_NAMES = ", ".join(CRITERIA)

_MAX_EXAMPLES = click.option(
    "--max-examples",
    type=click.IntRange(min=1),
    default=SCORING_EXAMPLES,
    help="Calibration examples, drawn from the training split.",
)


@click.command(context_settings=CONTEXT, short_help="Score heads and neurons by importance.")
@_MAX_EXAMPLES
@click.option(
    "--criterion",
    "criteria",
    type=click.Choice(CRITERIA),
    metavar="NAME",
    multiple=True,
    default=[name for name in CRITERIA if name != _SLOW],
    show_default=f"curvature, compared with all but {_SLOW}",
    help=f"How importance is measured: {_NAMES}; several are compared with the first.",
)
@click.option(
    "--model", type=MODEL, help="Model or artifact to read; else the newest in the workspace."
)
@click.option("--output", type=FILE, help="File to write; else scores.json in the workspace.")
@data_options
@common_options
def score(
    criteria: tuple[str, ...],
    max_examples: int,
    model: Path | None,
    output: Path | None,
    data: DataOptions,
    common: Common,
) -> None:
    """Score every attention head and FFN neuron by importance.

    curvature predicts how far the model's answers move when units go, for heads also jointly; it
    needs no labels. gate-gradient and fisher look at the loss: at labels, or the model's own
    predictions where there are none. activation looks at what a unit's output varies by,
    magnitude at the weights, entropy and confidence at how focused attention is, hies at that and
    the gradient. leave-one-out measures what curvature predicts, in one pass per head. random is
    what the others have to beat. Higher means keep.

    Agreement is the rank correlation of head scores with the first criterion; stability that
    between four quarters of the examples.

    \b
    Example:
      tcompress score
      tcompress score --criterion curvature --criterion leave-one-out
      tcompress score --criterion magnitude --model ./my-model --output scores.json
    """
    from tcompress.stages import DataSource, hold_output, input_model, optional_workspace, seed_of

    from .score_stage import ScoreStage
    from .scores import HeadScores

    console = common.console
    workspace = optional_workspace(common, needed=model is None)
    hold_output(common, workspace, output)
    directory = input_model(workspace, model, ("finetune",), unpruned=True)
    if output is None and workspace is not None:
        output = workspace.scores_file
    document = ScoreStage(
        directory,
        tuple(dict.fromkeys(criteria)),
        max_examples,
        DataSource(workspace, data),
        seed_of(common, workspace),
        output,
        console,
    ).document()
    if console.as_json:
        console.show_json(document)
    else:
        _show_heads(console, HeadScores.from_json(document), document["kept_heads"])
        _show_rankings(console, document["criteria"])


def _show_heads(console: "Console", scores: "HeadScores", kept: list[list[int]]) -> None:
    """Print a table of head scores, darker where a head matters more."""
    width = max((max(layer, default=-1) for layer in kept), default=-1) + 1
    top = max((score for layer in scores.heads for score in layer), default=0) or 1
    rows = []
    for index, (layer, heads) in enumerate(zip(scores.heads, kept, strict=True)):
        cell = {
            h: f"{100 * s / top:.0f}{console.shade(s / top)}"
            for h, s in zip(heads, layer, strict=True)
        }
        rows.append((index, *(cell.get(h, "-") for h in range(width))))
    calibration = scores.calibration
    detail = f", {calibration['examples']} examples" if "examples" in calibration else ""
    console.show(f"heads by {scores.criterion.value}{detail}: importance, 100 = the highest")
    console.table(("", *(f"{h} " for h in range(width))), rows, dense=True)


def _show_rankings(console: "Console", criteria: dict[str, dict[str, Any]]) -> None:
    """Print how the criteria compare."""
    rows = [
        (
            name,
            _correlation(ranking["agreement"]),
            _correlation(ranking["stability"]),
            sum(map(len, ranking["heads"])),
            sum(map(len, ranking["neurons"])) or "-",
        )
        for name, ranking in criteria.items()
    ]
    console.table(("criterion", "agreement", "stability", "heads", "neurons"), rows)


def _correlation(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
