"""Positions as rotations of queries and keys, and windows that tokens see no further than."""

import torch
from torch import Tensor, nn

from . import ScoreTerms


class Rotary(ScoreTerms):
    """Rotary positions: a head's channel i and channel i + D/2 turn by angle p theta^(-2i/D).

    p is the position and D the head size.

    Args:
        head_size: Width of a head, even.
        theta: Base of the wavelengths.
        limit: Longest input.
        window: How far apart tokens may be that see each other; None for any distance.

    Reference:
        Su et al. 2021, arXiv:2104.09864, equation 34, with halves in place of neighbours.
    """

    def __init__(self, head_size: int, theta: float, limit: int, window: int | None = None) -> None:
        super().__init__()
        self.theta, self.window = theta, window
        rates = 1.0 / theta ** (torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
        angles = torch.outer(torch.arange(limit, dtype=torch.float32), rates)
        cos, sin = angles.cos(), angles.sin()
        # (limit, head_size); the first half of the channels turns towards the second
        self.cos = nn.Buffer(torch.cat([cos, cos], dim=-1), persistent=False)
        self.sin = nn.Buffer(torch.cat([-sin, sin], dim=-1), persistent=False)

    @property
    def local(self) -> bool:
        """Whether there is a window."""
        return self.window is not None

    def rotated(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Turn queries and keys; see `ScoreTerms.rotated`."""
        return self._turned(q), self._turned(k)

    def bias(self, q: Tensor, k: Tensor) -> Tensor | None:
        """Hide what lies outside the window; see `ScoreTerms.bias`."""
        if self.window is None:
            return None
        first, second = (torch.arange(x.shape[-2], device=x.device) for x in (q, k))
        hidden = (first[:, None] - second).abs() > self.window
        # half of the lowest, as padding has: both together stay finite
        return (hidden.to(q.dtype) * (torch.finfo(q.dtype).min / 2))[None, None]

    def _turned(self, x: Tensor) -> Tensor:
        # x: (batch, heads, tokens, head_size)
        cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        return (x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin).to(x.dtype)
