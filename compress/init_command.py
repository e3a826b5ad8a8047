"""The `init` command; it stands here because the demos are trained."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tcompress.errors import RequestError
from tcompress.options import (
    CONTEXT,
    FILE,
    MODEL,
    RATIO,
    Common,
    common_options,
    demo_option,
    reading_options,
    slice_option,
)
from tcompress.tasks import Task

if TYPE_CHECKING:
    from tcompress.data import Examples
    from tcompress.encoder import Encoder
    from tcompress.workspace import Workspace, WorkspaceConfig

_KEPT = "model"
"""Where in a workspace a model stands that was made of the named one."""
_TRIED = 8


@click.command(context_settings=CONTEXT, short_help="Start a workspace on a model and its data.")
@click.argument("model", required=False, type=MODEL)
@demo_option
@click.option(
    "--task",
    type=click.Choice([task.value for task in Task]),
    help="What the model was trained for, where its files do not say it.",
)
@click.option("--data", type=FILE, help="One file with all examples, split by tcompress.")
@click.option("--train", type=FILE, help="Training examples, where they have a file of their own.")
@click.option("--validation", type=FILE, help="Examples to select by, likewise.")
@click.option("--test", type=FILE, help="Examples to evaluate and gate on, likewise.")
@click.option("--text-column", default="text", help="Column of the text, or of its words.")
@click.option("--text-pair-column", help="Column of the second text, or of a question's context.")
@click.option("--label-column", default="label", help="Column of the label, tags or answers.")
@click.option("--group-column", help="Column whose values stay on one side of the split.")
@slice_option
@reading_options
@click.option("--validation-fraction", type=RATIO, default=0.2, help="Part of --data.")
@click.option("--test-fraction", type=RATIO, default=0.3, help="Part of --data.")
@click.option(
    "--allow-pickle-weights",
    is_flag=True,
    help="Read weights that torch.save wrote, where MODEL has no others; none of their code runs.",
)
@click.option("--force", is_flag=True, help="Replace the settings of an existing workspace.")
@common_options
@click.pass_context
def init(
    ctx: click.Context,
    model: Path | None,
    demo: str | None,
    task: str | None,
    data: Path | None,
    train: Path | None,
    validation: Path | None,
    test: Path | None,
    text_column: str,
    text_pair_column: str | None,
    label_column: str,
    group_column: str | None,
    slice_columns: tuple[str, ...],
    validation_fraction: float,
    test_fraction: float,
    allow_pickle_weights: bool,
    force: bool,
    reading: dict[str, Any],
    common: Common,
) -> None:
    """Start a workspace: a directory in which the other commands chain.

    It writes tcompress.toml and copies nothing large. Give a model and its data, or --demo. MODEL
    is a directory, or a model of the Hugging Face hub as hf:OWNER/NAME or hf:OWNER/NAME@REVISION.
    Data are files, or sets of the hub as hf:NAME, hf:NAME/CONFIG or hf:NAME#SPLIT.

    \b
    Example:
      tcompress init ./my-bert --data reviews.csv --text-column review --label-column stars
      tcompress init ./my-bert --train train.csv --validation dev.csv --test test.csv
      tcompress init ./my-old-bert --data reviews.csv --allow-pickle-weights
      tcompress init my.module:build --weights ./my-weights --data reviews.csv
      tcompress init --demo digits
    """
    from dataclasses import asdict, replace

    from tcompress.loading import load_encoder
    from tcompress.locking import lock_within
    from tcompress.workspace import DataConfig, Workspace, WorkspaceConfig, workspace_directory

    directory = workspace_directory(common.workspace)
    common.lock(lock_within(directory))
    if demo is not None:
        if model is not None or any((task, data, train, validation, test)):
            msg = "--demo brings its own model and data; leave MODEL and the data options out"
            raise click.UsageError(msg)
        from .demo import prepare_demo

        config = prepare_demo(demo, common.console).config
    else:
        model = _required_model(model)
        config = WorkspaceConfig(
            model=str(model.resolve()),
            data=DataConfig(
                **_data_files(data, train, validation, test),
                text_column=text_column,
                text_pair_column=text_pair_column,
                label_column=label_column,
                group_column=group_column,
                slice_columns=slice_columns,
                validation_fraction=validation_fraction,
                test_fraction=test_fraction,
                split_seed=common.seed or 0,
                **{name: value for name, value in reading.items() if value is not None},
            ),
            seed=common.seed or 0,
        )
        given = ctx.get_parameter_source("label_column") is not ParameterSource.DEFAULT
        with ExitStack() as until_kept:
            readable = _readable(until_kept, model, directory, pickles=allow_pickle_weights)
            opened = Workspace(directory, replace(config, model=str(readable.resolve())))
            _check(opened, task, needs_labels=given)
            made = _lasting(until_kept, readable, task, directory)
            if made != model:
                config = replace(config, model=str((directory / _KEPT).resolve()))
                _keep(made, model, directory, config, replace=force)
    workspace = Workspace.create(directory, config, replace=force)
    if common.console.as_json:
        document = {"schema_version": 1, "workspace": str(directory.resolve()), **asdict(config)}
        common.console.show_json(document)
        return
    encoder = load_encoder(workspace.model_directory)
    splits = workspace.splits()
    sizes = ", ".join(
        f"{len(part):,} {name}"
        for name, part in (
            ("training", splits.train),
            ("validation", splits.validation),
            ("test", splits.test),
        )
    )
    heads = sum(encoder.anatomy.head_counts)
    labels = f", labels {', '.join(encoder.labels)}" if encoder.labels else ""
    common.console.show(
        f"init: {encoder.anatomy.family} for {encoder.task}, {len(encoder.anatomy.layers)} layers, "
        f"{heads} heads{labels}; {sizes} examples"
    )
    if not splits.train.labelled:
        common.console.say("init: no labels in the data; answers are compared with the model's own")
    if splits.dropped:
        common.console.warn(f"{splits.dropped} examples left out: they also occur in a later split")


def _required_model(model: Path | None) -> Path:
    if model is None:
        msg = "name a MODEL directory with --data FILE, or use --demo"
        raise click.UsageError(msg)
    return model


def _readable(until_kept: ExitStack, model: Path, directory: Path, *, pickles: bool) -> Path:
    from tcompress.unpickled import unpickled

    return until_kept.enter_context(unpickled(model, directory)) if pickles else model


def _lasting(until_kept: ExitStack, readable: Path, task: str | None, directory: Path) -> Path:
    """Return a model directory that says all about the model and is in nobody's cache."""
    from tcompress.factories import settled
    from tcompress.retasked import retasked

    if task is not None:
        readable = until_kept.enter_context(retasked(readable, Task(task), directory))
    return until_kept.enter_context(settled(readable, directory))


