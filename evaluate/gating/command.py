"""The `gate` command."""

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click
from click.core import ParameterSource

from tcompress.lazy_group import LazyGroup
from tcompress.options import (
    CONTEXT,
    DIRECTORY,
    FILE,
    Common,
    DataOptions,
    common_options,
    judged_data_options,
    refuse_typed,
)

if TYPE_CHECKING:
    from tcompress.console import Console
    from tcompress.workspace import Workspace

    from .policy import Policy
    from .verdict import Check, GateReport


class GateGroup(LazyGroup):
    """`gate`, and the commands around it."""

    members: ClassVar = {
        "plan": "tcompress.evaluate.gating.plan_command:plan",
        "record": "tcompress.evaluate.gating.record_command:record",
        "selftest": "tcompress.evaluate.gating.selftest_command:selftest",
    }


_OUTPUTS = ("junit", "markdown", "github", "as_json", "quiet")
_FRACTION = click.FloatRange(0, 1, min_open=True, max_open=True)
_POSITIVE = click.FloatRange(0, min_open=True)
_COUNT = click.IntRange(min=1)


@click.group(
    cls=GateGroup,
    invoke_without_command=True,
    context_settings=CONTEXT,
    short_help="Judge a compressed model by exit code.",
)
@click.option(
    "--policy",
    "policy_file",
    type=FILE,
    help="File with the limits; else tcompress-gate.toml here or in the workspace, else [gate] "
    "in its tcompress.toml. Options override it.",
)
@click.option("--metric", help="The task's metric.  [default: accuracy]")
@click.option(
    "--max-drop",
    type=_FRACTION,
    help="Smallest drop of the metric that is not acceptable, a fraction (0.01 is one point); "
    "else the workspace's max_drop.",
)
@click.option(
    "--min-retained",
    metavar="SHARE",
    help="Instead: part of the baseline's metric to keep, such as 99%, 99.9% or 0.98.",
)
@click.option("--max-class-drop", type=_FRACTION, help="The same for the recall of every class.")
@click.option("--max-slice-drop", type=_FRACTION, help="The same for every --slice-column's value.")
@click.option("--max-flip-rate", type=_FRACTION, help="Most answers that turn right or wrong.")
@click.option("--max-divergence", type=_POSITIVE, help="Largest mean divergence, in nats.")
@click.option("--min-agreement", type=_FRACTION, help="Fewest answers that are the baseline's.")
@click.option("--min-speedup", type=_POSITIVE, help="Least speed-up over the baseline.")
@click.option("--max-latency-ratio", type=_POSITIVE, help="Most of the baseline's latency.")
@click.option("--min-throughput-ratio", type=_POSITIVE, help="Least gain in throughput.")
@click.option("--max-load-ms", type=_POSITIVE, help="Longest start of a process, answer included.")
@click.option("--max-size-bytes", type=_COUNT, help="Largest model file.")
@click.option("--max-size-ratio", type=_POSITIVE, help="Most of the baseline's size.")
@click.option("--max-memory-bytes", type=_COUNT, help="Most memory of the engine's process.")
@click.option("--max-memory-ratio", type=_POSITIVE, help="Most of the baseline's memory.")
@click.option("--batch", type=_COUNT, help="Examples per timed call.  [default: 1]")
@click.option("--tokens", type=_COUNT, help="Tokens per timed example; else 128, or the longest.")
@click.option("--budget-s", type=_POSITIVE, help="Seconds for the timing.  [default: 12]")
@click.option(
    "--alpha",
    type=click.FloatRange(0, 0.5, min_open=True, max_open=True),
    help="Error probability of a wrong pass and of a wrong regression.  [default: 0.05]",
)
@click.option("--min-examples", type=_COUNT, help="Fewer examples are inconclusive.")
@click.option(
    "--on-inconclusive",
    type=click.Choice(("fail", "warn")),
    help="What an inconclusive verdict does; warn ends with 0.  [default: fail]",
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
@click.option("--device", type=click.Choice(("cpu", "cuda")), default="cpu", help="Where to ask.")
@click.option("--fresh", is_flag=True, help="Ask again, even where evaluate kept the answers.")
@click.option("--junit", type=FILE, help="Write JUnit XML for a CI server: a test case per check.")
@click.option("--markdown", type=FILE, help="Write Markdown for a comment on a pull request.")
@click.option(
    "--github/--no-github",
    default=None,
    help="Write the job's summary and annotations; else in a GitHub workflow only.",
)
@judged_data_options
@common_options
@click.pass_context
def gate(
    ctx: click.Context,
    /,
    policy_file: Path | None,
    baseline: Path | None,
    candidate: Path | None,
    device: str,
    fresh: bool,
    junit: Path | None,
    markdown: Path | None,
    github: bool | None,
    data: DataOptions,
    common: Common,
    **limits: Any,
) -> None:
    """Judge by exit code whether a compressed model is still good enough.

    Baseline and candidate answer the test split, each on its own engine. The gate passes only if
    the examples prove that accuracy dropped by less than the limit, and every other limit holds.

    \b
    Exit codes:
      0  pass          every limit is proved to hold
      3  regression    a limit is proved to be broken, or the candidate is
      4  inconclusive  not enough evidence to tell

    \b
    Example:
      tcompress gate --max-drop 0.01
      tcompress gate --min-retained 99% --min-speedup 1.5
      tcompress gate --max-drop 0.02 --candidate artifacts/export/onnx --data held-out.csv
      tcompress gate plan --max-drop 0.01
    """
    if ctx.invoked_subcommand is not None:
        refuse_typed([*ctx.params], f"goes behind `gate {ctx.invoked_subcommand}`")
        return

    from tcompress.stages import DataSource, optional_workspace, seed_of

    from ..answers import AnswerBook
    from .gate import gate as judge
    from .outputs import clear_outputs, write_outputs

    _check_outputs([junit, markdown], [data.data, baseline, policy_file])
    clear_outputs(junit, markdown)
    console = common.console
    named = (baseline, candidate, data.data)
    workspace = optional_workspace(common, needed=None in named)
    policy = policy_in(
        workspace, policy_file, {**limits, "slice_columns": data.slice_columns}, console
    )
    data = replace(data, slice_columns=policy.slice_columns)
    examples = DataSource(workspace, data).held_out_examples()
    if candidate is None:
        candidate = newest_candidate(workspace, console)
    report = judge(
        _model(workspace) if baseline is None else baseline,
        candidate,
        examples,
        policy=policy,
        console=console,
        device=device,
        book=None if fresh or workspace is None else AnswerBook(workspace.answers_directory),
        seed=seed_of(common, workspace),
    )
    report = replace(report, notes=report.notes + _export_notes(workspace, candidate))
    _show(console, report)
    write_outputs(report, junit, markdown, github, os.environ, _typed(ctx))
    ctx.exit(report.exit_code)


def _check_outputs(outputs: "list[Path | None]", inputs: "list[Path | None]") -> None:
    """Raise where a file to be written is another one, or one that is read."""
    taken = [path.resolve() for path in inputs if path is not None]
    for path in outputs:
        if path is None:
            continue
        if path.resolve() in taken:
            msg = f"{path} is named twice; name another file for the report"
            raise click.UsageError(msg)
        taken.append(path.resolve())


def _typed(ctx: click.Context) -> str:
    """Return the command line as it was typed, but for where the report is written."""
    words = ctx.command_path.split()
    for option in ctx.command.params:
        name = option.name or ""
        if name in _OUTPUTS or ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = ctx.params[name]
        for one in value if isinstance(value, tuple) else (value,):
            words += [option.opts[0]] if one is True else [option.opts[0], str(one)]
    return shlex.join(words)


def policy_in(
    workspace: "Workspace | None",
    named: Path | None,
    limits: dict[str, Any],
    console: "Console",
) -> "Policy":
    """Put the policy together: the workspace's limit, then the file's, then what was typed.

    Args:
        workspace: The workspace, or None.
        named: A policy file that was named, or None for the one that is found.
        limits: What was typed, by key; None is not.
        console: Where to say which file was read.

    Raises:
        InputError: If the file is wrong.
        RequestError: If they make no policy.
    """
    from .policy import find_policy, make_policy, read_values

    directory = None if workspace is None else workspace.directory
    path = find_policy(named, directory)
    if path is not None:
        console.say(f"gate: the limits are those in {path}")
    return make_policy(
        {} if workspace is None else {"max_drop": workspace.config.max_drop},
        {} if path is None else read_values(path),
        limits,
    )


def _model(workspace: "Workspace | None") -> Path:
    from tcompress.errors import RequestError

    if workspace is None:
        msg = "without a workspace, name what to compare with by --baseline"
        raise RequestError(msg)
    return workspace.model_directory


def newest_candidate(workspace: "Workspace | None", console: "Console") -> Path:
    """Return the newest export of the workspace's model, or else its newest artifact.

    Args:
        workspace: The workspace, or None.
        console: Where to say what was chosen.

    Raises:
        RequestError: If there is none.
    """
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


def _export_notes(workspace: "Workspace | None", candidate: Path) -> tuple[str, ...]:
    """Say that an encoder is judged in PyTorch although a file was exported from it."""
    from tcompress.artifact import ENCODER_KIND
    from tcompress.workspace import made_from

    if workspace is None:
        return ()
    exports = [
        artifact.directory
        for artifact in workspace.artifacts()
        if artifact.manifest.kind != ENCODER_KIND and made_from(artifact.directory, candidate)
    ]
    if not exports:
        return ()
    return (f"this is the encoder in PyTorch; what was exported from it is {exports[-1]}",)


def _show(console: "Console", report: "GateReport") -> None:
    if console.as_json:
        console.show_json(report.to_json())
        return
    console.show(report.headline())
    console.table(
        ("check", "verdict", "estimate", "bound", "limit", "n"),
        [(check.name, check.verdict.value, *_cells(check)) for check in report.checks],
    )
    if (counts := report.facts.get("counts")) is not None:
        console.show(
            f"Right before, wrong now: {counts['lost']:,}. The other way: {counts['gained']:,}."
        )
    for line in (*report.advice, *(f"Note: {note}." for note in report.notes)):
        console.show(line)


def _cells(check: "Check") -> list[str]:
    numbers = (check.estimate, check.bound, check.limit)
    return [*(check.unit.text(number) for number in numbers), f"{check.n:,}"]
