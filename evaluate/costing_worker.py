"""The engine process behind `EngineMeter`: one engine, many shapes of one encoder.

Only one model is open at a time: several on the same engine would wait for each other's threads.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tcompress.storage import make_directory
from tcompress.worker_process import serve

from .torch_engine import open_pytorch
from .worker import time_calls

if TYPE_CHECKING:
    from tcompress.compress.cost import Serving
    from tcompress.encoder import Encoder
    from tcompress.plan import CompressionPlan
    from tcompress.preprocessing import Batch
    from tcompress.runtime import Predict

_LINEARS = ("query", "key", "value", "output", "ffn_in", "ffn_out")


class CostingWorker:
    """One encoder, timed in other shapes; every public method answers one request."""

    def open(
        self,
        encoder: "Encoder",
        serving: "Serving",
        batch: "Batch",
        directory: Path,
        threads: int,
    ) -> None:
        """Take the encoder.

        Args:
            encoder: The encoder that the shapes are cut from, on the CPU.
            serving: How it is run.
            batch: What it is timed with.
            directory: Where exported files may stand.
            threads: Threads of its matrix products.

        Raises:
            DeviceError: If there is no such device.
        """
        import torch

        torch.set_num_threads(threads)
        self._encoder = encoder.to(serving.device)
        self._serving, self._batch, self._directory = serving, batch, directory
        self._shapes: list[CompressionPlan] = []

    def prepare(self, plans: "list[CompressionPlan]") -> None:
        """Set the shapes that `time` measures, in place of those before.

        Args:
            plans: What to keep.
        """
        self._shapes = plans
        if self._is_exported:
            for index, plan in enumerate(plans):
                self._export(plan, self._directory / str(index))

    def time(self, index: int, calls: int, warmup: int) -> list[int]:
        """Open one of the shapes, measure calls, and close it.

        Args:
            index: Which shape.
            calls: Measured calls.
            warmup: Calls before them.

        Returns:
            Duration of each measured call, in ns.
        """
        return time_calls(self._predict(index), self._batch, calls, warmup)

    @property
    def _is_exported(self) -> bool:
        from tcompress.compress.cost import Engine

        return self._serving.engine is Engine.ONNXRUNTIME

    def _predict(self, index: int) -> "Predict":
        from tcompress.runtime import ONNX_KIND, open_model_file

        if self._is_exported:
            return open_model_file(ONNX_KIND, self._directory / str(index), list(self._batch))
        shaped = shape_like(self._encoder, self._shapes[index])
        return open_pytorch(shaped, self._serving.device, "plan")

    def _export(self, plan: "CompressionPlan", directory: Path) -> None:
        from tcompress.export.deployment import deploy
        from tcompress.export.onnx_graph import write_onnx
        from tcompress.runtime import MODEL_FILES, ONNX_KIND

        make_directory(directory)
        deployed = deploy(shape_like(self._encoder, plan))
        write_onnx(deployed, directory / MODEL_FILES[ONNX_KIND], metadata={})


def shape_like(encoder: "Encoder", plan: "CompressionPlan") -> "Encoder":
    """Return a copy of an encoder with the shapes of a plan.

    The weights are the encoder's own, but those of its first heads and neurons, whichever the
    plan keeps: to a latency they are all the same, as long as they are ordinary numbers.

    Args:
        encoder: The encoder; not changed.
        plan: What to keep.
    """
    import torch

    shaped = replace(encoder, model=copy.deepcopy(encoder.model), plan=plan)
    shaped.anatomy.resize_(plan)
    with torch.no_grad():
        for old, new in zip(encoder.anatomy.layers, shaped.anatomy.layers, strict=True):
            for name in _LINEARS:
                source, target = getattr(old, name), getattr(new, name)
                if target is not None:
                    rows, columns = target.weight.shape
                    target.weight.copy_(source.weight[:rows, :columns])
    return shaped


def main() -> None:
    """Serve one encoder."""
    serve(CostingWorker())


if __name__ == "__main__":
    main()
