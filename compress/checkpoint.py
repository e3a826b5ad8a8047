"""A training run that was killed goes on where its last finished epoch ended."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tcompress.artifact import STAGING_PREFIX
from tcompress.errors import StorageError

State = dict[str, Any]
"""Tensors, numbers and strings in dictionaries and lists."""


@dataclass(frozen=True)
class Checkpoint:
    """The file that holds the state of an unfinished training run.

    Attributes:
        path: Where it is, or is to be.
        key: Digest of everything that the run depends on.
        tell: Told that a run continues.
    """

    path: Path
    key: str
    tell: Callable[[str], None] = lambda _message: None

    def read(self) -> State | None:
        """Return the state of a run of the same key, or None where there is none."""
        if not self.path.is_file():
            return None
        try:
            document = torch.load(self.path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            return None  # damaged, or not ours: the run starts from the beginning
        if not isinstance(document, dict) or document.get("key") != self.key:
            return None
        state: State = document["state"]
        return state

    def write(self, state: State) -> None:
        """Replace the checkpoint, all or nothing.

        Args:
            state: The state of the run.

        Raises:
            StorageError: If the file system refuses.
        """
        staging = self.path.with_name(f"{self.path.name}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"key": self.key, "state": state}, staging)
            staging.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            msg = f"{self.path}: cannot be written: {str(error).splitlines()[0]}"
            raise StorageError(msg) from error
        finally:
            staging.unlink(missing_ok=True)


def checkpoint_path(output: Path) -> Path:
    """Return where the checkpoint stands of the run that is to write an artifact.

    Args:
        output: The artifact's directory.
    """
    return output.with_name(f"{STAGING_PREFIX}{output.name}.checkpoint")
