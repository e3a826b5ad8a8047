"""int8 weights for ONNX Runtime."""

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor


def quantize_weight(
    weight: Tensor, *, reduce_range: bool = False
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantize a matrix to int8, symmetric, with one scale per output channel.

    w is about scale * q; |w - scale * q| is at most scale / 2.

    Args:
        weight: `(out, in)`, as PyTorch keeps it.
        reduce_range: Whether to use 7 bits, so that sums of two u8 x s8 products fit int16 on
            CPUs without int8 dot products.

    Returns:
        The int8 matrix, `(in, out)` as ONNX multiplies it, and the scales, `(out,)`.
    """
    quantized, scale = quantize_rows(weight, top=63 if reduce_range else 127)
    return np.ascontiguousarray(quantized.T), scale


def quantize_rows(
    table: Tensor, *, top: int = 127
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantize a matrix to int8, symmetric, with one scale per row.

    Args:
        table: `(rows, columns)`.
        top: The integer that the largest entry of a row becomes.

    Returns:
        The int8 matrix, `(rows, columns)`, and the scales, `(rows,)`.
    """
    matrix: npt.NDArray[Any] = table.detach().cpu().numpy().astype(np.float32)
    largest = np.abs(matrix).max(axis=1)
    scale = np.where(largest > 0, largest / top, 1.0).astype(np.float32)
    quantized = np.clip(np.rint(matrix / scale[:, None]), -top, top).astype(np.int8)
    return quantized, scale
