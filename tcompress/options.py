"""Options that several commands share, as decorators."""

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from .console import Console

Function = TypeVar("Function", bound=Callable[..., Any])

CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100}
DIRECTORY = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
RATIO = click.FloatRange(0, 1)


@dataclass(frozen=True)
class Common:
    """What every command is told.

    Attributes:
        workspace: Directory from `--workspace`, or None.
        seed: From `--seed`, or None for the workspace's.
        console: Where to speak.
    """

    workspace: Path | None
    seed: int | None
    console: Console


@dataclass(frozen=True)
class StageOptions:
    """What every stage that writes an artifact is told.

    Attributes:
        model: Directory from `--model`, or None.
        output: Directory from `--output`, or None.
        force: Whether an artifact in the way may be replaced.
    """

    model: Path | None
    output: Path | None
    force: bool


@dataclass(frozen=True)
class DataOptions:
    """Data named on the command line, in place of the workspace's.

    Attributes:
        data: File from `--data`, or None.
        text_column: Column of the text, or None for the workspace's.
        text_pair_column: Column of the second text, likewise.
        label_column: Column of the label, likewise.
        slice_columns: Columns to tell accuracy apart by, likewise; None for a command that does
            not judge and needs none.
    """

    data: Path | None
    text_column: str | None
    text_pair_column: str | None
    label_column: str | None
    slice_columns: tuple[str, ...] | None = None


demo_option = click.option(
    "--demo",
    is_flag=False,
    flag_value="reviews",
    type=click.Choice(("reviews", "digits")),
    help="Start with an embedded model and its data; reviews when no name is given.",
)


slice_option = click.option(
    "--slice-column",
    "slice_columns",
    multiple=True,
    help="Column by whose values accuracy is also told apart; may be given several times.",
)

_DATA: dict[str, Callable[..., Any]] = {
    "data": click.option(
        "--data",
        type=FILE,
        help="Examples to use (CSV, TSV, JSONL, Parquet, NPZ, safetensors); else the workspace's.",
    ),
    "text_column": click.option("--text-column", help="Column of the text."),
    "text_pair_column": click.option("--text-pair-column", help="Column of the second text."),
    "label_column": click.option("--label-column", help="Column of the label."),
}


def refuse_typed(names: Collection[str], why: str) -> None:
    """Refuse options of the running command that it would ignore, where they were typed.

    Args:
        names: The options' parameters.
        why: What goes behind the option's name.

    Raises:
        UsageError: If one of them was typed.
    """
    context = click.get_current_context()
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name in names and source is ParameterSource.COMMANDLINE:
            msg = f"{option.opts[0]} {why}"
            raise click.UsageError(msg)


def _gather(
    function: Callable[..., Any], kind: type, target: str, options: dict[str, Callable[..., Any]]
) -> Callable[..., Any]:
    """Add options to a command and hand them over as one object."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        values = {name: kwargs.pop(name) for name in options}
        return function(*args, **kwargs, **{target: kind(**values)})

    decorated: Callable[..., Any] = wrapper
    for option in reversed(options.values()):
        decorated = option(decorated)
    return decorated


def common_options(function: Function) -> Function:
    """Add `--workspace`, `--seed`, `--json` and `--quiet`; the command gets `common`.

    Args:
        function: The command.
    """

    def common(workspace: Path | None, seed: int | None, as_json: bool, quiet: bool) -> Common:
        return Common(workspace, seed, Console(as_json=as_json, quiet=quiet))

    options = {
        "workspace": click.option(
            "--workspace",
            type=DIRECTORY,
            help="Workspace to work in; else TCOMPRESS_WORKSPACE, else this directory.",
        ),
        "seed": click.option(
            "--seed", type=click.IntRange(min=0), help="Seed; else the workspace's."
        ),
        "as_json": click.option("--json", "as_json", is_flag=True, help="One JSON document."),
        "quiet": click.option("--quiet", "-q", is_flag=True, help="No progress on stderr."),
    }
    return _gather(function, common, "common", options)  # type: ignore[arg-type, return-value]


def stage_options(function: Function) -> Function:
    """Add `--model`, `--output` and `--force`; the command gets `stage`.

    Args:
        function: The command.
    """
    options = {
        "model": click.option(
            "--model",
            type=DIRECTORY,
            help="Model directory or artifact to read; else the newest in the workspace.",
        ),
        "output": click.option(
            "--output", type=DIRECTORY, help="Where to write; else the workspace's artifacts."
        ),
        "force": click.option("--force", is_flag=True, help="Replace an artifact in the way."),
    }
    return _gather(function, StageOptions, "stage", options)  # type: ignore[return-value]


def data_options(function: Function) -> Function:
    """Add `--data` and the column options; the command gets `data`.

    Args:
        function: The command.
    """
    return _gather(function, DataOptions, "data", _DATA)  # type: ignore[return-value]


def judged_data_options(function: Function) -> Function:
    """Add what `data_options` adds, and `--slice-column`; the command gets `data`.

    Args:
        function: The command.
    """
    options = {**_DATA, "slice_columns": slice_option}
    return _gather(function, DataOptions, "data", options)  # type: ignore[return-value]
