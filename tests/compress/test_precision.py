import torch
from torch import nn

from tcompress.compress.precision import apply_precision_, dynamic_int8
from tcompress.compress.pruning import prune_
from tcompress.encoder import Encoder
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
