"""The encoder as one plain module: the same weights and logits, without any library's control flow.

Exports are written from it and reconstruction walks through it, sublayer by sublayer: it holds
nothing of the machinery around training, and traces the same under every version of transformers.
Work whose result nobody reads is left out: a head that looks at the first token only needs the
last layer's queries, output and FFN for that one token.
"""

from collections.abc import Callable
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .anatomy import Activation, Anatomy, EmbeddingAnatomy, HeadAnatomy, LayerAnatomy
from .encoder import Encoder
from .errors import ModelError
from .plan import LayerPlan, Precision
from .preprocessing import ATTENTION_MASK, TOKEN_TYPES
from .transformer import pooled

HALVES = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}
"""The precisions of 16 bits, as PyTorch calls them."""
_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.RELU: functional.relu,
    Activation.GELU: functional.gelu,
    Activation.GELU_TANH: lambda x: functional.gelu(x, approximate="tanh"),
    Activation.SILU: functional.silu,
    Activation.TANH: torch.tanh,
}


class PlainEmbedding(nn.Module):
    """Input side: token table or projection, positions, token types, norm, projection.

    Args:
        anatomy: The encoder's input side.
    """

    def __init__(self, anatomy: EmbeddingAnatomy) -> None:
        super().__init__()
        self.tokens = anatomy.tokens
        self.token_types = anatomy.token_types
        self.norm = anatomy.norm
        self.projection = anatomy.projection
        self.projects_first = anatomy.projects_first
        self.padding_id = anatomy.position_padding_id
        self.scale = anatomy.scale
        self.max_tokens = anatomy.max_tokens
        self.fixed_tokens = anatomy.fixed_tokens
        self.input_shape = anatomy.input_shape
        positions = None if anatomy.positions is None else anatomy.positions.detach()
        self.register_buffer("positions", None if positions is None else positions.flatten(0, -2))
        prefix = [token.detach() for token in anatomy.prefix]
        self.register_buffer("prefix", torch.cat(prefix, 1) if prefix else None)

    def forward(self, inputs: Tensor, token_types: Tensor | None) -> Tensor:
        """Embed.

        Args:
            inputs: `(batch, tokens)` ids, `(batch, tokens, features)` or `(batch, *input_shape)`.
            token_types: `(batch, tokens)`; not read where there is no table for them.

        Returns:
            `(batch, tokens, hidden)`.
        """
        x = self._tokens_of(inputs)
        if self.scale != 1:
            x = x * self.scale
        if self.positions is not None:
            x = x + self._positions_of(inputs, x.shape[1])
        if self.token_types is not None:
            x = x + _look_up(cast("Tensor", token_types), self.token_types)
        steps = [step for step in (self.norm, self.projection) if step is not None]
        for step in reversed(steps) if self.projects_first else steps:
            x = step(x)
        return x

    def _tokens_of(self, inputs: Tensor) -> Tensor:
        if isinstance(self.tokens, nn.Embedding):
            return _look_up(inputs, self.tokens)
        if isinstance(self.tokens, nn.Conv2d):
            return self._patches_of(inputs, self.tokens)
        projected: Tensor = self.tokens(inputs)
        return projected

    def _patches_of(self, inputs: Tensor, patches: nn.Conv2d) -> Tensor:
        if len(self.input_shape) == 2:
            inputs = inputs.transpose(1, 2).unsqueeze(1)
        # (batch, hidden, rows, columns) -> (batch, patches, hidden)
        x = patches(inputs).flatten(2).transpose(1, 2)
        prefix = cast("Tensor", self.prefix)
        return torch.cat([prefix.expand(x.shape[0], -1, -1), x], 1)

    def _positions_of(self, inputs: Tensor, tokens: int) -> Tensor:
        table = cast("Tensor", self.positions)
        if self.padding_id is None:
            return table[:tokens]
        # RoBERTa counts positions over the tokens that are not padding
        real = (inputs != self.padding_id).long()
        return functional.embedding(torch.cumsum(real, 1) * real + self.padding_id, table)


def _look_up(indices: Tensor, table: nn.Embedding) -> Tensor:
    """Read rows of a table; without its padding index, which matters to training only."""
    return functional.embedding(indices, table.weight)


