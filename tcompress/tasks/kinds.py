"""The tasks by name."""

from enum import StrEnum


class Task(StrEnum):
    """What an encoder was trained for."""

    CLASSIFICATION = "classification"
    """One class per text, pair, image or sequence of vectors."""
    MULTI_LABEL = "multi-label"
    REGRESSION = "regression"
    TOKEN_CLASSIFICATION = "token-classification"
    QUESTION_ANSWERING = "question-answering"
    EMBEDDING = "embedding"
