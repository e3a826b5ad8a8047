"""The `gate` command."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tcompress.options import (
    CONTEXT,
    DIRECTORY,
    Common,
    DataOptions,
    common_options,
    judged_data_options,
)

if TYPE_CHECKING:
    from tcompress.console import Console
    from tcompress.workspace import Workspace

    from .verdict import GateReport


@click.command(context_settings=CONTEXT, short_help="Judge a compressed model by exit code.")
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Smallest drop in accuracy that is not acceptable, a fraction (0.01 is one point); "
    "else the workspace's max_drop.",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    help="What to compare with: a directory, or a file of `gate record`; "
    "else the workspace's model.",
)
@click.option(
    "--candidate",
    type=DIRECTORY,
    help="What to judge; else the workspace's newest export, else its newest artifact.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 0.5, min_open=True, max_open=True),
    default=0.05,
    help="Error probability of a wrong pass and of a wrong regression.",
)
@click.option("--fresh", is_flag=True, help="Ask again, even where evaluate kept the answers.")
@judged_data_options
@common_options
@click.pass_context
def gate(
    ctx: click.Context,
    max_drop: float | None,
    baseline: Path | None,
    candidate: Path | None,
    alpha: float,
    fresh: bool,
    data: DataOptions,
    common: Common,
) -> None:
    """Judge by exit code whether a compressed model is still good enough.

    Baseline and candidate answer the test split, each on its own engine. The gate passes only if
    the examples prove that accuracy dropped by less than the limit.

    \b
    Exit codes:
      0  pass          the drop is below the limit
      3  regression    the drop reaches the limit, or the candidate is broken
      4  inconclusive  too few examples to tell

    \b
    Example:
      tcompress gate --max-drop 0.01
      tcompress gate --max-drop 0.02 --candidate artifacts/export/onnx --data held-out.csv
    """
    from tcompress.stages import DataSource, optional_workspace

    from ..answers import AnswerBook
    from .gate import gate as judge

    named = (baseline, candidate, data.data)
    workspace = optional_workspace(common, needed=None in named)
    examples = DataSource(workspace, data).held_out_examples()
    if max_drop is None:
        max_drop = _max_drop(workspace)
    if candidate is None:
        candidate = _newest(workspace, common.console)
    if baseline is None:
        baseline = _model(workspace)
    report = judge(
        baseline,
        candidate,
        examples,
        max_drop=max_drop,
        console=common.console,
        alpha=alpha,
        book=None if fresh or workspace is None else AnswerBook(workspace.answers_directory),
    )
    _show(common.console, report)
    ctx.exit(report.exit_code)


def _max_drop(workspace: "Workspace | None") -> float:
    if workspace is None:
        msg = "without a workspace, say which drop is not acceptable by --max-drop"
        raise click.UsageError(msg)
    return workspace.config.max_drop


def _model(workspace: "Workspace | None") -> Path:
    from tcompress.errors import RequestError

    if workspace is None:
        msg = "without a workspace, name what to compare with by --baseline"
        raise RequestError(msg)
    return workspace.model_directory


def _newest(workspace: "Workspace | None", console: "Console") -> Path:
    """Return the newest export of the workspace's model, or else its newest artifact."""
    from tcompress.artifact import ENCODER_KIND
    from tcompress.errors import RequestError

    if workspace is None:
        msg = "without a workspace, name what to judge by --candidate"
        raise RequestError(msg)
    source = workspace.source().digest
    artifacts = [a for a in workspace.artifacts() if a.manifest.source.digest == source]
    if not artifacts:
        msg = (
            f"no artifact of {workspace.model_directory} in {workspace.artifacts_directory}; "
            "make one (`tcompress prune`, `tcompress export`), or name one with --candidate"
        )
        raise RequestError(msg)
    exports = [a for a in artifacts if a.manifest.kind != ENCODER_KIND]
    chosen, newest = (exports or artifacts)[-1], artifacts[-1]
    console.say(f"gate: judging {chosen.directory}")
    if newest.manifest.kind == ENCODER_KIND and newest is not chosen:
        console.warn(
            f"{newest.directory} is newer than that; export it to judge it, or pass --candidate"
        )
    return chosen.directory


def _show(console: "Console", report: "GateReport") -> None:
    if console.as_json:
        console.show_json(report.to_json())
        return
    console.show(report.headline())
    console.table(
        ("check", "verdict", "estimate", "bound", "limit", "n"),
        [
            (
                check.name,
                check.verdict.value,
                *(f"{100 * value:.2f} %" for value in (check.estimate, check.bound, check.limit)),
                f"{check.n:,}",
            )
            for check in report.checks
        ],
    )
    counts = report.facts["counts"]
    console.show(
        f"Right before, wrong now: {counts['lost']:,}. The other way: {counts['gained']:,}."
    )
    for line in (*report.advice, *(f"Note: {note}." for note in report.notes)):
        console.show(line)
