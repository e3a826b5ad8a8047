"""ONNX operators that turn images and spectrograms into tokens."""

from typing import cast

import numpy as np
from torch import Tensor, nn

from tcompress.plain import PlainEmbedding

from .onnx_writer import GraphWriter


def patches(writer: GraphWriter, module: PlainEmbedding, main: str) -> str:
    """Write the tokens of an image or a spectrogram, `(batch, tokens, hidden)`.

    Positions are added here: those of the tokens that stand before the patches are constants.

    Args:
        writer: Collects the operators.
        module: The input side, whose tokens are a convolution.
        main: Name of the input, `(batch, *input_shape)`.
    """
    prefix = cast("Tensor", module.prefix)[0]
    before, positions = cast("Tensor", module.positions).split(
        [len(prefix), cast("int", module.fixed_tokens) - len(prefix)]
    )
    found = writer.node("Add", _convolved(writer, module, main), writer.weight("pos", positions))
    one = writer.weight("one", np.array([1]))
    start, stop = (writer.weight(f"index_{i}", np.array([i])) for i in (0, 1))
    size = writer.node("Slice", writer.node("Shape", main), start, stop)
    constant = writer.weight("prefix", (prefix + before)[None])
    prefixed = writer.node("Expand", constant, writer.node("Concat", size, one, one, axis=0))
    return writer.node("Concat", prefixed, found, axis=1)


def _convolved(writer: GraphWriter, module: PlainEmbedding, main: str) -> str:
    """Return the patches, `(batch, patches, hidden)`."""
    convolution = cast("nn.Conv2d", module.tokens)
    if len(module.input_shape) == 2:
        main = writer.node("Transpose", main, perm=[0, 2, 1])
        main = writer.node("Unsqueeze", main, writer.weight("channel_axis", np.array([1])))
    with writer.scope("tokens"):
        weights = [writer.weight("weight", convolution.weight)]
        if convolution.bias is not None:
            weights.append(writer.weight("bias", convolution.bias))
        # (batch, hidden, rows, columns)
        x = writer.node("Conv", main, *weights, strides=list(convolution.stride))
        shape = writer.weight("shape", np.array([0, convolution.out_channels, -1]))
        return writer.node("Transpose", writer.node("Reshape", x, shape), perm=[0, 2, 1])
