"""The tasks by name."""

from enum import StrEnum

from ..encoded import Unit


class Task(StrEnum):
    """What an encoder was trained for."""

    CLASSIFICATION = "classification"
    """One class per text, pair, image or sequence of vectors."""
    MULTI_LABEL = "multi-label"
    REGRESSION = "regression"
    TOKEN_CLASSIFICATION = "token-classification"
    QUESTION_ANSWERING = "question-answering"
    EMBEDDING = "embedding"


def unit_of(task: Task) -> Unit:
    """Return what a model of a task decides on its own.

    Args:
        task: The task.
    """
    units = {Task.TOKEN_CLASSIFICATION: Unit.WORD, Task.QUESTION_ANSWERING: Unit.CONTEXT}
    return units.get(task, Unit.EXAMPLE)
