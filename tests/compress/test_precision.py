import pytest
import torch
from torch import nn
from torch.nn import functional

from tcompress.compress.precision import apply_precision_, dynamic_int8
from tcompress.compress.pruning import prune_
from tcompress.encoder import Encoder
from tcompress.plain import HALVES, attention_bias
from tcompress.plan import CompressionPlan, Precision


def test_dynamic_int8_errs_by_at_most_half_a_step_per_factor() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32))
    x = torch.randn(10, 64)
    exact, weight = model(x), model[0].weight.detach().clone()
    model[0] = dynamic_int8(model[0])
    x_step = (x.max() - x.min()) / 127  # torch keeps activations to 7 bits where int8 saturates
    w_step = weight.abs().amax(1) / 127
    bound = 64 * (x_step / 2 * weight.abs().amax(1) + w_step / 2 * x.abs().max())
    difference = (model(x) - exact).abs().amax(0)
    assert (difference <= bound).all()
    assert difference.max() > 0


def test_only_what_the_plan_names_is_lowered(bert: Encoder, uneven_plan: CompressionPlan) -> None:
    prune_(bert, uneven_plan)
    bert.plan = bert.plan.with_precision(Precision.INT8)
    batch = bert.preprocessor.random_batch(4, 9)
    exact = bert.predict(batch)
    apply_precision_(bert)
    lowered = [
        name
        for name, module in bert.model.named_modules()
        if isinstance(module, torch.ao.nn.quantized.dynamic.Linear)
    ]
    # layer 0: q k v o in out; layer 1 without attention: in out; layer 2 without FFN: q k v o
    assert len(lowered) == 6 + 2 + 4
    assert 0 < abs(bert.predict(batch) - exact).max() < 0.2


@pytest.mark.parametrize("dtype", HALVES.values())
def test_rows_of_padding_only_are_finite_in_half(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (30 * torch.randn(2, 1, 5, 8, dtype=dtype) for _ in range(3))
    bias = attention_bias(torch.tensor([[0] * 5, [1, 1, 0, 0, 0]]), dtype)
    scores = q @ k.transpose(-1, -2) + bias
    assert torch.isfinite(scores).all()
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    assert torch.isfinite(mixed).all()
    seen = functional.scaled_dot_product_attention(q[1:], k[1:, :, :2], v[1:, :, :2])
    torch.testing.assert_close(mixed[1:], seen, atol=0.5, rtol=0.02)


@pytest.mark.parametrize("precision", HALVES)
def test_half_in_pytorch_errs_by_its_rounding_and_leaves_the_rest_alone(
    any_encoder: Encoder, uneven_plan: CompressionPlan, precision: Precision
) -> None:
    prune_(any_encoder, uneven_plan)
    any_encoder.plan = any_encoder.plan.with_precision(precision)
    batch = any_encoder.preprocessor.random_batch(4, 9)
    exact = any_encoder.predict(batch)
    apply_precision_(any_encoder)
    kinds = [p.dtype for p in any_encoder.model.parameters()]
    assert {torch.float32, HALVES[precision]} == set(kinds)
    rounding = torch.finfo(HALVES[precision]).eps
    assert 0 < abs(any_encoder.predict(batch) - exact).max() < 20 * rounding
