"""What every stage does around its own work: find inputs, name outputs, know what is done."""

from pathlib import Path
from typing import Any

from .artifact import Artifact, Manifest, Parent, check_output, is_artifact
from .data import Columns, Examples, read_examples
from .errors import ArtifactError, RequestError, WorkspaceError
from .options import Common, DataOptions, StageOptions
from .workspace import Workspace, find_workspace


def optional_workspace(common: Common, *, needed: bool) -> Workspace | None:
    """Open the workspace, or do without where everything was named on the command line.

    Args:
        common: The command's common options.
        needed: Whether to raise when there is none.

    Raises:
        WorkspaceError: If there is none and one is needed or was named.
    """
    try:
        return find_workspace(common.workspace)
    except WorkspaceError:
        if needed or common.workspace is not None:
            raise
        return None


def input_model(
    workspace: Workspace | None, model: Path | None, builds_on: tuple[str, ...]
) -> Path:
    """Return the directory that a stage reads.

    Args:
        workspace: The workspace, or None.
        model: Directory from `--model`, or None.
        builds_on: Stages whose encoders this stage can read, besides the source model.
    """
    if model is not None:
        return model
    if workspace is None:
        msg = "no workspace and no --model"
        raise WorkspaceError(msg)
    return workspace.newest_encoder(builds_on)


def output_directory(workspace: Workspace | None, options: StageOptions, *name: str) -> Path:
    """Return the directory that a stage writes.

    Args:
        workspace: The workspace, or None.
        options: The command's stage options.
        name: Path below the workspace's artifacts.

    Raises:
        RequestError: If there is neither a workspace nor `--output`, or the output would stand
            inside the model that is read.
    """
    if options.output is not None:
        output = options.output
    elif workspace is not None:
        output = workspace.artifacts_directory.joinpath(*name)
    else:
        msg = "without a workspace, name where to write with --output"
        raise RequestError(msg)
    model = options.model
    if model is not None and model.resolve() in (output.resolve(), *output.resolve().parents):
        msg = f"--output {output} is the model directory or inside it; choose another"
        raise RequestError(msg)
    return output


def input_examples(workspace: Workspace | None, options: DataOptions, split: str) -> Examples:
    """Return the examples that a stage works on.

    Args:
        workspace: The workspace, or None.
        options: The command's data options.
        split: `train`, `validation` or `test`: the workspace's split to use without `--data`.

    Raises:
        RequestError: If there is neither a workspace nor `--data`.
    """
    if options.data is None:
        if workspace is None:
            msg = "without a workspace, name the examples with --data"
            raise RequestError(msg)
        examples: Examples = getattr(workspace.splits(), split)
        return examples
    usual = Columns() if workspace is None else workspace.config.data.columns
    columns = Columns(
        text=options.text_column or usual.text,
        text_pair=options.text_pair_column or usual.text_pair,
        label=options.label_column or usual.label,
    )
    return read_examples(options.data, columns)


def seed_of(common: Common, workspace: Workspace | None) -> int:
    """Return the seed that a stage uses.

    Args:
        common: The command's common options.
        workspace: The workspace, or None.
    """
    if common.seed is not None:
        return common.seed
    return 0 if workspace is None else workspace.config.seed


def finished_artifact(
    output: Path, parent: Parent, recipe: dict[str, Any], *, force: bool
) -> Artifact | None:
    """Return the artifact at `output` if it is what the stage would write again.

    Args:
        output: Where the stage writes.
        parent: What it reads.
        recipe: Its parameters.
        force: Whether to write again in any case.

    Returns:
        The artifact, or None when the stage has to run.

    Raises:
        OutputExistsError: If something else is there and `force` is not set.
    """
    if not force and is_artifact(output):
        try:
            manifest = Manifest.read(output)
            if (manifest.parent.digest, manifest.recipe) == (parent.digest, recipe):
                return Artifact.open(output)
        except ArtifactError:
            pass  # damaged: treated like any other output in the way
    check_output(output, replace=force)
    return None
