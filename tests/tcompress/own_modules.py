"""Modules as users write them; none of them knows tcompress."""

import math

import torch
from torch import Tensor, nn

from tcompress.blueprint import Declared

WIDTH, HEADS, NEURONS, VOCABULARY, LONGEST = 32, 4, 48, 20, 40


class Tutorial(nn.Module):
    """The text classifier of many tutorials, in most of its forms."""

    labels = ("bad", "good")

    def __init__(
        self,
        *,
        norm_first: bool = True,
        batch_first: bool = False,
        activation: str = "gelu",
        bias: bool = True,
        positions: str = "sinusoidal",
        nested: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.batch_first, self.causal = batch_first, causal
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(LONGEST, WIDTH) if positions == "learned" else None
        if positions == "sinusoidal":
            steps = torch.arange(float(LONGEST))[:, None]
            rates = torch.exp(torch.arange(0, WIDTH, 2) * (-math.log(1e4) / WIDTH))
            table = torch.stack([(steps * rates).sin(), (steps * rates).cos()], -1)
            self.register_buffer("table", table.view(LONGEST, 1, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH,
            HEADS,
            NEURONS,
            activation={"relu": "relu", "gelu": "gelu", "silu": nn.functional.silu}[activation],
            batch_first=batch_first,
            norm_first=norm_first,
            bias=bias,
        )
        norm = nn.LayerNorm(WIDTH, bias=bias) if norm_first else None
        self.encoder = nn.TransformerEncoder(layer, 3, norm, enable_nested_tensor=nested)
        self.head = nn.Sequential(
            nn.Linear(WIDTH, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 2)
        )

    def forward(self, ids: Tensor, src_key_padding_mask: Tensor | None = None) -> Tensor:
        x = self.embedding(ids) * math.sqrt(WIDTH)
        if self.positions is not None:
            x = x + self.positions(torch.arange(ids.shape[1], device=ids.device))
        elif hasattr(self, "table"):
            x = x + self.table[: ids.shape[1]].transpose(0, 1)
        mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1) if self.causal else None
        x = self.encoder(
            x if self.batch_first else x.transpose(0, 1),
            mask=mask,
            src_key_padding_mask=src_key_padding_mask,
            is_causal=self.causal,
        )
        x = x if self.batch_first else x.transpose(0, 1)
        if src_key_padding_mask is None:
            return self.head(x.mean(1))
        real = (~src_key_padding_mask).unsqueeze(-1).to(x.dtype)
        return self.head((x * real).sum(1) / real.sum(1))


class FusedAttention(nn.Module):
    """Query, key and value in one matrix; the softmax by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, HEADS, width // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) / math.sqrt(width // HEADS)
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None, :] == 0, float("-inf"))
        mixed = scores.softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """A pre-norm layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = FusedAttention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, NEURONS), nn.GELU(), nn.Linear(NEURONS, WIDTH))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class Sensors(nn.Module):
    """Reads vectors; its attention is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(5, WIDTH)
        self.position = nn.Parameter(torch.randn(1, 24, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm, self.classifier = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.project(x) + self.position[:, : x.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        return self.classifier(self.norm(x)[:, 0])


class Unusual(Sensors):
    """A form that no search finds: one matrix is applied outside of its module."""

    anatomy = Declared(
        layers="blocks.{i}",
        heads=HEADS,
        query="attn.q",
        key="attn.k",
        value="attn.v",
        output="attn.o",
        ffn_in="mlp.0",
        ffn_out="mlp.2",
        activation="gelu",
        attention_norm="norm1",
        ffn_norm="norm2",
        norm_first=True,
        tokens="project",
        positions="position",
        final_norm="norm",
        head=("classifier",),
        pooling="first",
    )

    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks:
            block.attn = SquaredSoftmax()


class SquaredSoftmax(nn.Module):
    """Attention whose softmax nobody would recognise: exponentials over their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in (self.q, self.k, self.v)
        )
        weights = (q @ k.mT / math.sqrt(WIDTH // HEADS)).exp()
        if mask is not None:
            weights = weights * mask[:, None, None, :]
        mixed = weights / weights.sum(-1, keepdim=True) @ v
        return self.o(mixed.transpose(1, 2).flatten(2))


class Convolutions(nn.Module):
    """No transformer at all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu().mean(1))


def text() -> nn.Module:
    return Tutorial()


def causal() -> nn.Module:
    return Tutorial(causal=True, batch_first=True)


def shared() -> nn.Module:
    """One layer, applied three times."""
    module = Sensors()
    module.blocks = nn.ModuleList([module.blocks[0]] * 3)
    return module


def sensors() -> nn.Module:
    return Sensors()


def unusual() -> nn.Module:
    return Unusual()
