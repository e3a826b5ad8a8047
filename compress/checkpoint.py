"""A stage that was killed goes on where its last finished epoch or phase ended."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Self

import torch

from tcompress import storage
from tcompress.digests import document_digest
from tcompress.errors import InputError, RequestError, StorageError
from tcompress.intake import regular_file
from tcompress.intake.pickles import check_state_file
from tcompress.staging import STAGING_PREFIX, write_bytes_atomically

_SUFFIX = ".checkpoint"
_DIGITS = 16
_MAX_BYTES = 256 << 30
State = dict[str, Any]
"""Tensors, numbers and strings in dictionaries and lists."""


@dataclass(frozen=True)
class Checkpoint:
    """The file that holds the state of an unfinished run.

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
        if not self.path.exists():
            return None
        try:
            regular_file(self.path, limit_bytes=_MAX_BYTES)
            check_state_file(self.path)
            document = torch.load(self.path, map_location="cpu", weights_only=True)
        except (InputError, StorageError, OSError, RuntimeError, ValueError, UnpicklingError):
            self.tell(
                f"{self.path}: damaged, or not tcompress's; the run starts from the beginning"
            )
            return None
        if not isinstance(document, dict) or document.get("key") != self.key:
            return None
        state: State | None = document.get("state")
        return state

    def write(self, state: State) -> None:
        """Replace the checkpoint, all or nothing.

        Args:
            state: The state of the run.

        Raises:
            StorageError: If the file system refuses.
        """
        buffer = BytesIO()
        torch.save({"key": self.key, "state": state}, buffer)
        write_bytes_atomically(self.path, buffer.getbuffer())


@dataclass(frozen=True)
class Phases:
    """What the phases of a stage's run gave, kept until the run has ended.

    Attributes:
        output: The directory that the run is to write; the files stand beside it.
        key: Digest of everything that the run depends on.
        tell: Told that a run continues.
    """

    output: Path
    key: str
    tell: Callable[[str], None] = lambda _message: None

    def checkpoint(self, phase: str) -> Checkpoint:
        """Return the checkpoint of a phase.

        Args:
            phase: Its name.
        """
        return Checkpoint(
            self.output.with_name(f"{self._prefix}{phase}{_SUFFIX}"), self.key, self.tell
        )

    @contextmanager
    def kept(self) -> Iterator[Self]:
        """Keep them until the block ends; where it was killed or the machine failed, for longer.

        What runs of other keys left is removed.

        Yields:
            This.
        """
        existed = self.output.parent.is_dir()
        self._remove(stale_only=True)
        try:
            yield self
        except (RequestError, InputError):  # again it would fail likewise
            self._remove()
            if not existed:
                storage.remove_empty(self.output.parent)
            raise
        self._remove()

    def _remove(self, *, stale_only: bool = False) -> None:
        for path in self._files():
            if not (stale_only and path.name.startswith(self._prefix)):
                storage.remove(path)

    @property
    def _prefix(self) -> str:
        return f"{self._start}{self.key[:_DIGITS]}."

    @property
    def _start(self) -> str:
        # a digest: one name may begin with another, and be as long as the file system allows
        return f"{STAGING_PREFIX}{document_digest(self.output.name)[:_DIGITS]}."

    def _files(self) -> list[Path]:
        own = re.compile(
            rf"{re.escape(self._start)}[0-9a-f]{{{_DIGITS}}}\.[\w-]+{re.escape(_SUFFIX)}"
        )
        found = self.output.parent.iterdir() if self.output.parent.is_dir() else ()
        return [path for path in found if own.fullmatch(path.name)]
