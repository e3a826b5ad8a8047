"""A directory with a `tcompress.toml`, in which the commands chain."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self, get_args, get_origin, get_type_hints

import tomli_w

from .artifact import ENCODER_KIND, Artifact, Manifest, Parent, is_artifact
from .data import (
    STRIDE,
    Columns,
    Examples,
    read_digests,
    read_examples,
    split_examples,
)
from .encoder import model_digest
from .errors import ArtifactError, DataError, StorageError, WorkspaceError
from .hub import is_hub_name
from .intake import read_toml
from .staging import (
    STAGING_PREFIX,
    recover_within,
    sweep_below,
    write_text_atomically,
)

CONFIG_FILE = "tcompress.toml"
ANSWERS_DIRECTORY = "answers"
ENVIRONMENT_VARIABLE = "TCOMPRESS_WORKSPACE"
SCHEMA_VERSION = 1
_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from: either one file that is split, or a file per split.

    Attributes:
        file: One file for all splits.
        train: File of the training split; calibration examples are drawn from it.
        validation: File of the selection split.
        test: File of the split that `evaluate` and `gate` use.
        text_column: Column of the text.
        text_pair_column: Column of the second text, or None.
        label_column: Column of the label.
        group_column: Column whose values stay on one side when `file` is split, or None.
        slice_columns: Columns by whose values accuracy is also told apart.
        validation_fraction: Part of `file` for validation.
        test_fraction: Part of `file` for test.
        split_seed: Seed of the split.
        label_separator: What stands between the labels of one example, or None for one label.
        label_columns: Columns of 0 and 1, one per label, in place of `label_column`.
        label_map: The model's label names by the data's.
        stride: Tokens that neighbouring windows of a long context share.
        image_column: Column of paths of images, in place of `text_column`, or None.
    """

    file: str | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str = "label"
    group_column: str | None = None
    slice_columns: tuple[str, ...] = ()
    validation_fraction: float = 0.2
    test_fraction: float = 0.3
    split_seed: int = 0
    label_separator: str | None = None
    label_columns: tuple[str, ...] = ()
    label_map: dict[str, str] = field(default_factory=dict)
    stride: int = STRIDE
    image_column: str | None = None

    @property
    def columns(self) -> Columns:
        """The column names and how to read them."""
        return Columns(
            self.text_column,
            self.text_pair_column,
            self.label_column,
            self.group_column,
            self.slice_columns,
            self.label_separator,
            self.label_columns,
            self.label_map,
            self.stride,
            self.image_column,
        )


@dataclass(frozen=True)
class Splits:
    """The three splits; no input occurs in two of them.

    Attributes:
        train: For fitting and calibration.
        validation: For selection.
        test: For evaluation and gating.
        dropped: How many examples of train and validation were left out because their input
            also occurs in a later split.
    """

    train: Examples
    validation: Examples
    test: Examples
    dropped: int = 0


@dataclass(frozen=True)
class WorkspaceConfig:
    """Content of `tcompress.toml`.

    Attributes:
        model: Directory of the source model; relative paths count from the workspace.
        data: Where examples come from.
        seed: Default seed of the stages.
        max_drop: Default accuracy drop, a fraction, from which on the gate does not pass.
        demo: Name of the embedded default that this workspace was made from, or None.
    """

    model: str
    data: DataConfig
    seed: int = 0
    max_drop: float = 0.01
    demo: str | None = None


