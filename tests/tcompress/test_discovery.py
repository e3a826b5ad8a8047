from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tcompress.anatomy import Activation
from tcompress.errors import ModelError
from tcompress.own_module import OwnModule, opened
from tcompress.transformer import Pooling

from .own_modules import HEADS, LONGEST, NEURONS, WIDTH, Convolutions, Sensors, Tutorial

FORMS = [
    pytest.param({}, id="pre-norm"),
    pytest.param({"norm_first": False, "activation": "relu"}, id="post-norm"),
    pytest.param({"batch_first": True, "positions": "learned"}, id="learned-positions"),
    pytest.param({"positions": "none", "bias": False}, id="no-positions-no-bias"),
    pytest.param({"activation": "silu"}, id="callable-activation"),
    pytest.param({"norm_first": False, "batch_first": True, "nested": True}, id="nested-tensor"),
]


def made(build: Callable[..., nn.Module], **form: object) -> nn.Module:
    """Build a module whose biases and norms are no constants, the same each time."""
    torch.manual_seed(0)
    module = build(**form)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def found(module: nn.Module, tmp_path: Path) -> OwnModule:
    return opened(tmp_path, module, padding_id=1)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_torch_encoder_is_found_and_answers_as_before(
    form: dict[str, object], tmp_path: Path
) -> None:
    ids = torch.randint(2, 20, (3, 9))
    mask = torch.arange(9) < torch.tensor([[9], [4], [6]])
    with torch.no_grad():
        expected = made(Tutorial, **form)(ids, ~mask)
        model = found(made(Tutorial, **form), tmp_path)
        answers = model(input_ids=ids, attention_mask=mask.long())
    torch.testing.assert_close(answers, expected, rtol=0, atol=1e-5)
    anatomy = model.anatomy()
    assert anatomy.plain
    assert anatomy.head_counts == (HEADS,) * 3
    assert anatomy.neuron_counts == (NEURONS,) * 3
    assert {layer.norm_first for layer in anatomy.layers} == {form.get("norm_first", True)}
    assert anatomy.layers[0].activation == Activation(form.get("activation", "gelu"))
    assert anatomy.embedding.max_tokens == (None if form.get("positions") == "none" else LONGEST)
    assert anatomy.head.pooling is Pooling.MEAN
    assert [stage.activation for stage in anatomy.head.stages] == [Activation.TANH, None]


def test_a_fused_projection_and_a_softmax_by_hand_are_found(tmp_path: Path) -> None:
    inputs, mask = torch.randn(2, 6, 5), torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0]])
    with torch.no_grad():
        model = found(made(Sensors), tmp_path)
        answers = model(inputs=inputs, attention_mask=mask)
        expected = made(Sensors)(inputs, mask)
    torch.testing.assert_close(answers, expected, rtol=0, atol=1e-5)
    layer = model.anatomy().layers[0]
    assert (layer.num_heads, layer.head_size) == (HEADS, WIDTH // HEADS)
    assert model.anatomy().head.pooling is Pooling.FIRST


def test_what_more_a_forward_does_is_noticed(tmp_path: Path) -> None:
    assert not found(made(Tutorial, causal=True), tmp_path).anatomy().plain


def test_a_module_without_attention_is_refused_with_what_was_seen(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no attention.*first \(5->32\), second \(32->2\)"):
        found(made(Convolutions), tmp_path)


def test_a_module_that_takes_none_of_the_inputs_is_refused_with_what_was_tried(
    tmp_path: Path,
) -> None:
    class Picky(Convolutions):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            message = "only on Sundays"
            raise ValueError(message)

    with pytest.raises(ModelError, match=r"tried.*5 features, 32 features.*only on Sundays"):
        found(made(Picky), tmp_path)
