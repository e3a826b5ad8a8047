"""TorchScript files, for services that load those; loaded without tcompress.

torch.jit is deprecated: all calls to it are here and in `tcompress.runtime`.
"""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tcompress import storage
from tcompress.compress.precision import dynamic_int8, lowered
from tcompress.plain import PlainEncoder
from tcompress.runtime import ignoring_torchscript_deprecation


def write_torchscript(deployed: PlainEncoder, path: Path, inputs: tuple[Tensor, ...]) -> None:
    """Trace the encoder into a TorchScript file with dynamic batch and length.

    Projections that the plan runs in int8 become torch's dynamic int8 ones; what it runs in half
    is converted.

    Args:
        deployed: The encoder; not changed.
        path: The file.
        inputs: Example inputs.
    """
    module = lowered(deployed, dynamic_int8)
    with ignoring_torchscript_deprecation(), torch.no_grad():
        traced = torch.jit.trace(module, inputs, check_trace=False)
        frozen = torch.jit.freeze(traced)
        storage.write_stream(path, partial(torch.jit.save, frozen))
