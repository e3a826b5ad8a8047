"""What an encoder's outputs mean: which are decided on, what is right, and how far two differ."""

from typing import TYPE_CHECKING, Any

from .kinds import Task

if TYPE_CHECKING:
    from .decision import Decision, decision_of
    from .inference import check_task, infer_task, unit_of

# Command lines and engines name a task without loading torch.
_HOMES = {
    "Decision": "decision",
    "check_task": "inference",
    "decision_of": "decision",
    "infer_task": "inference",
    "unit_of": "inference",
}

__all__ = ["Decision", "Task", "check_task", "decision_of", "infer_task", "unit_of"]


def __getattr__(name: str) -> Any:
    """Load a public name's module when the name is first asked for."""
    if name not in _HOMES:
        msg = f"module 'tcompress.tasks' has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
