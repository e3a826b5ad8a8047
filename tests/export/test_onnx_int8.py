import numpy as np
import pytest
import torch

from tcompress.export.onnx_int8 import quantize_weight


@pytest.mark.parametrize(("reduce_range", "top"), [(False, 127), (True, 63)])
def test_every_weight_is_within_half_a_step(reduce_range: bool, top: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 40) * torch.logspace(-3, 2, 24)[:, None]
    weight[5] = 0
    quantized, scale = quantize_weight(weight, reduce_range=reduce_range)
    assert quantized.shape == (40, 24)
    assert quantized.dtype == np.int8
    assert np.abs(quantized.astype(int)).max() == top
    error = np.abs(quantized * scale - weight.numpy().T)
    assert (error <= scale / 2 * (1 + 1e-5)).all()
