"""What every stage does around its own work: find inputs, name outputs, know what is done."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from .artifact import ENCODER_KIND, Artifact, Manifest, Parent, is_artifact
from .console import Console
from .data import Columns, Examples, read_examples
from .encoder import Encoder
from .errors import ArtifactError, DataError, ModelError, RequestError, WorkspaceError
from .hub import is_hub_name
from .loading import load_encoder
from .locking import lock_file, lock_within
from .options import Common, DataOptions, StageOptions
from .preprocessing import Encoded, Preprocessor
from .stage_key import Reads, StageKey
from .workspace import DataConfig, Workspace, find_workspace, made_from, reference_to, source_of
from .writing import check_output, writing_artifact


def optional_workspace(common: Common, *, needed: bool) -> Workspace | None:
    """Open the workspace, or do without where everything was named on the command line.

    Args:
        common: The command's common options.
        needed: Whether to raise when there is none.

    Raises:
        WorkspaceError: If there is none and one is needed or was named.
    """
    try:
        workspace = find_workspace(common.workspace)
    except WorkspaceError:
        if needed or common.workspace is not None:
            raise
        return None
    for line in workspace.unreadable():
        common.console.warn(line)
    return workspace


def input_model(
    workspace: Workspace | None,
    model: Path | None,
    builds_on: tuple[str, ...],
    *,
    unpruned: bool = False,
) -> Path:
    """Return the directory that a stage reads.

    Args:
        workspace: The workspace, or None.
        model: Directory from `--model`, or None.
        builds_on: Stages whose encoders this stage can read, besides the source model.
        unpruned: Whether only encoders that lost nothing will do.
    """
    if model is not None:
        return model
    if workspace is None:
        msg = "no workspace and no --model"
        raise WorkspaceError(msg)
    return workspace.newest_encoder(builds_on, unpruned=unpruned)


def hold_output(common: Common, workspace: Workspace | None, output: Path | None) -> None:
    """Let no other command write there until this one has ended, and clear what killed ones left.

    Args:
        common: The command's common options.
        workspace: The workspace, or None.
        output: What is written, from `--output`; None for a part of the workspace.

    Raises:
        StorageError: If the file system refuses.
    """
    if workspace is not None and (output is None or workspace.holds(output)):
        common.lock(lock_within(workspace.directory))
        workspace.clear()
    elif output is not None:
        common.lock(lock_file(output))


def output_directory(
    workspace: Workspace | None, options: StageOptions, model: Path, *name: str
) -> Path:
    """Return the directory that a stage writes.

    Args:
        workspace: The workspace, or None.
        options: The command's stage options.
        model: What the stage reads.
        name: Path below the workspace's artifacts. Where what is read was itself made from the
            artifact of that name, `-again` is added, so that nothing replaces its own ancestor.

    Raises:
        RequestError: If there is neither a workspace nor `--output`, or the output would stand
            inside the model that is read.
    """
    if options.output is not None:
        output = options.output
    elif workspace is not None:
        output = workspace.artifacts_directory.joinpath(*name)
        if made_from(model, output):
            output = output.with_name(f"{output.name}-again")
    else:
        msg = "without a workspace, name where to write with --output"
        raise RequestError(msg)
    if model.resolve() in (output.resolve(), *output.resolve().parents):
        msg = f"--output {output} is the model directory or inside it; choose another"
        raise RequestError(msg)
    return output


@dataclass(frozen=True)
class DataSource:
    """Where a command's examples come from: `--data`, or the workspace's splits.

    Attributes:
        workspace: The workspace, or None.
        options: The command's data options.
    """

    workspace: Workspace | None
    options: DataOptions

    def examples(
        self,
        split: str,
        limit: int | None = None,
        seed: int = 0,
        avoid: frozenset[str] = frozenset(),
    ) -> Examples:
        """Return the examples that a command works on.

        Args:
            split: `train`, `validation` or `test`: which of the workspace's splits to use where
                `--data` names no file.
            limit: How many at most, drawn while they are read; None for all.
            seed: Seed of the draw.
            avoid: Content digests of examples of `--data` to leave out.

        Raises:
            RequestError: If there is neither a workspace nor `--data`.
            DataError: If the file is bad, or has no label column where one was named.
        """
        data, label = self.options.data, self.options.label_column
        if data is None:
            if self.options.reading:
                msg = "the column options go with --data; the workspace's are in tcompress.toml"
                raise RequestError(msg)
            return self.workspace_split(split, limit, seed)
        place = str(data) if is_hub_name(data) else data
        examples = read_examples(place, self._columns(), limit, seed, avoid)
        if label is not None and not examples.labelled:
            msg = f"{data}: no column {label!r}"
            raise DataError(msg)
        return examples

    def training_examples(self, limit: int | None = None, seed: int = 0) -> Examples:
        """Return the examples to fit and calibrate on; none of them is used to select or judge.

        Args:
            limit: How many at most, drawn while they are read; None for all.
            seed: Seed of the draw.

        Raises:
            DataError: If nothing is left.
        """
        if self.options.data is None or self.workspace is None:
            return self.examples("train", limit, seed)
        splits = self.workspace.splits()
        later = frozenset((*splits.validation.content_digests, *splits.test.content_digests))
        return self.examples("train", limit, seed, later)

    def held_out_examples(self) -> Examples:
        """Return the examples to judge by; none of them was fitted or selected on.

        Raises:
            DataError: If `--data` holds examples of the training or validation split.
        """
        examples = self.examples("test")
        if self.options.data is None or self.workspace is None:
            return examples
        splits = self.workspace.splits()
        used = len(examples) - len(examples.without(splits.train).without(splits.validation))
        if used:
            msg = (
                f"{examples.origin}: {used} of {len(examples)} examples also stand in the "
                "training or validation split; judge by others"
            )
            raise DataError(msg)
        return examples

    def workspace_split(self, split: str, limit: int | None = None, seed: int = 0) -> Examples:
        """Return a split of the workspace.

        Args:
            split: `train`, `validation` or `test`.
            limit: How many at most, drawn while they are read; None for all.
            seed: Seed of the draw.

        Raises:
            RequestError: If there is no workspace.
        """
        if self.workspace is None:
            msg = "without a workspace, name the examples with --data"
            raise RequestError(msg)
        typed = self.options.slice_columns
        source = self.workspace.with_slices(typed) if typed else self.workspace
        if limit is not None:
            return source.sample(split, limit, seed)
        examples: Examples = getattr(source.splits(), split)
        return examples

    def _columns(self) -> Columns:
        """Return the workspace's columns, with what was typed in their place."""
        usual = DataConfig() if self.workspace is None else self.workspace.config.data
        named = self.options.reading
        if named.keys() & {"label_column", "label_separator"}:
            usual = replace(usual, label_columns=())
        if "label_columns" in named:
            usual = replace(usual, label_separator=None)
        typed = self.options.slice_columns
        slices = () if typed is None else typed or usual.slice_columns
        return replace(usual, **(named | {"slice_columns": slices, "group_column": None})).columns


