"""What an encoder's outputs mean: which are decided on, what is right, and how far two differ."""

from .decision import Decision, decision_of
from .inference import check_task, infer_task
from .kinds import Task, unit_of

__all__ = ["Decision", "Task", "check_task", "decision_of", "infer_task", "unit_of"]
