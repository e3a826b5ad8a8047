"""`torch.export` programs: PyTorch's own deployment format, loaded without tcompress."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from tcompress import storage
from tcompress.compress.precision import lowered
from tcompress.plain import PlainEncoder

from .onnx_int8 import quantize_weight


class Int8Linear(nn.Module):
    """A linear layer that multiplies in int8, made of operators that `torch.export` knows.

    Weights are int8 per output channel, activations int8 per token, both symmetric:
    y = (q_x @ q_w) * s_x * s_w + b, with s_x = max|x| / 127 over a token's channels.

    Args:
        linear: The layer to replace.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = quantize_weight(linear.weight)
        self.weight = nn.Buffer(torch.from_numpy(weight))
        self.scale = nn.Buffer(torch.from_numpy(scale))
        bias = linear.bias
        self.bias = nn.Buffer(torch.zeros_like(self.scale) if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Multiply.

        Args:
            x: `(..., in)`.

        Returns:
            `(..., out)`.
        """
        rows = x.flatten(0, -2)
        largest = rows.abs().amax(-1, keepdim=True).clamp(min=1e-12)
        quantized = torch.round(rows * (127.0 / largest)).to(torch.int8)
        product = torch._int_mm(quantized, self.weight)
        y = product.to(x.dtype) * (largest / 127.0) * self.scale + self.bias
        return y.view(*x.shape[:-1], -1)


def write_program(deployed: PlainEncoder, path: Path, inputs: tuple[Tensor, ...]) -> None:
    """Write the encoder as a `torch.export` program with dynamic batch and length.

    Args:
        deployed: The encoder; not changed.
        path: The file.
        inputs: Example inputs, with at least two examples of at least two tokens.
    """
    module = lowered(deployed, Int8Linear)
    shape = {0: Dim("batch")}
    if deployed.embedding.fixed_tokens is None:
        shape[1] = Dim("tokens", max=deployed.embedding.max_tokens)
    with _ignoring_export_noise(), torch.no_grad():
        program = torch.export.export(module, inputs, dynamic_shapes=((shape,) * len(inputs),))
        save_program(program, path)


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a program without the places in source files that its nodes stem from.

    They are paths of the machine that exported it, and differ from one to the next.

    Args:
        program: The program; loses them.
        path: The file.
    """
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    storage.write_stream(path, partial(torch.export.save, program))


@contextmanager
def _ignoring_export_noise() -> Iterator[None]:
    """Silence deprecations inside torch's own exporter, which a caller cannot act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield
