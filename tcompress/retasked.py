"""Sequence classifiers whose configuration does not say what they were trained for."""

import json
from pathlib import Path

from .encoder import CONFIG_FILE, WEIGHTS_FILE, copy_carried_files, read_config
from .errors import RequestError
from .factories import link
from .tasks import Task, infer_task

_PROBLEMS = {
    Task.CLASSIFICATION: "single_label_classification",
    Task.MULTI_LABEL: "multi_label_classification",
    Task.REGRESSION: "regression",
}


def retasked(directory: Path, task: Task, target: Path) -> Path:
    """Make a model directory that says the task; it holds a link to the weights.

    Args:
        directory: A model directory.
        task: What the model was trained for.
        target: Where to make it.

    Returns:
        The new directory; the old one where it says the task already.

    Raises:
        ModelError: If the directory is none of a model.
        RequestError: If the model has a head for another task.
    """
    if not (directory / CONFIG_FILE).is_file():
        msg = f"{directory}: --task is for models with a {CONFIG_FILE}; leave it out"
        raise RequestError(msg)
    config = read_config(directory)
    if infer_task(directory, config, task) is infer_task(directory, config):
        return directory
    target.mkdir(parents=True, exist_ok=True)
    copy_carried_files(directory, target)
    document = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    document["problem_type"] = _PROBLEMS[task]
    (target / CONFIG_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    link((directory / WEIGHTS_FILE).resolve(), target / WEIGHTS_FILE)
    return target
