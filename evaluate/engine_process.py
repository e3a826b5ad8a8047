"""An artifact on its own engine, in a process of its own."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tcompress.data import Examples
from tcompress.errors import ArtifactError
from tcompress.worker_process import WorkerProcess

from .engine_info import EngineInfo, Layout


class EngineProcess(WorkerProcess):
    """An artifact, opened on its own engine in a process of its own.

    Args:
        directory: A model directory or an artifact.
        name: How errors call it; else the directory.
        device: `cpu` or `cuda`.
        precision: `bf16` or `fp16` to run an encoder in that format; otherwise its plan counts.
        threads: Threads, and CPUs, that it may use; else all that this process may use.

    Attributes:
        program: The module that serves the engine.
    """

    program: ClassVar[str] = "tcompress.evaluate.worker"
    refusal = ArtifactError

    def __init__(
        self,
        directory: Path,
        *,
        name: str | None = None,
        device: str = "cpu",
        precision: str = "fp32",
        threads: int | None = None,
    ) -> None:
        super().__init__(
            self.program,
            name=name or str(directory),
            threads=threads,
            opening={
                "directory": directory.resolve(),
                "device": device,
                "precision": precision,
            },
        )

    @property
    def info(self) -> EngineInfo:
        """What the engine says about itself; waits until the artifact is open.

        Raises:
            TcompressError: What opening the artifact raised.
            MeasurementError: If the process failed.
        """
        info: EngineInfo = self.opened()
        return info

    def encode(self, examples: Examples, size: int) -> tuple[int, int]:
        """Hand over examples for `predict`.

        Args:
            examples: The examples.
            size: Examples per batch.

        Returns:
            Number of batches, and how many examples were truncated.

        Raises:
            DataError: If the examples do not fit the model.
            MeasurementError: If the process failed.
        """
        batches, truncated = self.ask("encode", examples=examples, size=size)
        return int(batches), int(truncated)

    def tokens(self) -> npt.NDArray[np.int64]:
        """Return the length of each example that was handed over, after truncation.

        Raises:
            MeasurementError: If the process failed.
        """
        return np.asarray(self.ask("tokens"), dtype=np.int64)

    def layout(self) -> Layout | None:
        """Return which rows belong to what; None where the examples are the rows.

        Raises:
            MeasurementError: If the process failed.
        """
        found: Layout | None = self.ask("layout")
        return found

    def predict(self, indices: Iterable[int]) -> Iterator[tuple[list[int], Any]]:
        """Answer batches of the examples that were handed over.

        Args:
            indices: Numbers of the batches.

        Yields:
            Numbers of a batch's rows, and their logits, `(rows, channels)` float32.

        Raises:
            MeasurementError: If the process failed.
        """
        for index in indices:
            yield self.ask("predict", index=index)

    def fix(self, batch: int, tokens: int, seed: int = 0) -> None:
        """Set the shape that `turn` measures.

        Args:
            batch: Examples per call.
            tokens: Tokens per example.
            seed: Seed of the inputs' values.

        Raises:
            MeasurementError: If the process failed.
        """
        self.ask("fix", batch=batch, tokens=tokens, seed=seed)

    def turn(self, calls: int, warmup: int) -> list[int]:
        """Measure calls, while every other engine process sleeps.

        Args:
            calls: Measured calls.
            warmup: Calls before them.

        Returns:
            Duration of each measured call, in ns.

        Raises:
            MeasurementError: If the process failed.
        """
        return list(self.ask("time", calls=calls, warmup=warmup))

    def kernels(self, calls: int, warmup: int) -> list[int]:
        """Measure calls by the GPU's own clock, without the copies to and from it.

        Args:
            calls: Measured calls.
            warmup: Calls before them.

        Returns:
            Duration of each measured call, in ns; nothing on a CPU.

        Raises:
            MeasurementError: If the process failed.
        """
        return list(self.ask("kernels", calls=calls, warmup=warmup))

    def mix(self, positions: Sequence[Sequence[int]], warmup: int) -> list[int]:
        """Measure a call with each of several batches of the examples that were handed over.

        Args:
            positions: For each measured call, the positions of its examples.
            warmup: Calls before them, with the first batches.

        Returns:
            Duration of each measured call, in ns.

        Raises:
            MeasurementError: If the process failed.
        """
        return list(self.ask("mix", positions=positions, warmup=warmup))

    def memory_peak_bytes(self) -> int:
        """Return the most memory that the process has held."""
        return int(self.ask("memory"))

    def gpu_memory_peak_bytes(self) -> int | None:
        """Return the most of the GPU's memory that the process's tensors have taken.

        Returns:
            The bytes; None on a CPU.
        """
        found: int | None = self.ask("gpu_memory")
        return found