@dataclass(frozen=True)
class Workspace:
    """A workspace that was opened.

    Attributes:
        directory: Where it is.
        config: What its file says.
    """

    directory: Path
    config: WorkspaceConfig
    _splits: list[Splits] = field(default_factory=list, compare=False, repr=False)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Read a workspace.

        Args:
            directory: A directory with a `tcompress.toml`.

        Raises:
            WorkspaceError: If there is none, or it cannot be read.
        """
        path = directory / CONFIG_FILE
        if not path.is_file():
            msg = (
                f"no workspace in {directory} (no {CONFIG_FILE}); start one with "
                "`tcompress init MODEL --data FILE` or `tcompress init --demo`, "
                "or name a model with --model"
            )
            raise WorkspaceError(msg)
        document = read_toml(path, WorkspaceError)
        try:
            return cls(directory, _config_from(document))
        except (ValueError, TypeError, KeyError) as error:
            msg = f"{path}: {error}"
            raise WorkspaceError(msg) from error

    @classmethod
    def create(cls, directory: Path, config: WorkspaceConfig, *, replace: bool = False) -> Self:
        """Start a workspace.

        Args:
            directory: Where; created when missing.
            config: What its file is to say.
            replace: Whether an existing `tcompress.toml` may be replaced.

        Raises:
            WorkspaceError: If there is one already that says something else.
        """
        path = directory / CONFIG_FILE
        if path.exists() and not replace:
            if cls.open(directory).config == _within(directory, config):
                return cls(directory, config)
            msg = f"{path}: a workspace is here already; pass --force to replace its settings"
            raise WorkspaceError(msg)
        config = _within(directory, config)
        document = {"schema_version": SCHEMA_VERSION} | _without_none(asdict(config))
        write_text_atomically(path, tomli_w.dumps(document))
        return cls(directory, config)

    @property
    def artifacts_directory(self) -> Path:
        """Where the stages write."""
        return self.directory / "artifacts"

    @property
    def scores_file(self) -> Path:
        """Where `score` writes."""
        return self.directory / "scores.json"

    @property
    def report_directory(self) -> Path:
        """Where `evaluate` writes its report."""
        return self.directory / "report"

    @property
    def answers_directory(self) -> Path:
        """Where `evaluate` keeps the answers to every example."""
        return self.report_directory / ANSWERS_DIRECTORY

    @property
    def model_directory(self) -> Path:
        """Directory of the source model."""
        return self.directory / self.config.model

    def holds(self, path: Path) -> bool:
        """Tell whether a path lies in the workspace.

        Args:
            path: Any path.
        """
        return path.resolve().is_relative_to(self.directory.resolve())

    def clear(self) -> None:
        """Remove what processes left in directories of it that were killed while they wrote."""
        for written in (self.artifacts_directory, self.report_directory):
            sweep_below(written)

    def source(self) -> Parent:
        """Return the reference to the source model that manifests keep."""
        return reference_to(self.model_directory)

    def artifacts(self) -> list[Artifact]:
        """Return every artifact in the workspace, oldest first; digests are not yet checked.

        Those whose manifest cannot be read are left out; see `unreadable`.
        """
        found = [item for item in self._found() if isinstance(item, Artifact)]
        return sorted(found, key=lambda artifact: artifact.manifest.created)

    def unreadable(self) -> list[str]:
        """Return a line for each artifact whose manifest cannot be read."""
        return [f"{item}; left out" for item in self._found() if not isinstance(item, Artifact)]

    def _found(self) -> Iterator[Artifact | ArtifactError | StorageError]:
        """Yield every artifact, or why it cannot be read."""
        root = self.artifacts_directory
        recover_within(root)
        for path in sorted(root.glob("**/manifest.json")):
            if any(part.startswith(STAGING_PREFIX) for part in path.relative_to(root).parts):
                continue
            try:
                yield Artifact(path.parent, Manifest.read(path.parent))
            except (ArtifactError, StorageError) as error:
                yield error

    def newest_encoder(self, stages: tuple[str, ...], *, unpruned: bool = False) -> Path:
        """Return the newest encoder of the given stages, or the source model.

        An encoder that another one was made from is older than that one, whenever it was written:
        a stage that is repeated with the same result does not undo what was built on it.

        Args:
            stages: Stages whose output is wanted.
            unpruned: Whether only encoders that lost nothing will do.
        """
        fitting = [
            artifact
            for artifact in self.artifacts()
            if artifact.manifest.kind == ENCODER_KIND
            and artifact.manifest.stage in stages
            and (artifact.manifest.plan.is_dense or not unpruned)
        ]
        leaves = without_ancestors(fitting)
        return leaves[-1].directory if leaves else self.model_directory

    def with_slices(self, columns: tuple[str, ...]) -> Self:
        """Return this workspace with other slice columns; its file stays as it is.

        Args:
            columns: Columns by whose values accuracy is also told apart.
        """
        data = replace(self.config.data, slice_columns=columns)
        return replace(self, config=replace(self.config, data=data), _splits=[])

    def splits(self) -> Splits:
        """Read the data and return disjoint splits; read once.

        Raises:
            DataError: If a file is missing or bad, or a split ends up empty.
        """
        if not self._splits:
            self._splits.append(_disjoint(*self._read_splits()))
        return self._splits[0]

    def sample(self, split: str, limit: int, seed: int) -> Examples:
        """Draw from a split; of splits with files of their own no more than that is held.

        Args:
            split: `train`, `validation` or `test`.
            limit: How many examples at most.
            seed: Seed of the draw.

        Raises:
            DataError: If a file is missing or bad, or a split ends up empty.
        """
        data = self.config.data
        if data.file is not None:
            whole: Examples = getattr(self.splits(), split)
            return whole.sample(limit, seed)
        later = {"train": ("validation", "test"), "validation": ("test",), "test": ()}[split]
        avoid = frozenset[str]().union(
            *(read_digests(self._place(getattr(data, name)), data.columns) for name in later)
        )
        return read_examples(self._place(getattr(data, split)), data.columns, limit, seed, avoid)

    def _place(self, name: str) -> Path | str:
        return name if is_hub_name(name) else self.directory / name

    def _read_splits(self) -> tuple[Examples, Examples, Examples]:
        data = self.config.data
        if data.file is not None:
            examples = read_examples(self._place(data.file), data.columns)
            return split_examples(
                examples,
                validation=data.validation_fraction,
                test=data.test_fraction,
                seed=data.split_seed,
            )
        train, validation, test = (
            read_examples(self._place(name), data.columns)
            for name in (data.train, data.validation, data.test)
            if name is not None
        )
        return train, validation, test


def find_workspace(explicit: Path | None) -> Workspace:
    """Open the workspace that a command is to work in.

    Args:
        explicit: Directory from `--workspace`, or None for `TCOMPRESS_WORKSPACE`, or else the
            current directory.

    Raises:
        WorkspaceError: If there is none.
    """
    return Workspace.open(workspace_directory(explicit))


def workspace_directory(explicit: Path | None) -> Path:
    """Return where a command's workspace is or is to be.

    Args:
        explicit: Directory from `--workspace`, or None.
    """
    return explicit or Path(os.environ.get(ENVIRONMENT_VARIABLE) or ".")


def without_ancestors(artifacts: Sequence[Artifact]) -> list[Artifact]:
    """Return the artifacts that none of the others was made from, directly or by way of others.

    Args:
        artifacts: Artifacts.
    """
    parents = {a.manifest.digest: a.manifest.parent.digest for a in artifacts}
    ancestors = set(parents.values())
    return [a for a in artifacts if a.manifest.digest not in ancestors]


def reference_to(directory: Path) -> Parent:
    """Return the reference to a model directory or artifact that a child's manifest keeps.

    Args:
        directory: A model directory or an artifact.
    """
    if is_artifact(directory):
        return Artifact(directory, Manifest.read(directory)).as_parent()
    return Parent(str(directory.resolve()), model_digest(directory))


def source_of(directory: Path) -> Parent:
    """Return the unpruned source of a model directory or artifact.

    Args:
        directory: A model directory (its own source) or an artifact.
    """
    if is_artifact(directory):
        return Manifest.read(directory).source
    return reference_to(directory)


def made_from(directory: Path, ancestor: Path) -> bool:
    """Tell whether a model was made from the artifact at a path, directly or by way of others.

    Args:
        directory: A model directory or an artifact.
        ancestor: Where the other artifact is, or not.
    """
    if not is_artifact(ancestor):
        return False
    wanted = Manifest.read(ancestor).digest
    seen: set[Path] = set()
    while is_artifact(directory) and directory not in seen:
        seen.add(directory)
        parent = Manifest.read(directory).parent
        if parent.digest == wanted:
            return True
        directory = Path(parent.path)
    return False


def _disjoint(train: Examples, validation: Examples, test: Examples) -> Splits:
    clean_validation = validation.without(test)
    clean_train = train.without(test).without(clean_validation)
    dropped = len(train) - len(clean_train) + len(validation) - len(clean_validation)
    for name, split in (("train", clean_train), ("validation", clean_validation)):
        if len(split) == 0:
            msg = f"{split.origin}: every example of {name} also occurs in a later split"
            raise DataError(msg)
    return Splits(clean_train, clean_validation, test, dropped)


def _within(directory: Path, config: WorkspaceConfig) -> WorkspaceConfig:
    """Return settings that name what lies in the workspace from there, so that it may move."""
    root = directory.resolve()

    def place(name: str) -> str:
        path = Path(name)
        return str(path.relative_to(root)) if path.is_relative_to(root) else name

    names = {key: getattr(config.data, key) for key in ("file", "train", "validation", "test")}
    files: dict[str, Any] = {key: place(name) for key, name in names.items() if name is not None}
    return replace(config, model=place(config.model), data=replace(config.data, **files))


def _config_from(document: dict[str, Any]) -> WorkspaceConfig:
    version = document.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        msg = f"schema_version must be {SCHEMA_VERSION}, got {version!r}"
        raise ValueError(msg)
    data = document.pop("data", {})
    if not isinstance(data, dict):
        msg = f"[data] must be a table, got {data!r}"
        raise TypeError(msg)
    document.pop("gate", None)  # read by the gate alone
    _check_keys("[data]", data, DataConfig)
    _check_keys("the file", document, WorkspaceConfig)
    _check_data(data)
    config = WorkspaceConfig(data=DataConfig(**data), **document)
    has_all = all((config.data.train, config.data.validation, config.data.test))
    if (config.data.file is None) != has_all:
        msg = "[data] needs either file, or train, validation and test"
        raise ValueError(msg)
    return config


def _check_data(data: dict[str, Any]) -> None:
    """Check what is no plain string or number, and make tuples of lists."""
    for key in ("slice_columns", "label_columns"):
        columns = data.setdefault(key, [])
        if not isinstance(columns, list) or not _are_strings(columns):
            msg = f"{key} must be a list of column names, got {columns!r}"
            raise ValueError(msg)
        data[key] = tuple(columns)
    names = data.setdefault("label_map", {})
    if not isinstance(names, dict) or not _are_strings(names.values()):
        msg = f"label_map must be a table of the model's names by the data's, got {names!r}"
        raise ValueError(msg)
    if not isinstance(stride := data.get("stride", STRIDE), int) or stride < 0:
        msg = f"stride must be a number of tokens, got {stride!r}"
        raise ValueError(msg)


def _are_strings(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _check_keys(where: str, table: dict[str, Any], kind: type) -> None:
    known = {item.name for item in fields(kind)}
    if unknown := sorted(set(table) - known):
        msg = f"unknown key {unknown[0]!r} in {where}; known are: {', '.join(sorted(known))}"
        raise ValueError(msg)
    hints = get_type_hints(kind)
    for key, value in table.items():
        _check_value(key, value, hints[key])


def _check_value(key: str, value: Any, hint: Any) -> None:
    """Check a value that is to be a string or a number; nothing else is looked at."""
    if get_origin(hint) in (tuple, dict):
        return
    wanted = [part for part in get_args(hint) or (hint,) if part in (str, int, float)]
    if not wanted:
        return
    [kind] = wanted
    if type(value) is not kind and not (kind is float and type(value) is int):
        msg = f"{key} must be of type {kind.__name__}, got {value!r:.80}"
        raise ValueError(msg)
    if kind is str and "\0" in value:
        msg = f"{key} must not hold the character NUL, got {value!r:.80}"
        raise ValueError(msg)
    top = {str: None, int: _LARGEST_SEED, float: 1}[kind]
    if top is not None and not 0 <= value <= top:
        msg = f"{key} must be from 0 to {top}, got {value!r:.80}"
        raise ValueError(msg)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None and v != {}}
    return value
