"""Options that several commands share, as decorators."""

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from .console import Console
from .locking import locked
from .staging import sweep

Function = TypeVar("Function", bound=Callable[..., Any])

CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100}
DIRECTORY = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
RATIO = click.FloatRange(0, 1)
_TYPED_WEIGHTS = "tcompress.weights"


class ModelPath(click.Path):
    """A model directory, or a name that becomes one.

    `package.module:factory` does so with its `--weights`, `hf:OWNER/NAME` by being fetched.
    """

    name = "model"

    def convert(
        self, value: Any, parameter: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """Return the directory.

        Args:
            value: What was typed.
            parameter: The parameter it was typed for.
            ctx: Click's context.
        """
        from .factories import house, is_factory
        from .hub import fetched, is_hub_name

        if ctx is None or not isinstance(value, str):
            return super().convert(value, parameter, ctx)
        if is_hub_name(value):
            return fetched(value)
        if not is_factory(value):
            return super().convert(value, parameter, ctx)
        return house(value, ctx.meta.get(_TYPED_WEIGHTS))


MODEL = ModelPath(path_type=Path, file_okay=False)


def _keep_weights(
    ctx: click.Context, parameter: click.Parameter, value: Path | None
) -> Path | None:
    ctx.meta[_TYPED_WEIGHTS] = value
    return value


def _trust(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    from .factories import trust

    if value is not None:
        trust(value)
    return value


# Their values are there for what is parsed behind them, and take effect in their callbacks.
_OWN_MODULE: dict[str, Callable[..., Any]] = {
    "trust_module": click.option(
        "--trust-module",
        metavar="MODULE:FACTORY",
        is_eager=True,
        callback=_trust,
        help="Code that may be imported to build a model of your own.",
    ),
    "weights": click.option(
        "--weights",
        type=click.Path(path_type=Path),
        is_eager=True,
        callback=_keep_weights,
        help="Weights of a model that is named as MODULE:FACTORY.",
    ),
}


def _label_map(
    ctx: click.Context, parameter: click.Parameter, value: str | None
) -> dict[str, str] | None:
    """Take apart pairs of the data's and the model's name of a label."""
    if value is None:
        return None
    names: dict[str, str] = {}
    for pair in value.split(","):
        old, _, new = (part.strip() for part in pair.partition("="))
        if not (old and new):
            msg = f"{pair!r} is no pair data=model, such as 0=negative"
            raise click.BadParameter(msg)
        if old in names:
            msg = f"{old!r} is renamed twice"
            raise click.BadParameter(msg)
        names[old] = new
    return names


def _names(
    ctx: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    """Take apart column names with commas between them."""
    if value is None:
        return None
    names = tuple(name.strip() for name in value.split(","))
    if not all(names) or len(set(names)) != len(names):
        msg = f"{value!r} must name each column once, with commas between them"
        raise click.BadParameter(msg)
    return names


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

    def lock(self, path: Path) -> None:
        """Wait until no other process holds a lock, and hold it until the command has ended.

        What killed processes left beside it is removed.

        Args:
            path: The file to lock.

        Raises:
            StorageError: If the file system refuses.
        """
        click.get_current_context().with_resource(locked(path, self.console.say))
        sweep(path.parent)


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
        label_separator: What stands between labels, or None for the workspace's.
        label_columns: Columns of 0 and 1, likewise.
        label_map: The model's label names by the data's, likewise.
        stride: Tokens that neighbouring windows of a context share, likewise.
        image_column: Column of paths of images, likewise.
    """

    data: Path | None
    text_column: str | None
    text_pair_column: str | None
    label_column: str | None
    slice_columns: tuple[str, ...] | None = None
    label_separator: str | None = None
    label_columns: tuple[str, ...] | None = None
    label_map: Mapping[str, str] | None = None
    stride: int | None = None
    image_column: str | None = None

    @property
    def reading(self) -> dict[str, Any]:
        """What was typed about reading the data, by the names that the workspace has for it."""
        names = ("text_column", "text_pair_column", "label_column", *LABEL_AND_WINDOW)
        return {name: value for name in names if (value := getattr(self, name)) is not None}


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

LABEL_AND_WINDOW: dict[str, Callable[..., Any]] = {
    "label_separator": click.option(
        "--label-separator", help="What stands between the labels of an example that has several."
    ),
    "label_columns": click.option(
        "--label-columns",
        callback=_names,
        metavar="A,B,...",
        help="Columns of 0 and 1, one for each label.",
    ),
    "label_map": click.option(
        "--label-map",
        callback=_label_map,
        metavar="DATA=MODEL,...",
        help="The model's names for the data's labels.",
    ),
    "stride": click.option(
        "--stride",
        type=click.IntRange(min=0),
        help="Tokens that windows of a long context share; 128 where nothing says so.",
    ),
    "image_column": click.option(
        "--image-column", help="Column of paths of images, below the table's directory."
    ),
}

_DATA: dict[str, Callable[..., Any]] = {
    "data": click.option(
        "--data",
        type=FILE,
        help="Examples to use: CSV, TSV, JSON, JSONL, Parquet, CoNLL, NPZ, safetensors, or "
        "hf:NAME; else the workspace's.",
    ),
    "text_column": click.option("--text-column", help="Column of the text, or of its words."),
    "text_pair_column": click.option(
        "--text-pair-column", help="Column of the second text, or of a question's context."
    ),
    "label_column": click.option("--label-column", help="Column of the label, tags or answers."),
    **LABEL_AND_WINDOW,
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


def common_options(function: Function, *, floors: bool = True) -> Function:
    """Add what every command has, `--workspace` to `--weights`; it gets `common`.

    Args:
        function: The command.
        floors: Whether it refuses to run with libraries that are too old.
    """

    def common(
        workspace: Path | None, seed: int | None, as_json: bool, quiet: bool, **_own_module: Any
    ) -> Common:
        if floors:
            from .floors import check_floors

            check_floors()
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
        **_OWN_MODULE,
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
            type=MODEL,
            help="Model directory or artifact to read, hf:OWNER/NAME, or MODULE:FACTORY; else the "
            "newest in the workspace.",
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


def reading_options(function: Function) -> Function:
    """Add the options about labels and windows that `init` keeps; the command gets `reading`.

    Args:
        function: The command.
    """
    return _gather(function, dict, "reading", LABEL_AND_WINDOW)  # type: ignore[return-value]


def judged_data_options(function: Function) -> Function:
    """Add what `data_options` adds, and `--slice-column`; the command gets `data`.

    Args:
        function: The command.
    """
    options = {**_DATA, "slice_columns": slice_option}
    return _gather(function, DataOptions, "data", options)  # type: ignore[return-value]
