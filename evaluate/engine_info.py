"""What an engine process tells its parent; apart from the other nouns, as engines import it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tcompress.errors import RequestError
from tcompress.plan import CompressionPlan
from tcompress.tasks import Task


@dataclass(frozen=True)
class Layout:
    """Which rows of a model's output belong to what, where inputs are not the rows.

    Attributes:
        owners: The example of each row, `(rows,)`, ascending.
        windows: The input of each row, `(rows,)`, ascending.
        spans: The words or characters that each row stands for, `(rows, 2)`; negative for the
            place of "no answer".
    """

    owners: npt.NDArray[np.int64]
    windows: npt.NDArray[np.int64]
    spans: npt.NDArray[np.int64]


@dataclass(frozen=True)
class EngineInfo:
    """What an engine process says about itself once it has opened its artifact.

    Attributes:
        backend: `pytorch`, `onnxruntime`, `torchscript`, `torch.export` or `openvino`.
        device: `cpu` or `cuda`.
        threads: Threads that its matrix products may use.
        labels: Class names, in the order of the logits; none for vectors.
        max_tokens: Longest input.
        versions: Versions of the libraries that compute.
        hidden_size: Width of the residual stream; 0 for an exported file.
        geometry: Per layer the width of a head, the FFN's matrices, products over pairs of
            tokens, and how often the layer is applied; empty for an exported file.
        plan: What an encoder keeps of its source; None for an exported file.
        task: What the outputs mean.
        fixed_tokens: Length of every input, where all are equally long; else None.
    """

    backend: str
    device: str
    threads: int
    labels: tuple[str, ...]
    max_tokens: int
    versions: dict[str, str]
    hidden_size: int = 0
    geometry: tuple[tuple[int, int, int, int], ...] = ()
    plan: CompressionPlan | None = None
    task: Task = Task.CLASSIFICATION
    fixed_tokens: int | None = None

    def tokens_for(self, wanted: int | None, usual: int) -> int:
        """Return the length of inputs to measure with.

        Args:
            wanted: What was asked for, or None.
            usual: What is measured otherwise, if the model reads as much.

        Raises:
            RequestError: If all inputs are equally long, and otherwise than asked for.
        """
        if self.fixed_tokens is None:
            return min(wanted or usual, self.max_tokens)
        if wanted not in (None, self.fixed_tokens):
            msg = (
                f"--tokens {wanted}: every input of this model has {self.fixed_tokens} tokens; "
                "leave the option out"
            )
            raise RequestError(msg)
        return self.fixed_tokens
