"""The `gate plan` command."""

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
    from tcompress.data import Examples
    from tcompress.workspace import Workspace

    from .planning import Plan

_FRACTION = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.command(context_settings=CONTEXT, short_help="Say how many examples a limit takes.")
@click.option(
    "--max-drop",
    type=_FRACTION,
    help="Smallest drop in accuracy that is not acceptable, a fraction; else the workspace's.",
)
@click.option(
    "--flip-rate",
    type=click.FloatRange(0, 1),
    help="Fraction of the examples that turn from right to wrong or back; else what the newest "
    "candidate's kept answers show, else 2, 5 and 10 %.",
)
@click.option(
    "--examples", "count", type=click.IntRange(min=1), help="Examples there are; else the data's."
)
@click.option(
    "--power",
    type=click.FloatRange(0.5, 1, max_open=True),
    default=0.8,
    help="Chance of a pass, for a candidate that does no damage.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 0.5, min_open=True, max_open=True),
    default=0.05,
    help="Error probability of a wrong pass.",
)
@click.option("--candidate", type=DIRECTORY, help="Whose kept answers to look at; else the newest.")
@data_options
@common_options
def plan(
    max_drop: float | None,
    flip_rate: float | None,
    count: int | None,
    power: float,
    alpha: float,
    candidate: Path | None,
    data: DataOptions,
    common: Common,
) -> None:
    """Say how many examples a limit takes, and what a set of examples can prove.

    \b
    Example:
      tcompress gate plan --max-drop 0.01
      tcompress gate plan --max-drop 0.005 --flip-rate 0.03 --examples 2000
    """
    from tcompress.errors import RequestError
    from tcompress.stages import DataSource, optional_workspace

    from .command import policy_in
    from .planning import USUAL_FLIP_RATES, make_plan

    workspace = optional_workspace(common, needed=max_drop is None)
    has_data = workspace is not None or data.data is not None
    examples = DataSource(workspace, data).examples("test") if has_data else None
    if flip_rate is None and examples is not None and workspace is not None:
        flip_rate = _kept_flip_rate(workspace, candidate, examples, common.console)
    if count is None and examples is not None:
        count = len(examples)
    policy = policy_in(workspace, None, {"max_drop": max_drop, "alpha": alpha}, common.console)
    if policy.max_drop is None:
        msg = "the policy has no max_drop to plan for; pass --max-drop"
        raise RequestError(msg)
    rates = USUAL_FLIP_RATES if flip_rate is None else (flip_rate,)
    made = make_plan(
        policy.max_drop, flip_rates=rates, examples=count, alpha=policy.alpha, power=power
    )
    _show(common.console, made)


def _kept_flip_rate(
    workspace: "Workspace", candidate: Path | None, examples: "Examples", console: "Console"
) -> float | None:
    """Return how often a candidate's kept answers flip; None where none were kept."""
    from tcompress.errors import RequestError

    from ..accuracy import correctness
    from ..answers import AnswerBook, Question
    from ..noninferiority import PairedCounts
    from .command import newest_candidate

    if examples.labels is None:
        return None
    try:
        candidate = candidate or newest_candidate(workspace, console)
    except RequestError:
        return None  # nothing to judge yet: planned for before it is made
    book = AnswerBook(workspace.answers_directory)
    sides = (workspace.model_directory, candidate)
    found = [book.find(Question.about(side, examples), examples) for side in sides]
    before, now = (None if kept is None else correctness(kept, examples) for kept in found)
    if before is None or now is None:
        return None
    rate = PairedCounts.from_correct(before, now).flip_rate
    console.say(f"gate: of the kept answers of {candidate}, {rate:.2%} flip")
    return rate


def _show(console: "Console", made: "Plan") -> None:
    if console.as_json:
        console.show_json(made.to_json())
        return
    points = f"{100 * made.max_drop:.2f} points"
    console.show(
        f"To prove a drop below {points} with a chance of {made.power:.0%}, for a candidate that "
        f"loses nothing (alpha {made.alpha:g}):"
    )
    columns, rows = ["flips", "examples"], []
    if made.examples is not None:
        columns += [f"{made.examples:,} examples prove", "at best", f"chance of {points}"]
    for row in made.rows:
        cells = [f"{row.flip_rate:.1%}", f"{row.required_examples:,}"]
        if row.reach is not None:
            margins = row.reach.provable_margin, row.reach.best_margin
            cells += [f"{100 * margin:.2f} points" for margin in margins]
            cells.append(f"{row.reach.power:.0%}")
        rows.append(cells)
    console.table(columns, rows)