@dataclass(frozen=True)
class StageRun:
    """One run of a stage that reads an encoder and writes an artifact.

    Attributes:
        name: The stage.
        directory: What it reads.
        output: What it writes.
        force: Whether an artifact in the way may be replaced.
        seed: Its seed.
        data: Its examples.
        console: Where it speaks.
    """

    name: str
    directory: Path
    output: Path
    force: bool
    seed: int
    data: DataSource
    console: Console

    @classmethod
    def open(
        cls,
        name: str,
        common: Common,
        options: StageOptions,
        *,
        builds_on: tuple[str, ...],
        unpruned: bool = False,
        data: DataOptions | None = None,
        output: tuple[str, ...] = (),
    ) -> "StageRun":
        """Find out what a stage reads and writes.

        Args:
            name: The stage.
            common: The command's common options.
            options: The command's stage options.
            builds_on: Stages whose encoders it can read, besides the source model.
            unpruned: Whether only encoders that lost nothing will do.
            data: The command's data options.
            output: Path below the workspace's artifacts; the stage's name by default.

        Raises:
            RequestError: If nothing says what to read or where to write.
        """
        workspace = optional_workspace(common, needed=options.model is None)
        hold_output(common, workspace, options.output)
        directory = input_model(workspace, options.model, builds_on, unpruned=unpruned)
        return cls(
            name,
            directory,
            output_directory(workspace, options, directory, *(output or (name,))),
            options.force,
            seed_of(common, workspace),
            DataSource(workspace, data or DataOptions(None, None, None, None)),
            common.console,
        )

    def key(self, recipe: dict[str, Any], reads: Reads | None = None) -> StageKey:
        """Return what the result of this run depends on.

        Args:
            recipe: The stage's parameters.
            reads: What it reads besides its model.
        """
        model = reference_to(self.directory).digest
        return StageKey.of(self.name, model, recipe, reads or Reads())

    def finished(self, key: StageKey) -> Artifact | None:
        """Return the artifact at the output if it is what this run would write again.

        Args:
            key: What the result depends on.

        Returns:
            The artifact, or None when the stage has to run.

        Raises:
            OutputExistsError: If something else is there and may not be replaced.
        """
        if is_artifact(self.output):
            try:
                artifact = Artifact.open(self.output)
                if not (changes := key.changes(artifact.manifest)):
                    self.console.say(f"{self.name}: {self.output} is up to date")
                    return artifact
                self.console.say(f"{self.name}: not up to date: {', '.join(changes)}")
            except ArtifactError as error:  # damaged: treated like any other output in the way
                self.console.say(f"{self.name}: not up to date: {error}")
        check_output(self.output, replace=self.force)
        return None

    def transform(self, key: StageKey, work: Callable[[Encoder], dict[str, Any]]) -> Artifact:
        """Load the encoder, change it, and write it as the stage's artifact, unless that is done.

        Args:
            key: What the result depends on; equal keys, equal result.
            work: Changes the encoder in place; returns details for the manifest.
        """
        if (done := self.finished(key)) is not None:
            return done
        encoder = load_encoder(self.directory)
        details = work(encoder)

        def save(directory: Path) -> dict[str, Any]:
            encoder.save(directory)
            return details

        return self.write(ENCODER_KIND, encoder, key, save, encoder.plan.precision)

    def write(
        self,
        kind: str,
        encoder: Encoder,
        key: StageKey,
        save: Callable[[Path], dict[str, Any]],
        precision: str,
    ) -> Artifact:
        """Write the stage's artifact, all or nothing, if what it was made of is as it was.

        Args:
            kind: Kind of artifact.
            encoder: What its plan is taken from.
            key: What the result depends on.
            save: Writes the files into a directory; returns details for the manifest.
            precision: Precision that the files run in.

        Raises:
            ModelError: If somebody changed or replaced the model since the key was made.
        """
        with writing_artifact(self.output, replace=self.force) as draft:
            details = save(draft.directory)
            parent = still(self.directory, key)
            draft.manifest = Manifest(
                kind=kind,
                stage=self.name,
                parent=self.reference(parent),
                source=self.reference(source_of(self.directory)),
                plan=encoder.plan,
                recipe=key.recipe,
                precision=precision,
                details=details,
                created=self._now(),
                task=encoder.task,
                key=key.to_json(),
            )
        self.console.say(f"{self.name}: wrote {self.output}")
        return Artifact(self.output, Manifest.read(self.output))

    def reference(self, parent: Parent) -> Parent:
        """Return a reference as the output's manifest keeps it.

        Args:
            parent: With an absolute path.
        """
        workspace, output = self.data.workspace, self.output.resolve()
        if workspace is None:
            return parent
        root = workspace.directory.resolve()
        if not (output.is_relative_to(root) and Path(parent.path).is_relative_to(root)):
            return parent
        return replace(parent, path=os.path.relpath(parent.path, output))

    def _now(self) -> str:
        """Return the time, later than all artifacts of the workspace even if the clock jumped."""
        now, workspace = datetime.now(UTC), self.data.workspace
        with suppress(ValueError):  # of artifacts that nothing here reads
            for artifact in [] if workspace is None else workspace.artifacts():
                created = datetime.fromisoformat(artifact.manifest.created).astimezone(UTC)
                now = max(now, created + timedelta(microseconds=1))
        return now.isoformat()

    def show(self, artifact: Artifact, *lines: str) -> None:
        """Say what the stage wrote: the manifest's essence as JSON, or lines.

        Args:
            artifact: What it wrote.
            lines: The lines.
        """
        if self.console.as_json:
            self.console.show_json(artifact.summary())
        else:
            self.console.show(*lines)

    def encode(self, encoder: Encoder, examples: Examples) -> Encoded:
        """Prepare examples for an encoder, and warn about what was cut off.

        Args:
            encoder: The encoder.
            examples: The examples.
        """
        return encode_with_warning(encoder.preprocessor, examples, self.console)


def still(directory: Path, key: StageKey) -> Parent:
    """Return a reference to the model that a stage has read, if it is as it was.

    Args:
        directory: The model.
        key: What the stage's result depends on, from before it was read.

    Raises:
        ModelError: If somebody changed or replaced it since.
    """
    found = reference_to(directory)
    if found.digest != key.model:
        msg = f"{directory}: changed while {key.stage} worked on it; run it again"
        raise ModelError(msg)
    return found


def encode_with_warning(
    preprocessor: Preprocessor, examples: Examples, console: Console
) -> Encoded:
    """Prepare examples for a model, and warn about those that are longer than its positions.

    Args:
        preprocessor: The model's preprocessor.
        examples: The examples.
        console: Where to warn.
    """
    encoded = preprocessor.encode(examples)
    if encoded.truncated:
        console.warn(
            f"{encoded.truncated} of {len(examples)} examples are longer than the model's "
            f"{preprocessor.max_tokens} positions and were cut off there"
        )
    return encoded


def seed_of(common: Common, workspace: Workspace | None) -> int:
    """Return the seed that a command uses.

    Args:
        common: The command's common options.
        workspace: The workspace, or None.
    """
    if common.seed is not None:
        return common.seed
    return 0 if workspace is None else workspace.config.seed
