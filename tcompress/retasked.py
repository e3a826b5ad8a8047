"""Sequence classifiers whose configuration does not say what they were trained for."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import storage
from .artifact import is_artifact
from .digests import file_digest
from .encoder import copy_carried_files, read_config
from .errors import OutputExistsError, RequestError
from .intake import read_json
from .intake.configs import CONFIG_FILE
from .intake.weights import INDEX_FILE, WEIGHTS_FILE, weight_names
from .tasks import Task, infer_task

_PROBLEMS = {
    Task.CLASSIFICATION: "single_label_classification",
    Task.MULTI_LABEL: "multi_label_classification",
    Task.REGRESSION: "regression",
}


def retasked(directory: Path, task: Task, target: Path, *, replace: bool) -> Path:
    """Make a model directory that says the task; the weights get second names in it.

    Args:
        directory: A model directory.
        task: What the model was trained for.
        target: Where to make it.
        replace: Whether another model may be replaced there.

    Returns:
        The new directory; the old one where it says the task already, as artifacts do.

    Raises:
        ModelError: If the directory is none of a model.
        OutputExistsError: If another model is there and may not be replaced.
        RequestError: If the model has a head for another task, or stands at the target itself.
    """
    if is_artifact(directory):
        return directory
    if not (directory / CONFIG_FILE).is_file():
        msg = f"{directory}: --task is for models with a {CONFIG_FILE}; leave it out"
        raise RequestError(msg)
    config = read_config(directory)
    if infer_task(directory, config, task) is infer_task(directory, config):
        return directory
    if target.resolve() == directory.resolve():
        msg = f"{directory}: made by an earlier --task; name the model that it was made from"
        raise RequestError(msg)
    document = read_json(directory / CONFIG_FILE) | {"problem_type": _PROBLEMS[task]}
    weights = weight_names(directory)
    if target.exists() and not (replace or _holds(target, document, directory, weights)):
        msg = f"{target}: another model is here already; pass --force to replace it"
        raise OutputExistsError(msg)
    storage.make_directory(target)
    copy_carried_files(directory, target)
    storage.write_text(target / CONFIG_FILE, json.dumps(document, indent=2) + "\n")
    for former in (WEIGHTS_FILE, INDEX_FILE):
        storage.remove(target / former)
    for name in weights:
        storage.link((directory / name).resolve(), target / name)
    return target


def _holds(directory: Path, document: Any, source: Path, weights: Sequence[str]) -> bool:
    if not all((directory / name).is_file() for name in (CONFIG_FILE, *weights)):
        return False
    if read_json(directory / CONFIG_FILE) != document:
        return False
    return all(file_digest(directory / name) == file_digest(source / name) for name in weights)
