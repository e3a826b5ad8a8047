"""Multi-head attention that can lose heads."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


class HeadAttention(nn.Module):
    """Self- or cross-attention with separate projections and any number of heads.

    Computes what `torch.nn.MultiheadAttention` computes, but its width need not equal
    `num_heads * head_size` of the embedding, so heads can be removed. Without heads it returns
    the output bias, which is what remains of the sublayer.

    Args:
        embed_dim: Width of the residual stream, E.
        num_heads: Number of heads, H.
        head_size: Width of one head, D.
        bias: Whether the projections have biases.
        batch_first: Whether inputs are `(batch, tokens, E)` or `(tokens, batch, E)`.
        dropout: Dropout probability of the attention weights in training.
    """

    # nn.TransformerEncoder(Layer) reads these of its self_attn to choose its fused path, which
    # knows only equal heads: these values send it down the ordinary one.
    in_proj_bias = None
    in_proj_weight = None
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        head_size: int,
        *,
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.head_size = head_size
        self.batch_first = batch_first
        self.dropout = dropout
        # in the source's numbering, once some are gone; masks may speak of every head
        self.kept_heads: tuple[int, ...] | None = None
        width = num_heads * head_size
        self.q_proj = nn.Linear(embed_dim, width, bias=bias)
        self.k_proj = nn.Linear(embed_dim, width, bias=bias)
        self.v_proj = nn.Linear(embed_dim, width, bias=bias)
        self.out_proj = nn.Linear(width, embed_dim, bias=bias)

    @property
    def num_heads(self) -> int:
        """Number of heads left; follows the width of the query projection."""
        return self.q_proj.out_features // self.head_size

    @classmethod
    def from_torch(cls, source: nn.MultiheadAttention) -> "HeadAttention":
        """Return the equal module for a `torch.nn.MultiheadAttention`.

        Args:
            source: The module to replace; it must be plain self-attention (equal query, key and
                value widths, no `bias_k`, no zero attention).

        Raises:
            ValueError: If it uses one of the forms that are not supported.
        """
        if (
            source.in_proj_weight is None
            or source.bias_k is not None
            or source.bias_v is not None
            or source.add_zero_attn
        ):
            msg = (
                "only nn.MultiheadAttention with equal query, key and value widths, without "
                "add_bias_kv and add_zero_attn, can be replaced"
            )
            raise ValueError(msg)
        module = cls(
            source.embed_dim,
            source.num_heads,
            source.head_dim,
            bias=source.in_proj_bias is not None,
            batch_first=source.batch_first,
            dropout=source.dropout,
        )
        projections = (module.q_proj, module.k_proj, module.v_proj)
        with torch.no_grad():
            for linear, weight in zip(projections, source.in_proj_weight.chunk(3), strict=True):
                linear.weight.copy_(weight)
            if source.in_proj_bias is not None:
                for linear, bias in zip(projections, source.in_proj_bias.chunk(3), strict=True):
                    linear.bias.copy_(bias)
            module.out_proj.load_state_dict(source.out_proj.state_dict())
        module.to(source.in_proj_weight.device, source.in_proj_weight.dtype)
        return module.train(source.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Attend; the signature is that of `torch.nn.MultiheadAttention`.

        Args:
            query: `(batch, tokens, E)`, or `(tokens, batch, E)` without `batch_first`.
            key: Likewise.
            value: Likewise.
            key_padding_mask: `(batch, tokens)`; True, or minus infinity, at padding.
            need_weights: Ignored: weights are never returned.
            attn_mask: `(tokens, tokens)` or `(batch * heads, tokens, tokens)`, with the heads of
                the source; boolean (True hides) or additive.
            is_causal: A hint; the mask itself decides.

        Returns:
            The output, shaped like `query`, and None.
        """
        del need_weights, is_causal
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        output = self._mix(query, key, value, key_padding_mask, attn_mask)
        return (output if self.batch_first else output.transpose(0, 1)), None

    def _mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        padding: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        if self.num_heads == 0:
            nothing: Tensor = self.out_proj(query[..., :0])
            return nothing
        # q, k, v: (batch, heads, tokens, head_size)
        q, k, v = (
            self._split(linear, x)
            for linear, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        mixed = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=_additive_mask(padding, mask, q, self.kept_heads),
            dropout_p=self.dropout if self.training else 0.0,
        )
        output: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return output

    def _split(self, linear: nn.Linear, x: Tensor) -> Tensor:
        projected: Tensor = linear(x)
        # (batch, tokens, heads, head_size) -> (batch, heads, tokens, head_size)
        return projected.view(*projected.shape[:2], self.num_heads, -1).transpose(1, 2)


class DroppedAttention(nn.Module):
    """Stands where an attention sublayer lost all its heads: it mixes nothing.

    Args:
        parts: What the sublayer it replaces holds itself, under its names there: the output
            projection, without input channels, whose bias is all that remains, and where the
            residual sum is taken inside, the norm behind it.
    """

    def __init__(self, parts: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.output_name: str | None = None
        self.norm_name: str | None = None
        for name, part in (parts or {}).items():
            self.add_module(name, part)
            if isinstance(part, nn.Linear):
                self.output_name = name
            else:
                self.norm_name = name

    def forward(self, *args: Tensor, **kwargs: Tensor) -> tuple[Tensor, None]:
        """Return the contribution of a sublayer without heads.

        Args:
            args: The stream first, `(batch, tokens, E)`; the rest is ignored.
            kwargs: The stream as `hidden_states` or `query`, where it is passed by name.

        Returns:
            `(batch, tokens, 0)`, or the output bias as `(batch, tokens, E)`, or the normed sum of
            both; and None.
        """
        stream = args[0] if args else kwargs.get("hidden_states", kwargs.get("query"))
        assert stream is not None
        output = stream[..., :0]
        if self.output_name is not None:
            output = self.get_submodule(self.output_name)(output)
        if self.norm_name is not None:
            output = self.get_submodule(self.norm_name)(stream + output)
        return output, None


def replace_attention_(module: nn.Module) -> int:
    """Replace every `torch.nn.MultiheadAttention` inside a module, in place, by an equal one.

    `nn.TransformerEncoder`'s nested-tensor path, which bypasses the attention module, is
    switched off on the way.

    Args:
        module: The module to change.

    Returns:
        How many were replaced.
    """
    found = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.MultiheadAttention)
    ]
    for parent, name, child in found:
        setattr(parent, name, HeadAttention.from_torch(child))
    for stack in module.modules():
        if isinstance(stack, nn.TransformerEncoder):
            stack.use_nested_tensor = False
    return len(found)


def _additive_mask(
    padding: Tensor | None, mask: Tensor | None, like: Tensor, kept: tuple[int, ...] | None
) -> Tensor | None:
    # like: (batch, heads, tokens, head_size)
    total = None
    if padding is not None:
        total = _as_additive(padding, like)[:, None, None, :]
    if mask is not None:
        extra = _as_additive(mask, like)
        if extra.dim() == 3:
            extra = extra.unflatten(0, (like.shape[0], -1))
            if kept is not None:
                extra = extra[:, list(kept)]
        total = extra if total is None else total + extra
    return total


def _as_additive(mask: Tensor, like: Tensor) -> Tensor:
    """Return what is added to scores; finite, so that a row that hides all gives no NaN."""
    lowest = torch.finfo(like.dtype).min / 4
    if mask.dtype != torch.bool:
        return mask.to(like.dtype).clamp(min=lowest)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, lowest)
