"""`tcompress run`: every stage in order, as if typed one after the other."""

import shlex
import sys
from contextlib import nullcontext, redirect_stdout

import click

from .options import CONTEXT, RATIO, Common, common_options, demo_option


@click.command(context_settings=CONTEXT, short_help="Do all of it, in order.")
@demo_option
@click.option("--heads", type=RATIO, help="Fraction of the heads to remove.")
@click.option("--neurons", type=RATIO, help="Fraction of the FFN neurons to remove.")
@click.option(
    "--macs",
    type=RATIO,
    help="Fraction of the multiply-accumulates to remove; 0.5 when nothing else is asked for.",
)
@click.option(
    "--speedup", type=click.FloatRange(1, min_open=True), help="Asked of ONNX Runtime in int8."
)
@click.option(
    "--epochs", type=click.IntRange(min=0), default=0, help="Of recovery; 0 leaves it out."
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Accuracy drop, as a fraction, from which on the gate does not pass; "
    "else the workspace's.",
)
@click.option(
    "--budget-s", type=click.FloatRange(0, min_open=True), help="Seconds for all latencies."
)
@common_options
@click.pass_context
def run(
    ctx: click.Context,
    demo: str | None,
    heads: float | None,
    neurons: float | None,
    macs: float | None,
    speedup: float | None,
    epochs: int,
    max_drop: float | None,
    budget_s: float | None,
    common: Common,
) -> None:
    """Score, prune, recover, quantize, export, evaluate and gate, in one go.

    What is done already and still up to date is not done again. The exit code is the gate's.

    \b
    Example:
      tcompress run --demo
      tcompress run --macs 0.8 --epochs 1 --max-drop 0.01
    """
    from .locking import lock_within
    from .workspace import CONFIG_FILE, workspace_directory

    directory = workspace_directory(common.workspace)
    common.lock(lock_within(directory))
    # Named, so that the outcome does not depend on what else stands in the workspace.
    artifacts = directory / "artifacts"
    recovered = artifacts / ("finetune" if epochs else "prune")
    exported = artifacts / "export" / "onnx"
    asked = {"--heads": heads, "--neurons": neurons, "--macs": macs, "--speedup": speedup}
    goal = [word for option, value in asked.items() for word in _given(option, value)]
    goal = goal or ["--macs", "0.5"]
    steps = [
        ["score"],
        ["prune", *goal, "--force"],
        ["finetune", "--model", str(artifacts / "prune"), "--epochs", str(epochs), "--force"],
        ["quantize", "--model", str(recovered), "--force"],
        ["export", "--model", str(artifacts / "quantize"), "--format", "onnx", "--force"],
        ["evaluate", *_given("--budget-s", budget_s)],
        ["gate", "--candidate", str(exported), *_given("--max-drop", max_drop)],
    ]
    if epochs == 0:
        steps = [step for step in steps if step[0] != "finetune"]
    if demo is not None and not (directory / CONFIG_FILE).is_file():
        steps.insert(0, ["init", "--demo", demo])
    shared = _shared_options(common)
    *earlier, last = [[*step, *shared] for step in steps]
    for words in earlier:
        common.console.say("")
        common.console.say(f"$ tcompress {shlex.join(words)}")
        # With --json, stdout carries the gate's document and nothing else.
        with redirect_stdout(sys.stderr) if common.console.as_json else nullcontext():
            _invoke(ctx, words)
    common.console.say("")
    common.console.say(f"$ tcompress {shlex.join(last)}")
    _invoke(ctx, [*last, *(["--json"] if common.console.as_json else [])])


def _given(option: str, value: float | None) -> list[str]:
    return [] if value is None else [option, f"{value:g}"]


def _shared_options(common: Common) -> list[str]:
    options = [] if common.workspace is None else ["--workspace", str(common.workspace)]
    options += [] if common.seed is None else ["--seed", str(common.seed)]
    return options + (["--quiet"] if common.console.quiet else [])


def _invoke(ctx: click.Context, words: list[str]) -> None:
    """Run a command as if it had been typed."""
    parent = ctx.parent
    assert parent is not None
    assert isinstance(parent.command, click.Group)
    command = parent.command.get_command(parent, words[0])
    assert command is not None
    with command.make_context(words[0], words[1:], parent=parent) as inner:
        command.invoke(inner)
