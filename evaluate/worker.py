"""The engine process: opens one artifact, then answers requests until its parent is gone.

It runs as `python -m tcompress.evaluate.worker`, started by `EngineProcess`. Nothing heavy may be
imported at the top of this module.
"""

import gc
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tcompress.errors import DeviceError
from tcompress.worker_process import serve

if TYPE_CHECKING:
    from tcompress.data import Examples
    from tcompress.encoder import Encoder
    from tcompress.preprocessing import Batch, Encoded, Preprocessor
    from tcompress.runtime import ExportedEncoder, Predict

    from .engine_info import EngineInfo, Layout
    from .torch_engine import TorchEngine

ValueT = TypeVar("ValueT")
_LIBRARIES = {"onnxruntime": ("onnxruntime",), "openvino": ("openvino",)}


class Worker:
    """One opened artifact; every public method answers one request."""

    def __init__(self) -> None:
        self._preprocessor: Preprocessor | None = None
        self._predict: Predict | None = None
        self._torch: TorchEngine | None = None
        self._encoded: Encoded | None = None
        self._batches: list[list[int]] = []
        self._fixed: Batch = {}

    def open(self, directory: Path, device: str, precision: str, threads: int) -> "EngineInfo":
        """Open the artifact on its own engine.

        Args:
            directory: A model directory or an artifact.
            device: `cpu` or `cuda`.
            precision: `bf16` or `fp16` to convert an encoder; otherwise its plan counts.
            threads: Threads of its matrix products.
        """
        import torch

        from tcompress.loading import load
        from tcompress.process_limits import limits_of_opening
        from tcompress.runtime import ExportedEncoder

        from .torch_engine import open_pytorch

        torch.set_num_threads(threads)
        with limits_of_opening(directory):
            opened = load(directory)
        if isinstance(opened, ExportedEncoder):
            self._predict = _exported_on(opened, device)
        else:
            self._predict = self._torch = open_pytorch(opened, device, precision)
        self._preprocessor = opened.preprocessor
        gc.collect()
        gc.freeze()
        return _describe(opened, device, threads)

    def encode(self, examples: "Examples", size: int) -> tuple[int, int]:
        """Prepare examples for `predict`.

        Args:
            examples: The examples.
            size: Examples per batch.

        Returns:
            Number of batches, and how many examples were truncated.
        """
        self._encoded = _known(self._preprocessor).encode(examples)
        self._batches = [positions for positions, _ in self._encoded.batches(size)]
        return len(self._batches), self._encoded.truncated

    def tokens(self) -> Any:
        """Return the length of each prepared example, `(examples,)` int64."""
        return _known(self._encoded).lengths

    def layout(self) -> "Layout | None":
        """Return which rows belong to what; None where the prepared examples are the rows."""
        from .engine_info import Layout

        encoded = _known(self._encoded)
        if encoded.cuts is None:
            return None
        return Layout(encoded.row_owners, encoded.row_windows, encoded.spans)

    def predict(self, index: int) -> tuple[Any, Any]:
        """Answer one batch of the prepared examples.

        Args:
            index: Number of the batch.

        Returns:
            Numbers of its rows, and their logits, `(rows, channels)` float32.
        """
        positions, encoded = self._batches[index], _known(self._encoded)
        output = _known(self._predict)(encoded.collate(positions))
        return encoded.row_numbers(positions), encoded.rows(positions, output)[0]

    def fix(self, batch: int, tokens: int, seed: int) -> None:
        """Make the batch that `time` answers again and again, and answer it once.

        Args:
            batch: Examples.
            tokens: Tokens per example.
            seed: Seed of the values.
        """
        self._fixed = _known(self._preprocessor).random_batch(batch, tokens, seed)
        _known(self._predict)(self._fixed)

    def time(self, calls: int, warmup: int) -> list[int]:
        """Measure calls with the fixed batch.

        A call ends when its logits are in main memory, so a GPU has finished by then.

        Args:
            calls: Measured calls.
            warmup: Calls before them.

        Returns:
            Duration of each measured call, in ns.
        """
        return time_calls(_known(self._predict), self._fixed, calls, warmup)

    def kernels(self, calls: int, warmup: int) -> list[int]:
        """Measure calls with the fixed batch by the GPU's own clock.

        Args:
            calls: Measured calls.
            warmup: Calls before them.

        Returns:
            Duration of each measured call, in ns; nothing on a CPU.
        """
        return [] if self._torch is None else self._torch.kernels_ns(self._fixed, calls, warmup)

    def mix(self, positions: Sequence[Sequence[int]], warmup: int) -> list[int]:
        """Measure a call with each of several batches of the prepared examples.

        They are padded before, each to its longest example.

        Args:
            positions: For each measured call, the positions of its examples.
            warmup: Calls before them, with the first batches.

        Returns:
            Duration of each measured call, in ns.
        """
        collate = _known(self._encoded).collate
        padded = {call: collate(call) for call in set(map(tuple, positions))}
        batches = [padded[tuple(call)] for call in positions]
        return time_batches(_known(self._predict), batches, warmup)

    def memory(self) -> int:
        """Return the most memory that this process has held, in bytes."""
        return _memory_peak_bytes()

    def gpu_memory(self) -> int | None:
        """Return the most of the GPU's memory that tensors have taken, in bytes; None on a CPU."""
        return None if self._torch is None else self._torch.memory_peak_bytes()


