"""An encoder that answers in PyTorch, and how long it takes there.

Engine processes import it before their engine, so nothing heavy may be imported at the top.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tcompress.encoder import Encoder
    from tcompress.preprocessing import Batch

_NS_PER_MS = 1e6


class TorchEngine:
    """A function from a batch to what `Encoder.predict` returns, in main memory.

    It goes straight to the model: a baseline must not pay for this project's conveniences.

    Args:
        model: The model, on its device and in evaluation mode.
        device: `cpu` or `cuda`.
        half: Number format to convert it and its inputs to, a torch dtype; None for none.
    """

    def __init__(self, model: "nn.Module", device: str, half: Any = None) -> None:
        self._model = model if half is None else model.to(half)
        self._device = device
        self._half = half

    def __call__(self, batch: "Batch") -> Any:
        """Answer a batch, copies to and from a GPU included.

        Args:
            batch: Model inputs.

        Returns:
            `(batch, labels)` float32, or what the task has in its place.
        """
        import torch

        from tcompress.encoder import logits_of

        with torch.inference_mode():
            return logits_of(self._model, self._tensors(batch)).float().cpu().numpy()

    def kernels_ns(self, batch: "Batch", calls: int, warmup: int) -> list[int]:
        """Measure calls by the GPU's own clock, from the first kernel's start to the last's end.

        Inputs lie in the GPU's memory and answers stay there. Where the kernels are shorter than
        the time that the CPU takes to start them, the gaps between them count.

        Args:
            batch: Model inputs.
            calls: Measured calls.
            warmup: Calls before them.

        Returns:
            Duration of each measured call, in ns; nothing on a CPU.
        """
        import torch

        from tcompress.encoder import logits_of

        if self._device == "cpu":
            return []
        samples = []
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.inference_mode():
            tensors = self._tensors(batch)
            for call in range(-warmup, calls):
                start.record()
                logits_of(self._model, tensors)
                end.record()
                end.synchronize()
                if call >= 0:
                    samples.append(round(start.elapsed_time(end) * _NS_PER_MS))
        return samples

    def memory_peak_bytes(self) -> int | None:
        """Return the most of the GPU's memory that tensors have taken, in bytes; None on a CPU.

        What CUDA itself takes, some hundred MB for a process, is not in it.
        """
        import torch

        return None if self._device == "cpu" else int(torch.cuda.max_memory_allocated())

    def _tensors(self, batch: "Batch") -> "dict[str, Tensor]":
        import torch

        tensors = {name: torch.from_numpy(array).to(self._device) for name, array in batch.items()}
        if self._half is None:
            return tensors
        return {n: t.to(self._half) if t.is_floating_point() else t for n, t in tensors.items()}


def open_pytorch(encoder: "Encoder", device: str, precision: str) -> TorchEngine:
    """Make an encoder ready to answer in PyTorch, as its plan says.

    Args:
        encoder: The encoder; int8 projections are replaced in place.
        device: `cpu` or `cuda`.
        precision: `bf16` or `fp16` to convert it; otherwise its plan counts.

    Raises:
        DeviceError: If there is no such device.
    """
    import torch

    if encoder.plan.precision != "fp32":
        from tcompress.compress.precision import apply_precision_

        # On the CPU still: that is where the plan's pieces are looked for.
        apply_precision_(encoder)
    model = encoder.to(device).model.eval()
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return TorchEngine(model, device, half)
