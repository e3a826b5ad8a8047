"""What hooks on a forward pass show about the units of a layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tcompress.anatomy import LayerAnatomy


class UnitVariance:
    """Sums that give the variance of each unit's contribution to the stream, per token.

    With z a head's output, O its block of the output projection and K = O O^T, the variance
    tr(O^T Cov(z) O) is E[(z - r) K (z - r)^T] - (E[z] - r) K (E[z] - r)^T for any r. The mean of
    the first batch as r keeps the difference free of cancellation. A neuron is a head of width 1.

    Args:
        layer: The layer.
        parts: Of the examples, whose sums are kept apart.
        times: How often the layer is applied.
    """

    def __init__(self, layer: LayerAnatomy, parts: int, times: int = 1) -> None:
        self._layer = layer
        self._times = times
        with torch.no_grad():
            o = layer.output.weight.unflatten(1, (layer.num_heads, layer.head_size))
            self._heads = _Spread(torch.einsum("cha,chb->hab", o, o), parts)
            squares = layer.ffn_out.weight.square().sum(0)
            self._neurons = _Spread(squares[:, None, None], parts)

    @contextmanager
    def observing(self, real: Tensor, member: Tensor) -> Iterator[None]:
        """Add the forward pass inside the block to the sums.

        Args:
            real: `(examples, tokens)`, True at tokens that are no padding.
            member: `(parts, examples)`, 1 where the example belongs to the part.

        Yields:
            Nothing.
        """
        layer = self._layer

        def see_heads(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._heads.add(inputs[0].detach(), real, member)

        def see_neurons(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            a = inputs[0].detach()
            self._neurons.add(a.transpose(0, 1) if layer.ffn_batch_dim else a, real, member)

        with _hooked(
            layer.output.register_forward_pre_hook(see_heads),
            layer.ffn_out.register_forward_pre_hook(see_neurons),
        ):
            yield

    def of(self, parts: list[int], tokens: int) -> tuple[Tensor, Tensor]:
        """Return the variances of heads and neurons.

        Args:
            parts: Of which parts of the examples.
            tokens: How many those had.
        """
        seen = tokens * self._times
        return self._heads.variance(parts, seen), self._neurons.variance(parts, seen)


class _Spread:
    """Sums over tokens of z - r and of (z - r) K (z - r)^T, per part.

    Args:
        gram: K, `(groups, width, width)`.
        parts: Of the examples.
    """

    def __init__(self, gram: Tensor, parts: int) -> None:
        self._gram = gram
        self._origin: Tensor | None = None
        groups, width = gram.shape[:2]
        self._first = torch.zeros(parts, groups, width, dtype=torch.float64)
        self._second = torch.zeros(parts, groups, dtype=torch.float64)

    def add(self, z: Tensor, real: Tensor, member: Tensor) -> None:
        # z: (examples, tokens, groups * width)
        z = z.unflatten(-1, self._gram.shape[:2])
        if self._origin is None:
            self._origin = z[real].mean(0)
        z = (z - self._origin) * real[..., None, None]
        square = (torch.einsum("btgi,gij->btgj", z, self._gram) * z).sum((1, 3))
        parts = member.double()
        self._first += torch.tensordot(parts, z.sum(1).cpu().double(), dims=1)
        self._second += parts @ square.cpu().double()

    def variance(self, parts: list[int], tokens: int) -> Tensor:
        mean = self._first[parts].sum(0) / tokens
        of_mean = torch.einsum("gi,gij,gj->g", mean, self._gram.cpu().double(), mean)
        return (self._second[parts].sum(0) / tokens - of_mean).clamp(min=0)


class AttentionMaps:
    """What the attention maps of one layer show; fused attention does not return them.

    Args:
        layer: The layer.
        real: `(examples, tokens)`, True at tokens that are no padding.

    Attributes:
        entropy: `(examples, heads)`: sum over real tokens of their attention's entropy, divided
            by the log of the example's tokens.
        confidence: `(examples, heads)`: sum over real tokens of their largest attention.
    """

    def __init__(self, layer: LayerAnatomy, real: Tensor) -> None:
        self._layer = layer
        self._real = real
        self._projected: dict[nn.Module, Tensor] = {}
        self.entropy = self.confidence = torch.zeros(len(real), 0, device=real.device)

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Look at the forward pass inside the block; the attributes are set behind it.

        Yields:
            Nothing.
        """
        layer = self._layer
        if layer.query is None or layer.key is None:
            yield
            return
        with _hooked(
            layer.query.register_forward_hook(self._keep),
            layer.key.register_forward_hook(self._keep),
            layer.output.register_forward_pre_hook(self._compute),
        ):
            yield

    def _keep(self, module: nn.Module, _: tuple[Any, ...], output: Tensor) -> None:
        shape = (self._layer.num_heads, self._layer.head_size)
        # the first call is the content's; projections may be used for positions behind it
        self._projected.setdefault(module, output.detach().unflatten(-1, shape))

    @torch.no_grad()
    def _compute(self, *_: Any) -> None:
        # (examples, heads, tokens, head_size)
        q, k = (self._projected[p].transpose(1, 2) for p in self._layer.projections()[:2])
        scale, bias = q.shape[-1] ** -0.5, None
        if (terms := self._layer.terms) is not None:
            scale, bias = terms.scale or scale, terms.bias(q, k)
            q, k = terms.rotated(q, k)
        self._projected.clear()
        # one head at a time: the maps of all heads together are large
        pairs = []
        for head in range(q.shape[1]):
            scores = q[:, head] @ k[:, head].mT * scale
            if bias is not None:
                scores = scores + bias[:, head if bias.shape[1] > 1 else 0]
            pairs.append(_map_statistics(scores, self._real))
        entropy, confidence = (torch.stack(row, 1) for row in zip(*pairs, strict=True))
        # of a layer that is applied several times, the sum
        known = self.entropy.shape == entropy.shape
        self.entropy = self.entropy + entropy if known else entropy
        self.confidence = self.confidence + confidence if known else confidence


def _map_statistics(scores: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    # scores: (examples, tokens, tokens)
    attention = scores.masked_fill(~real[:, None], float("-inf")).softmax(-1)
    # attention among one token has no entropy, whatever it is divided by
    bound = real.sum(1).clamp(min=2).log()
    entropy = (torch.special.entr(attention).sum(-1) * real).sum(1) / bound
    return entropy, (attention.amax(-1) * real).sum(1)


@contextmanager
def _hooked(*handles: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
