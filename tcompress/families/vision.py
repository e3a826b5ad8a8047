"""Transformers over the patches of an image or a spectrogram: ViT, DeiT, AST."""

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..anatomy import Anatomy, EmbeddingAnatomy, HeadAnatomy, HeadStage, LayerAnatomy
from ..transformer import Pooling
from .base import Family, activation_named, expect
from .bert import LayerPaths

_PATHS_5 = LayerPaths(
    attention="attention",
    query="attention.q_proj",
    key="attention.k_proj",
    value="attention.v_proj",
    output="attention.o_proj",
    ffn_in="mlp.fc1",
    ffn_out="mlp.fc2",
    attention_norm="layernorm_before",
    ffn_norm="layernorm_after",
)
_PATHS_4 = replace(
    LayerPaths(),
    attention="attention.attention",
    query="attention.attention.query",
    key="attention.attention.key",
    value="attention.attention.value",
    attention_norm="layernorm_before",
    ffn_norm="layernorm_after",
)
_HEADS = ("cls_classifier", "distillation_classifier")
_STACK_5, _STACK_4 = "layers", "encoder.layer"
_LINEARS = ("query", "key", "value", "output", "ffn_in", "ffn_out")


class Vit(Family):
    """The Vision Transformer.

    Attributes:
        input_name: Name of the model's input.
        prefix: Names of the tokens before the patches.
    """

    model_types = ("vit",)
    base = "vit"
    classifier = "AutoModelForImageClassification"
    input_name = "pixel_values"
    prefix: tuple[str, ...] = ("cls_token",)

    def translated(self, model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give weights the names of this line of transformers; see `Family.translated`.

        The token that stands for hidden patches in pretraining is left out.
        """
        is_5 = _is_5(self.encoder_of(model))
        stack = _STACK_5 if is_5 else _STACK_4
        source, target = (_PATHS_4, _PATHS_5) if is_5 else (_PATHS_5, _PATHS_4)
        paths = {getattr(source, name): getattr(target, name) for name in _LINEARS}
        pattern = re.compile(
            rf"(.*?)(?:{re.escape(_STACK_5)}|{re.escape(_STACK_4)})\.(\d+)\.(.+)\.(weight|bias)"
        )

        def renamed(name: str) -> str:
            if (found := pattern.fullmatch(name)) is None:
                return name
            before, index, path, kind = found.groups()
            return f"{before}{stack}.{index}.{paths.get(path, path)}.{kind}"

        return {
            renamed(name): value for name, value in state.items() if not name.endswith("mask_token")
        }

    def anatomy(self, model: nn.Module, config: Any) -> Anatomy:
        """Find the pieces of a model; see `Family.anatomy`."""
        encoder = self.encoder_of(model)
        return Anatomy(
            family=config.model_type,
            embedding=self._embedding(encoder, config),
            layers=_layers(encoder, config),
            final_norm=expect(encoder.get_submodule("layernorm"), nn.LayerNorm),
            head=self._head(model),
        )

    def input_shape(self, config: Any) -> tuple[int, ...]:
        """Return the shape of one input.

        Args:
            config: The model's configuration.
        """
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(config.num_channels), int(height), int(width)

    def _embedding(self, encoder: nn.Module, config: Any) -> EmbeddingAnatomy:
        parts = encoder.get_submodule("embeddings")
        return EmbeddingAnatomy(
            input_name=self.input_name,
            tokens=expect(parts.get_submodule("patch_embeddings.projection"), nn.Conv2d),
            positions=parts.get_parameter("position_embeddings"),
            prefix=tuple(parts.get_parameter(name) for name in self.prefix),
            input_shape=self.input_shape(config),
        )

    def _head(self, model: nn.Module) -> HeadAnatomy:
        if not hasattr(model, "classifier"):
            return HeadAnatomy(Pooling.NONE, ())
        linear = expect(model.get_submodule("classifier"), nn.Linear)
        return HeadAnatomy(Pooling.FIRST, (HeadStage(linear),))


class Deit(Vit):
    """DeiT: a second token learned from a teacher.

    Classifiers with a teacher answer with the mean of two linear heads, one on each of the first
    tokens: W_0 x_0 / 2 + W_1 x_1 / 2 is one linear layer on both side by side.
    """

    model_types = ("deit",)
    base = "deit"
    prefix = ("cls_token", "distillation_token")

    def prepare_(self, model: nn.Module) -> None:
        """Join the two heads; see `Family.prepare_`."""
        if not hasattr(model, _HEADS[0]):
            return
        linear = expect(model.get_submodule(_HEADS[0]), nn.Linear)
        joined = nn.Linear(2 * linear.in_features, linear.out_features)
        model.add_module("classifier", joined)
        for part, name in enumerate(_HEADS):
            setattr(model, name, HalfHead(joined, part))

    def translated(self, model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Join the weights of two heads; see `Vit.translated`."""
        state = super().translated(model, state)
        if f"{_HEADS[0]}.weight" not in state:
            return state
        weights, biases = (
            [state.pop(f"{name}.{kind}") for name in _HEADS] for kind in ("weight", "bias")
        )
        joined = torch.cat(weights, 1) / 2
        bias = torch.stack(biases).mean(0)
        return state | {"classifier.weight": joined, "classifier.bias": bias}

    def _head(self, model: nn.Module) -> HeadAnatomy:
        head = super()._head(model)
        return replace(head, pooling=Pooling.FIRST_PAIR) if hasattr(model, _HEADS[0]) else head


class HalfHead(nn.Module):
    """One of two heads whose mean is a linear layer on two tokens side by side.

    Args:
        joined: That layer; its parameters are not this module's.
        part: 0 for the first token, 1 for the second.
    """

    def __init__(self, joined: nn.Linear, part: int) -> None:
        super().__init__()
        self._joined = (joined,)
        self._part = part

    def forward(self, x: Tensor) -> Tensor:
        """Answer.

        Args:
            x: `(batch, hidden)`.

        Returns:
            `(batch, labels)`.
        """
        weight, bias = self._joined[0].weight, self._joined[0].bias
        return functional.linear(x, 2 * weight.chunk(2, 1)[self._part], bias)


class AudioSpectrogram(Vit):
    """The Audio Spectrogram Transformer, whose head reads the mean of both first tokens."""

    model_types = ("audio-spectrogram-transformer",)
    base = "audio_spectrogram_transformer"
    classifier = "AutoModelForAudioClassification"
    input_name = "input_values"
    prefix = ("cls_token", "distillation_token")

    def input_shape(self, config: Any) -> tuple[int, ...]:
        """Return the shape of one spectrogram, frames first; see `Vit.input_shape`."""
        return int(config.max_length), int(config.num_mel_bins)

    def _head(self, model: nn.Module) -> HeadAnatomy:
        if not hasattr(model, "classifier"):
            return HeadAnatomy(Pooling.NONE, ())
        linear = expect(model.get_submodule("classifier.dense"), nn.Linear)
        norm = expect(model.get_submodule("classifier.layernorm"), nn.LayerNorm)
        return HeadAnatomy(Pooling.FIRST_TWO, (HeadStage(linear),), norm=norm)


VISION: tuple[Family, ...] = (Vit(), Deit(), AudioSpectrogram())


def _is_5(encoder: nn.Module) -> bool:
    """Tell whether a model is built as transformers 5 builds it."""
    return hasattr(encoder, _STACK_5)


def _layers(encoder: nn.Module, config: Any) -> tuple[LayerAnatomy, ...]:
    stack, paths = (_STACK_5, _PATHS_5) if _is_5(encoder) else (_STACK_4, _PATHS_4)
    head_size = int(config.hidden_size) // int(config.num_attention_heads)
    activation = activation_named(config.hidden_act)
    return tuple(
        paths.layer(index, layer, head_size, activation, norm_first=True)
        for index, layer in enumerate(encoder.get_submodule(stack).children())
    )