class PlainLayer(nn.Module):
    """One encoder layer.

    Args:
        anatomy: The layer's pieces.
        plan: Its precisions.
        first_only: Whether only the first token's output is read.
    """

    def __init__(self, anatomy: LayerAnatomy, plan: LayerPlan, *, first_only: bool) -> None:
        super().__init__()
        self.num_heads = anatomy.num_heads
        self.head_size = anatomy.head_size
        self.num_neurons = anatomy.num_neurons
        self.query, self.key, self.value = anatomy.query, anatomy.key, anatomy.value
        self.output = anatomy.output
        self.ffn_in, self.ffn_out, self.gate = anatomy.ffn_in, anatomy.ffn_out, anatomy.gate
        self.terms = anatomy.terms
        self.activation = anatomy.activation
        self.attention_norm, self.ffn_norm = anatomy.attention_norm, anatomy.ffn_norm
        self.norm_first = anatomy.norm_first
        self.first_only = first_only
        self.attention_precision, self.ffn_precision = plan.attention, plan.feed_forward
        self.attention_dtype = self.ffn_dtype = torch.float32

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the layer.

        Args:
            x: `(batch, tokens, hidden)`.
            bias: `(batch, 1, 1, tokens)`: 0 at real tokens, hugely negative at padding; in
                `attention_dtype`. None where nothing is padding.

        Returns:
            `(batch, tokens, hidden)`, or `(batch, 1, hidden)` with `first_only`.
        """
        return self.feed(self.attend(x, bias))

    def attend(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the attention sublayer.

        Args:
            x: As for `forward`.
            bias: Likewise.

        Returns:
            The stream behind it, `(batch, 1 or tokens, hidden)`.
        """
        stream = self.carried(x) + self.join(self.mix(x, bias)).to(x.dtype)
        return stream if self.norm_first else normed(self.attention_norm, stream)

    def feed(self, x: Tensor) -> Tensor:
        """Apply the feed-forward sublayer.

        Args:
            x: The stream behind the attention sublayer, `(batch, 1 or tokens, hidden)`.

        Returns:
            The stream behind the layer, of the same shape.
        """
        stream = x + self.gather(self.excite(x)).to(x.dtype)
        return stream if self.norm_first else normed(self.ffn_norm, stream)

    def carried(self, x: Tensor) -> Tensor:
        """Return the part of the stream that the layer's output is added to.

        Args:
            x: What the layer reads, `(batch, tokens, hidden)`.
        """
        return x[:, :1] if self.first_only else x

    def mix(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return what the output projection reads: the heads side by side.

        Args:
            x: What the layer reads, `(batch, tokens, hidden)`.
            bias: As for `forward`.

        Returns:
            `(batch, 1 or tokens, heads * head_size)`.
        """
        if self.query is None or self.key is None or self.value is None or self.num_heads == 0:
            return self.carried(x)[..., :0]
        x = normed(self.attention_norm, x) if self.norm_first else x
        x = x.to(self.attention_dtype)
        # q: (batch, heads, 1 or tokens, head_size); k, v: (batch, heads, tokens, head_size)
        q = self._split(self.query(self.carried(x)))
        k, v = self._split(self.key(x)), self._split(self.value(x))
        return self._attended(q, k, v, bias).transpose(1, 2).flatten(2)

    def join(self, features: Tensor) -> Tensor:
        """Apply the output projection; without heads its bias is all that remains.

        Args:
            features: What `mix` returned.

        Returns:
            `(batch, 1 or tokens, hidden)`, or `(hidden,)` without heads.
        """
        return self.output(features) if self.num_heads else _bias(self.output)

    def excite(self, x: Tensor) -> Tensor:
        """Return what the second FFN projection reads: the neurons.

        Args:
            x: The stream behind the attention sublayer, `(batch, 1 or tokens, hidden)`.

        Returns:
            `(batch, 1 or tokens, neurons)`.
        """
        if self.num_neurons == 0:
            return x[..., :0]
        x = normed(self.ffn_norm, x) if self.norm_first else x
        x = x.to(self.ffn_dtype)
        excited = _ACTIVATIONS[self.activation](self.ffn_in(x))
        return excited if self.gate is None else excited * self.gate(x)

    def gather(self, features: Tensor) -> Tensor:
        """Apply the second FFN projection; without neurons its bias is all that remains.

        Args:
            features: What `excite` returned.

        Returns:
            `(batch, 1 or tokens, hidden)`, or `(hidden,)` without neurons.
        """
        return self.ffn_out(features) if self.num_neurons else _bias(self.ffn_out)

    @property
    def ffn_linears(self) -> list[nn.Linear]:
        """The projections of the feed-forward sublayer."""
        gate = [] if self.gate is None else [self.gate]
        return [self.ffn_in, *gate, self.ffn_out]

    def linears_in(self, precision: Precision) -> list[nn.Linear]:
        """Return the projections that the plan runs in a precision; none of dropped sublayers.

        Args:
            precision: The precision.
        """
        linears: list[nn.Linear] = []
        if self.attention_precision is precision and self.num_heads:
            linears += [cast("nn.Linear", p) for p in (self.query, self.key, self.value)]
            linears.append(self.output)
        if self.ffn_precision is precision and self.num_neurons:
            linears += self.ffn_linears
        return linears

    def halve_(self) -> None:
        """Convert the projections that the plan runs in half, in place.

        Between them the sublayer runs in half too; norms and the stream stay in fp32.
        """
        for precision, dtype in HALVES.items():
            for linear in self.linears_in(precision):
                linear.to(dtype)
        if self.num_heads:
            self.attention_dtype = HALVES.get(self.attention_precision, torch.float32)
        self.ffn_dtype = HALVES.get(self.ffn_precision, torch.float32)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        scale = None
        if self.terms is not None:
            extra, scale = self.terms.bias(q, k), self.terms.scale
            q, k = self.terms.rotated(q, k)
            if extra is not None:
                bias = extra.to(q.dtype) if bias is None else bias + extra.to(bias.dtype)
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)

    def _split(self, x: Tensor) -> Tensor:
        shape = (x.shape[0], x.shape[1], self.num_heads, self.head_size)
        return x.view(shape).transpose(1, 2)


def normed(norm: nn.LayerNorm | None, x: Tensor) -> Tensor:
    """Apply a norm that may not be there.

    Args:
        norm: The norm, or None.
        x: Any tensor.
    """
    return x if norm is None else norm(x)


def _bias(linear: nn.Linear) -> Tensor:
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias


class PlainHead(nn.Module):
    """Output side: pooling and linear stages.

    Args:
        anatomy: The encoder's output side.
    """

    def __init__(self, anatomy: HeadAnatomy) -> None:
        super().__init__()
        self.pooling = anatomy.pooling
        self.stages = anatomy.stages
        self.normalize = anatomy.normalize
        self.norm = anatomy.norm
        self.linears = nn.ModuleList(stage.linear for stage in anatomy.stages)
        self.norms = nn.ModuleList(stage.norm or nn.Identity() for stage in anatomy.stages)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Answer.

        Args:
            x: `(batch, tokens, hidden)`.
            mask: `(batch, tokens)`, 1 at real tokens.

        Returns:
            `(batch, labels)`, or `(batch, tokens, labels)` where nothing is pooled.
        """
        answer = self.climb(self.pool(x, mask), len(self.stages))
        return functional.normalize(answer, dim=-1) if self.normalize else answer

    def climb(self, x: Tensor, stages: int) -> Tensor:
        """Apply the first stages.

        Args:
            x: What `pool` returned.
            stages: How many.
        """
        for stage, linear, norm in islice(
            zip(self.stages, self.linears, self.norms, strict=True), stages
        ):
            x = norm(activate(stage.activation, linear(x)))
        return x

    def pool(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return what the first stage reads, `(batch, hidden)`; all tokens without pooling.

        Args:
            x: `(batch, tokens, hidden)`.
            mask: `(batch, tokens)`, 1 at real tokens.
        """
        return normed(self.norm, pooled(self.pooling, x, mask))


def activate(activation: Activation | None, x: Tensor) -> Tensor:
    """Apply a pointwise function.

    Args:
        activation: Which; None for none.
        x: Any tensor.
    """
    return x if activation is None else _ACTIVATIONS[activation](x)


class PlainEncoder(nn.Module):
    """The whole encoder; shares its matrices with the one it was made from.

    Args:
        anatomy: The encoder's pieces.
        layers: Its layers' plans.
        input_names: Names of the inputs, in the order in which `forward` takes them.
    """

    def __init__(
        self, anatomy: Anatomy, layers: tuple[LayerPlan, ...], input_names: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.input_names = input_names
        self.masked = ATTENTION_MASK in input_names
        self.main_input = anatomy.embedding.input_name
        self.hidden_size = anatomy.hidden_size
        self.embedding = PlainEmbedding(anatomy.embedding)
        self.order = anatomy.order
        last = anatomy.order[-1] if anatomy.first_only_last else None
        self.layers = nn.ModuleList(
            PlainLayer(layer, plan, first_only=layer.index == last)
            for layer, plan in zip(anatomy.layers, layers, strict=True)
        )
        self.final_norm = anatomy.final_norm
        self.head = PlainHead(anatomy.head)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Classify.

        Args:
            inputs: The inputs in the order of `input_names`.

        Returns:
            Logits, `(batch, labels)`.
        """
        x, mask = self.embed(*inputs)
        kinds = dict.fromkeys(layer.attention_dtype for layer in self.applied)
        biases = {kind: attention_bias(mask, kind) if self.masked else None for kind in kinds}
        for layer in self.applied:
            x = layer(x, biases[layer.attention_dtype])
        return self.classify(x, mask)

    @property
    def applied(self) -> list[PlainLayer]:
        """The layers in order of application; shared ones occur several times."""
        layers = [cast("PlainLayer", layer) for layer in self.layers]
        return [layers[index] for index in self.order]

    def classify(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the logits, `(batch, labels)`.

        Args:
            x: The stream behind the last layer, `(batch, 1 or tokens, hidden)`.
            mask: `(batch, tokens)`, 1 at real tokens.
        """
        if self.final_norm is not None:
            x = self.final_norm(x)
        return self.head(x, mask)  # type: ignore[no-any-return]

    def embed(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the first layer reads, `(batch, tokens, hidden)`, and the mask of tokens.

        Args:
            inputs: The inputs in the order of `input_names`.
        """
        named = dict(zip(self.input_names, inputs, strict=True))
        embedded = self.embedding(named[self.main_input], named.get(TOKEN_TYPES))
        mask = named[ATTENTION_MASK] if self.masked else embedded.new_ones(embedded.shape[:2])
        return embedded, mask

    def linears_in(self, precision: Precision) -> list[nn.Linear]:
        """Return the projections that the plan runs in a precision; none of dropped sublayers.

        Args:
            precision: The precision.
        """
        layers = (cast("PlainLayer", layer) for layer in self.layers)
        return [linear for layer in layers for linear in layer.linears_in(precision)]

    def halve_(self) -> None:
        """Convert the projections that the plan runs in half, in place."""
        for layer in self.layers:
            cast("PlainLayer", layer).halve_()


def attention_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention scores, `(batch, 1, 1, tokens)`.

    It is finite, and so is its sum with a score: a row of padding only gives no NaN.

    Args:
        mask: `(batch, tokens)`, 1 at real tokens.
        dtype: Of the scores.
    """
    return ((mask == 0).to(dtype) * (torch.finfo(dtype).min / 2))[:, None, None, :]


def plain(encoder: Encoder, *, whole: bool = True) -> PlainEncoder:
    """Return an encoder as a plain module, in evaluation mode.

    Args:
        encoder: The encoder; not changed, and sharing its weights.
        whole: Whether it has to give the encoder's answers; else its pieces are all that counts.

    Raises:
        ModelError: If it has to, and a user's own module does more than its pieces.
    """
    anatomy = encoder.anatomy
    if whole and not anatomy.plain:
        msg = (
            f"{encoder.directory}: the module's own forward does more than its embedding, layers "
            "and head, which this step walks through; prune --criterion fisher --no-reconstruct, "
            "and quantize --precision int8 without --calibrate, do without"
        )
        raise ModelError(msg)
    names = tuple(encoder.example_tensors(1, 2))
    return PlainEncoder(anatomy, encoder.plan.layers, names).eval()
