"""Sequence classifiers whose configuration does not say what they were trained for."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import storage
from .artifact import is_artifact
from .encoder import copy_carried_files, read_config
from .errors import RequestError
from .intake import read_json
from .intake.configs import CONFIG_FILE
from .intake.weights import weight_names
from .staging import staged
from .tasks import Task, infer_task

_PROBLEMS = {
    Task.CLASSIFICATION: "single_label_classification",
    Task.MULTI_LABEL: "multi_label_classification",
    Task.REGRESSION: "regression",
}


@contextmanager
def retasked(directory: Path, task: Task, workspace: Path) -> Iterator[Path]:
    """Give a directory of the same model that says the task, gone with the block unless kept.

    The weights get second names in it.

    Args:
        directory: A model directory.
        task: What the model was trained for.
        workspace: Where it may stand.

    Yields:
        The new directory; the old one where it says the task already, as artifacts do.

    Raises:
        ModelError: If the directory is none of a model.
        RequestError: If the model has a head for another task.
        StorageError: If the file system refuses.
    """
    if _says(directory, task):
        yield directory
        return
    document = read_json(directory / CONFIG_FILE) | {"problem_type": _PROBLEMS[task]}
    with staged(workspace) as made:
        copy_carried_files(directory, made)
        storage.write_text(made / CONFIG_FILE, json.dumps(document, indent=2) + "\n")
        for name in weight_names(directory):
            storage.link((directory / name).resolve(), made / name)
        yield made


def _says(directory: Path, task: Task) -> bool:
    if is_artifact(directory):
        return True
    if not (directory / CONFIG_FILE).is_file():
        msg = f"{directory}: --task is for models with a {CONFIG_FILE}; leave it out"
        raise RequestError(msg)
    config = read_config(directory)
    return infer_task(directory, config, task) is infer_task(directory, config)
