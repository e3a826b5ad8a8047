import pytest
import torch
from torch import nn

from tcompress.attention import HeadAttention, replace_attention_


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_replacement_equals_multihead_attention(batch_first: bool, bias: bool) -> None:
    torch.manual_seed(0)
    original = nn.MultiheadAttention(24, 3, batch_first=batch_first, bias=bias).eval()
    replacement = HeadAttention.from_torch(original)
    x = torch.randn(4, 7, 24) if batch_first else torch.randn(7, 4, 24)
    padding = torch.zeros(4, 7, dtype=torch.bool)
    padding[1, 3:] = True
    causal = torch.triu(torch.ones(7, 7, dtype=torch.bool), 1)
    for masks in (
        {},
        {"key_padding_mask": padding},
        {"attn_mask": causal},
        {"key_padding_mask": padding, "attn_mask": causal},
        {"attn_mask": torch.randn(12, 7, 7)},
    ):
        expected, _ = original(x, x, x, **masks, need_weights=False)
        found, weights = replacement(x, x, x, **masks)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert weights is None


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # the original's path
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_whole_transformer_encoder_stays_equal(
    norm_first: bool, batch_first: bool, activation: str
) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        24, 4, 48, norm_first=norm_first, batch_first=batch_first, activation=activation
    )
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first and not norm_first)
    stack.eval()
    x = torch.randn(4, 7, 24) if batch_first else torch.randn(7, 4, 24)
    padding = torch.zeros(4, 7, dtype=torch.bool)
    padding[1, 3:] = True
    with torch.no_grad():
        expected = stack(x, src_key_padding_mask=padding)
        assert replace_attention_(stack) == 2
        found = stack(x, src_key_padding_mask=padding)
    real = ~(padding if batch_first else padding.T)
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-5)


def test_a_form_without_separate_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="without add_bias_kv"):
        HeadAttention.from_torch(nn.MultiheadAttention(8, 2, add_bias_kv=True))