def time_calls(predict: "Predict", batch: "Batch", calls: int, warmup: int) -> list[int]:
    """Measure calls; each ends when its logits are in main memory.

    Args:
        predict: What is called.
        batch: With what.
        calls: Measured calls.
        warmup: Calls before them.

    Returns:
        Duration of each measured call, in ns.
    """
    return time_batches(predict, [batch] * calls, warmup)


def time_batches(predict: "Predict", batches: "Sequence[Batch]", warmup: int) -> list[int]:
    """Measure a call with each batch; each ends when its logits are in main memory.

    Args:
        predict: What is called.
        batches: With what.
        warmup: Calls before them, with the first batches.

    Returns:
        Duration of each measured call, in ns.
    """
    clock = time.perf_counter_ns
    samples = []
    gc.disable()
    try:
        for batch in islice(cycle(batches), warmup):
            predict(batch)
        for batch in batches:
            start = clock()
            predict(batch)
            samples.append(clock() - start)
    finally:
        gc.enable()
    return samples


def main() -> None:
    """Serve one artifact."""
    serve(Worker())


def _exported_on(exported: "ExportedEncoder", device: str) -> "Predict":
    if device != "cpu":
        msg = f"{exported.directory}: exported files are measured on the CPU only"
        raise DeviceError(msg)
    return exported.predict


def _describe(opened: "Encoder | ExportedEncoder", device: str, threads: int) -> "EngineInfo":
    from tcompress.encoder import Encoder
    from tcompress.runtime import BACKENDS

    from .engine_info import EngineInfo

    backend = "pytorch" if isinstance(opened, Encoder) else BACKENDS[opened.kind]
    info = EngineInfo(
        backend=backend,
        device=device,
        threads=threads,
        task=opened.task,
        labels=opened.labels,
        max_tokens=opened.preprocessor.max_tokens,
        fixed_tokens=opened.preprocessor.fixed_tokens,
        versions={name: metadata.version(name) for name in _LIBRARIES.get(backend, ("torch",))},
    )
    if not isinstance(opened, Encoder):
        return info
    info = replace(info, plan=opened.plan)
    if opened.plan.precision != "fp32":
        return info  # its projections are int8 by now, and no longer found
    anatomy = opened.anatomy
    return replace(info, hidden_size=anatomy.hidden_size, geometry=anatomy.geometry)


def _memory_peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss, which an exec inherits: it would tell the size of the parent.
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    import psutil

    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))


def _known(value: ValueT | None) -> ValueT:
    if value is None:
        msg = "asked before the artifact was opened or the examples were prepared"
        raise RuntimeError(msg)
    return value


if __name__ == "__main__":
    main()
