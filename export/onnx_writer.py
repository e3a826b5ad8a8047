"""Collecting the nodes and weights of an ONNX graph, in the operators that ONNX Runtime runs."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from tcompress.compress.static_inputs import StaticInput

from .onnx_int8 import quantize_rows, quantize_weight

CONTRIB = "com.microsoft"
_U8_STEPS = 255
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Quantized:
    """Activations in u8: `scale * (values - zero_point)` is about what was quantized.

    Attributes:
        values: Name of the u8 tensor.
        scale: Name of its scale.
        zero_point: Name of its zero point.
        divisors: What the channels were divided by, and weights that read them have to be
            multiplied by, `(channels,)`; None for nothing.
    """

    values: str
    scale: str
    zero_point: str
    divisors: Tensor | None = None


class GraphWriter:
    """Collects nodes and weights; names them by where they belong.

    Args:
        reduce_range: Whether int8 weights use 7 bits, for CPUs whose int8 products saturate.
    """

    def __init__(self, *, reduce_range: bool = False) -> None:
        self.reduce_range = reduce_range
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self._scope = ""
        self._names: Counter[str] = Counter()
        self._shared: dict[str, str] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Put the nodes and weights of a block below a name.

        Args:
            name: The name, below that of the block around.

        Yields:
            Nothing.
        """
        outer, self._scope = self._scope, f"{self._scope}{name}."
        try:
            yield
        finally:
            self._scope = outer

    def shared(self, name: str, write: Callable[[], str]) -> str:
        """Add what several layers read, once per graph.

        Args:
            name: Its name, below no other; what is different has another one.
            write: Adds it.

        Returns:
            What `write` returned the first time.
        """
        if name not in self._shared:
            outer, self._scope = self._scope, f"{name}."
            try:
                self._shared[name] = write()
            finally:
                self._scope = outer
        return self._shared[name]

    def weight(self, name: str, value: Tensor | Array | Sequence[Any]) -> str:
        """Add a constant, once per name.

        Args:
            name: Its name below the scope.
            value: Its value.

        Returns:
            Its full name.
        """
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        full = f"{self._scope}{name}"
        if full not in self.weights:
            self.weights[full] = numpy_helper.from_array(np.array(array, order="C"), full)
        return full

    def node(self, op: str, *inputs: str, domain: str = "", outputs: int = 1, **attrs: Any) -> str:
        """Add an operator.

        Args:
            op: Its type.
            inputs: Names of its inputs; empty for one that is left out.
            domain: Its domain; empty for standard ONNX.
            outputs: How many outputs it has.
            attrs: Its attributes.

        Returns:
            Name of its first output; output i > 0 is that name with `:i` behind it.
        """
        name = f"{self._scope}{op}"
        self._names[name] += 1
        if self._names[name] > 1:
            name = f"{name}_{self._names[name]}"
        names = [name, *(f"{name}:{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(op, inputs, names, name=name, domain=domain, **attrs))
        return name

    def cast(self, x: str, kind: int) -> str:
        """Add a conversion to another type of number.

        Args:
            x: What to convert.
            kind: A value of `TensorProto.DataType`.
        """
        return self.node("Cast", x, to=kind)

    def quantized(self, x: str, name: str, static: StaticInput | None = None) -> Quantized:
        """Add the quantization of activations to u8.

        Args:
            x: Any float tensor.
            name: Its name below the scope.
            static: How; None for steps over the range that it has in each call.
        """
        with self.scope(name):
            if static is None:
                values = self.node("DynamicQuantizeLinear", x, outputs=3)
                return Quantized(values, f"{values}:1", f"{values}:2")
            if static.divisors is not None:
                x = self.node("Mul", x, self.weight("factors", 1 / static.divisors))
            low, high = static.bounds
            step = (high - low) / _U8_STEPS
            scale = self.weight("scale", np.array(step, np.float32))
            zero_point = self.weight("zero_point", np.array(round(-low / step), np.uint8))
            values = self.node("QuantizeLinear", x, scale, zero_point)
            return Quantized(values, scale, zero_point, static.divisors)

    def linear(
        self, x: str | Quantized, name: str, linear: nn.Linear, *, half: bool = False
    ) -> str:
        """Add a linear layer.

        In int8 the runtime folds the quantization of `x` into the product where nothing else
        reads it; one that several products share is done once.

        Args:
            x: Its input, `(..., in)`; quantized for an int8 product.
            name: Its name below the scope.
            linear: The layer.
            half: Whether its input, weights and output are fp16.

        Returns:
            Its output, `(..., out)`.
        """
        with self.scope(name):
            kind = np.float16 if half else np.float32
            bias = "" if linear.bias is None else self.weight("bias", _as(linear.bias, kind))
            if isinstance(x, Quantized):
                matrix = linear.weight if x.divisors is None else linear.weight * x.divisors
                weight, scale = quantize_weight(matrix, reduce_range=self.reduce_range)
                b, s = self.weight("weight_int8", weight), self.weight("weight_scale", scale)
                inputs = (x.values, b, x.scale, s, x.zero_point, "", bias)
                return self.node("MatMulIntegerToFloat", *inputs, domain=CONTRIB)
            product = self.node("MatMul", x, self.weight("weight", _as(linear.weight.t(), kind)))
            return self.node("Add", product, bias) if bias else product

    def rows(self, name: str, table: Tensor, indices: str, *, int8: bool) -> str:
        """Add a lookup of rows in a table.

        Args:
            name: Name of the table below the scope.
            table: `(rows, hidden)`.
            indices: Name of the row numbers, any shape.
            int8: Whether the table is stored in int8, with one scale per row.

        Returns:
            `(*indices, hidden)`, in fp32.
        """
        with self.scope(name):
            if not int8:
                return self.node("Gather", self.weight("weight", table), indices)
            values, scale = quantize_rows(table)
            looked_up = self.node("Gather", self.weight("weight_int8", values), indices)
            scales = self.node("Gather", self.weight("row_scale", scale[:, None]), indices)
            return self.node("Mul", self.cast(looked_up, TensorProto.FLOAT), scales)

    def layer_norm(self, x: str, name: str, norm: nn.LayerNorm | None) -> str:
        """Add a layer norm.

        Args:
            x: Its input.
            name: Its name below the scope.
            norm: The norm; None for none.
        """
        if norm is None:
            return x
        bias = np.zeros(norm.normalized_shape, np.float32) if norm.bias is None else norm.bias
        with self.scope(name):
            inputs = (x, self.weight("weight", norm.weight), self.weight("bias", bias))
            return self.node("LayerNormalization", *inputs, axis=-1, epsilon=norm.eps)

    def added(self, x: str, skip: str, name: str, norm: nn.LayerNorm | None) -> tuple[str, str]:
        """Add a residual sum and its layer norm.

        Two operators: the runtime's fused SkipLayerNormalization takes three times as long on a
        CPU as the sum and the norm one after the other (ONNX Runtime 1.31).

        Args:
            x: One summand.
            skip: The other.
            name: Name of the norm below the scope.
            norm: The norm; None for none.

        Returns:
            The normed sum, and the sum itself.
        """
        total = self.node("Add", x, skip)
        return self.layer_norm(total, name, norm), total


def _as(tensor: Tensor, kind: Any) -> Array:
    array: Array = tensor.detach().cpu().numpy().astype(kind)
    return array