def _keep(
    made: Path, model: Path, directory: Path, config: "WorkspaceConfig", *, replace: bool
) -> None:
    """Put what was made of a model into the workspace, unless something stands in the way."""
    from tcompress.keeping import keep
    from tcompress.workspace import CONFIG_FILE, Workspace

    target = directory / _KEPT
    if target.resolve() == model.resolve():
        msg = (
            f"{model}: a workspace keeps there what is made of a model; name the model that it was "
            "made from, or move it away"
        )
        raise RequestError(msg)
    if (directory / CONFIG_FILE).exists() and not replace:
        Workspace.create(directory, config)  # which writes nothing there, but may refuse
    keep(made, target, replace=replace)


def _data_files(
    data: Path | None, train: Path | None, validation: Path | None, test: Path | None
) -> dict[str, Any]:
    """Return the files for the workspace: one that is split, or one per split."""
    parts = {"train": train, "validation": validation, "test": test}
    given = [name for name, path in parts.items() if path is not None]
    if data is not None and given:
        msg = f"--data is split by tcompress; it cannot stand with --{given[0]}"
        raise click.UsageError(msg)
    if data is None and len(given) < len(parts):
        missing = ", ".join(f"--{name}" for name in parts if name not in given)
        msg = f"name the examples with --data FILE, or a file per split (missing: {missing})"
        raise click.UsageError(msg)
    files = {"file": data} if data is not None else parts
    return {name: _place(path) for name, path in files.items() if path is not None}


def _place(path: Path) -> str:
    from tcompress.hub import is_hub_name

    return str(path if is_hub_name(path) else path.resolve())


def _check(workspace: "Workspace", task: str | None, *, needs_labels: bool) -> None:
    """Open model and data once, so that mistakes show now and not an hour later."""
    from tcompress.loading import load_encoder
    from tcompress.tasks import decision_of

    encoder = load_encoder(workspace.model_directory, task)
    splits = workspace.splits()
    for examples in (splits.train, splits.validation, splits.test):
        some = examples.take(range(min(_TRIED, len(examples))))
        encoded = encoder.preprocessor.encode(some)
        if encoder.task is not Task.EMBEDDING and (examples.labelled or needs_labels):
            _check_labels(encoder, examples)
            decision_of(encoder.task).targets(encoder.labels, some, encoded)


def _check_labels(encoder: "Encoder", examples: "Examples") -> None:
    """Match all of the data's labels with the model's."""
    from tcompress.data import label_index

    if encoder.task is Task.REGRESSION:
        _ = examples.numbers  # raises
    elif encoder.task is not Task.QUESTION_ANSWERING:
        label_index(encoder.labels, examples.label_names, examples.origin)
