"""The `gate selftest` command."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tcompress.options import (
    CONTEXT,
    DIRECTORY,
    Common,
    DataOptions,
    common_options,
    data_options,
)

if TYPE_CHECKING:
    from tcompress.console import Console

    from .selftest import SelfTest


_MARGIN = 0.02


@click.command(context_settings=CONTEXT, short_help="Prove that the gate can fail.")
@click.argument("artifact", type=DIRECTORY)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Margin of the gate that is tested, a fraction; else its policy's, else 0.02.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 0.5, min_open=True, max_open=True),
    help="Its error probability; else its policy's, else 0.05.",
)
@data_options
@common_options
@click.pass_context
def selftest(
    ctx: click.Context,
    artifact: Path,
    max_drop: float | None,
    alpha: float | None,
    data: DataOptions,
    common: Common,
) -> None:
    """Seed defects into an artifact and show that the gate catches each.

    The artifact's own answers are the baseline. Copies of it are damaged, or its inputs, or what
    is made of its answers; the artifact itself stays as it is. A defect that costs no accuracy
    here is called harmless, not caught.

    \b
    Exit codes:
      0  identity passes, and no harmful defect does
      3  a defect passed that costs five points or more
      4  identity is inconclusive: too few examples for the margin

    \b
    Example:
      tcompress gate selftest artifacts/export/onnx
      tcompress gate selftest ./served --data held-out.csv --max-drop 0.01
    """
    from tcompress.stages import DataSource, optional_workspace

    from .command import policy_in
    from .gate import judge
    from .selftest import self_test

    workspace = optional_workspace(common, needed=data.data is None)
    examples = DataSource(workspace, data).held_out_examples()
    typed = {"max_drop": max_drop, "alpha": alpha}
    if workspace is None and max_drop is None:
        typed["max_drop"] = _MARGIN
    policy = policy_in(workspace, None, typed, common.console)
    found = self_test(
        artifact, examples, lambda sides: judge(sides, policy, examples.slices), common.console
    )
    _show(common.console, found)
    ctx.exit(found.exit_code)


def _show(console: "Console", found: "SelfTest") -> None:
    if console.as_json:
        console.show_json(found.to_json())
        return
    console.show(found.headline())
    rows = [("identity", "", found.identity.value, f"{found.accuracy:.4f}", "", "")]
    rows += [
        (
            trial.defect,
            trial.place.value,
            trial.verdict.value if trial.verdict else "-",
            "-" if trial.accuracy is None else f"{trial.accuracy:.4f}",
            "-" if trial.drop is None else f"{trial.drop:+.4f}",
            trial.outcome.value,
        )
        for trial in found.trials
    ]
    console.table(("defect", "in the", "verdict", "accuracy", "drop", "outcome"), rows)
