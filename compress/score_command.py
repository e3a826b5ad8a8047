"""`tcompress score`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tcompress.options import (
    CONTEXT,
    DIRECTORY,
    FILE,
    Common,
    DataOptions,
    common_options,
    data_options,
)

if TYPE_CHECKING:
    from tcompress.console import Console

    from .scoring import HeadScores

CRITERIA = ("gate-gradient", "magnitude")


def calibration_options(function: Any) -> Any:
    """Add `--criterion` and `--max-examples`.

    Args:
        function: The command's callback.
    """
    for option in (
        click.option(
            "--max-examples",
            type=click.IntRange(min=1),
            default=512,
            help="Calibration examples, drawn from the training split.",
        ),
        click.option(
            "--criterion",
            type=click.Choice(CRITERIA),
            default="gate-gradient",
            help="How importance is measured.",
        ),
    ):
        function = option(function)
    return function


@click.command(context_settings=CONTEXT, short_help="Score heads and neurons by importance.")
@calibration_options
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

    from .calibration import score_on_examples

    console = common.console
    workspace = optional_workspace(common, needed=model is None)
    directory = input_model(workspace, model, ("finetune",), unpruned=True)
    encoder = load_encoder(directory)
    seed = seed_of(common, workspace)
    source = DataSource(workspace, data)
    scores = score_on_examples(encoder, criterion, max_examples, source, seed, console)
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
