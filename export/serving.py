"""Where an exported file is opened to be compared: in this process, or in one of its own."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from tcompress.errors import ExportError
from tcompress.machine import usable_cpus
from tcompress.preprocessing import Batch
from tcompress.runtime import BACKENDS, MODEL_FILES
from tcompress.worker_process import WorkerProcess

from .parity_worker import ServedFile


class Served(Protocol):
    """An exported file, ready to answer."""

    def predict(self, batch: Batch) -> Any:
        """Answer one batch: logits, `(batch, labels)` float32."""

    def operators(self) -> dict[str, int]:
        """Count the operators that the engine executes, by kind; none where it does not tell."""


Opener = Callable[[str, Path, Sequence[str]], AbstractContextManager[Served]]
"""Opens a file of a kind, in a directory, with inputs of these names, for a `with` block."""


class ServedProcess(WorkerProcess):
    """An exported file, opened in a process of its own.

    Args:
        kind: `onnx`, `torchscript`, `program` or `openvino`.
        directory: Where the file is, under its usual name.
        input_names: Its inputs, in their order.
    """

    failure = ExportError

    def __init__(self, kind: str, directory: Path, input_names: Sequence[str]) -> None:
        super().__init__(
            "tcompress.export.parity_worker",
            name=f"{MODEL_FILES[kind]} in {BACKENDS[kind]}",
            threads=None,
            opening={
                "kind": kind,
                "directory": directory.resolve(),
                "input_names": list(input_names),
            },
        )

    def predict(self, batch: Batch) -> Any:
        """Answer one batch.

        Args:
            batch: The batch.

        Returns:
            Its logits, `(batch, labels)` float32.

        Raises:
            ExportError: If the engine fails, or ends its process.
        """
        return self.ask("predict", batch=batch)

    def operators(self) -> dict[str, int]:
        """Count the operators that the engine executes, by kind; none where it does not tell.

        Raises:
            ExportError: If the engine fails, or ends its process.
        """
        counts: dict[str, int] = self.ask("operators")
        return counts


@contextmanager
def served_here(kind: str, directory: Path, input_names: Sequence[str]) -> Iterator[Served]:
    """Open a file in this process, which an engine that crashes takes along.

    Args:
        kind: `onnx`, `torchscript`, `program` or `openvino`.
        directory: Where the file is, under its usual name.
        input_names: Its inputs, in their order.

    Yields:
        The file.
    """
    served = ServedFile()
    served.open(kind, directory, list(input_names), usable_cpus())
    yield served
