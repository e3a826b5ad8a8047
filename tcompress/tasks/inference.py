"""Which task a model directory is for."""

from pathlib import Path
from typing import Any

from ..embedder import is_embedder
from ..encoded import Unit
from ..errors import ModelError, RequestError
from ..intake.weights import read_headers
from .kinds import Task

# Ends of the names in a configuration's `architectures`.
_HEADS = {
    "ForTokenClassification": Task.TOKEN_CLASSIFICATION,
    "ForQuestionAnswering": Task.QUESTION_ANSWERING,
    "ForSequenceClassification": Task.CLASSIFICATION,
    "ForImageClassification": Task.CLASSIFICATION,
    "ForImageClassificationWithTeacher": Task.CLASSIFICATION,
    "ForAudioClassification": Task.CLASSIFICATION,
    "Model": Task.EMBEDDING,
}
_PROBLEMS = {
    "regression": Task.REGRESSION,
    "single_label_classification": Task.CLASSIFICATION,
    "multi_label_classification": Task.MULTI_LABEL,
}


def infer_task(directory: Path, config: Any, asked: Task | None = None) -> Task:
    """Return the task of a Hugging Face directory.

    Args:
        directory: The directory.
        config: Its configuration.
        asked: The task that was asked for; None for what the files say.

    Raises:
        ModelError: If the files do not say it, or tell of a regression of several numbers.
        RequestError: If the model has a head for another task.
    """
    if is_embedder(directory):
        return check_task(directory, Task.EMBEDDING, asked)
    names = getattr(config, "architectures", None) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        msg = f"{directory}: 'architectures' must be a list of names, got {str(names)[:40]!r}"
        raise ModelError(msg)
    ends = [end for end in _HEADS if names and names[0].endswith(end)]
    if not ends and names:
        msg = (
            f"{directory}: its architecture {names[0]!r} is for no task that tcompress knows; "
            f"known are names that end in {', '.join(_HEADS)}"
        )
        raise ModelError(msg)
    # Without a name, as in files written by hand, a sequence classifier is meant; so it is where
    # a head was put on an encoder without changing the name.
    found = _HEADS[ends[0]] if ends else Task.CLASSIFICATION
    if found is Task.EMBEDDING and _has_classifier(directory):
        found = Task.CLASSIFICATION
    if found is Task.CLASSIFICATION:
        found = asked if asked and asked in _PROBLEMS.values() else _of_sequences(config)
        _check_outputs(directory, config, found, asked)
    return check_task(directory, found, asked)


def _has_classifier(directory: Path) -> bool:
    try:
        return any(name.startswith("classifier.") for name in read_headers(directory))
    except ModelError:
        return False  # said when the weights are read


def check_task(directory: Path, found: Task, asked: Task | None) -> Task:
    """Return a model's task, if it is the one that was asked for.

    Args:
        directory: The model's directory.
        found: The task that its head is for.
        asked: The task that was asked for, or None.

    Raises:
        RequestError: If they differ.
    """
    if asked not in (None, found):
        msg = f"{directory}: its head is for {found}, not for {asked}; leave --task out"
        raise RequestError(msg)
    return found


def _check_outputs(directory: Path, config: Any, found: Task, asked: Task | None) -> None:
    """Refuse a regression of several numbers: data hold one per example."""
    if found is Task.REGRESSION and config.num_labels != 1:
        msg = (
            f"{directory}: regression needs a model with 1 output, it has {config.num_labels}; "
            "name another task with --task"
        )
        raise (ModelError if asked is None else RequestError)(msg)


def _of_sequences(config: Any) -> Task:
    problem = getattr(config, "problem_type", None)
    if isinstance(problem, str) and problem in _PROBLEMS:
        return _PROBLEMS[problem]
    return Task.REGRESSION if getattr(config, "num_labels", 2) == 1 else Task.CLASSIFICATION


def unit_of(task: Task) -> Unit:
    """Return what a model of a task decides on its own.

    Args:
        task: The task.
    """
    units = {Task.TOKEN_CLASSIFICATION: Unit.WORD, Task.QUESTION_ANSWERING: Unit.CONTEXT}
    return units.get(task, Unit.EXAMPLE)
