"""An exported file, opened to be compared with its source.

As a program, `python -m tcompress.export.parity_worker`, it serves `ServedProcess`: an engine that
crashes on a file takes nothing else along. Nothing heavy may be imported at the top of this module:
an ONNX file is answered without torch.
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompress.runtime import MODEL_FILES, ONNX_KIND, open_model_file, open_onnx_session
from tcompress.worker_process import serve

if TYPE_CHECKING:
    from tcompress.preprocessing import Batch


class ServedFile:
    """One opened file; every public method answers one request."""

    def open(self, kind: str, directory: Path, input_names: list[str], threads: int) -> None:
        """Open the file in its engine.

        Args:
            kind: `onnx`, `torchscript`, `program` or `openvino`.
            directory: Where the file is, under its usual name.
            input_names: Its inputs, in their order.
            threads: As many as there are CPUs to use, which the engines count themselves.

        Raises:
            ArtifactError: If the engine refuses the file.
            MissingExtraError: If the engine is not installed.
        """
        self._kind, self._path = kind, directory / MODEL_FILES[kind]
        self._predict = open_model_file(kind, directory, input_names)

    def predict(self, batch: "Batch") -> Any:
        """Answer one batch.

        Args:
            batch: The batch.

        Returns:
            What `Encoder.predict` returns, as the file computes it, float32.
        """
        return self._predict(batch)

    def operators(self) -> dict[str, int]:
        """Count the operators that the engine executes, by kind; none where it does not tell.

        What is written is not what is executed: ONNX Runtime fuses, and removes what nobody reads.
        """
        return executed_operators(self._path) if self._kind == ONNX_KIND else {}


def executed_operators(path: Path) -> dict[str, int]:
    """Count the operators that ONNX Runtime executes for a file, by kind.

    Args:
        path: The file.
    """
    import onnx

    with tempfile.TemporaryDirectory() as scratch:
        optimized = Path(scratch) / path.name
        open_onnx_session(path, optimized)
        nodes = onnx.load(optimized).graph.node
    return dict(sorted(Counter(node.op_type for node in nodes).items()))


def main() -> None:
    """Serve one file."""
    serve(ServedFile())


if __name__ == "__main__":
    main()
