"""Which of PyTorch's operators an exported file may call: those that compute, and no others.

Operators that write files, map them into memory, print, wait for other processes or take apart
objects are recognised by what they take: a name, a handle. What takes and gives tensors, numbers
and collections of them computes.
"""

import re
import reprlib
from functools import cache
from typing import Any

_VALUES = {
    *("Tensor", "int", "float", "bool", "number", "complex", "Device", "Generator", "QScheme"),
    *("str", "t", "t1", "t2", "tVal", "Any", "AnyEnumType", "NoneType"),
    *("Optional", "List", "Tuple", "Dict"),
}
# The text that these take names a way to compute, is a key, or is compared.
_WORDED = {
    *("__contains__", "__getitem__", "_set_item", "add", "eq", "ne", "lt", "le", "gt", "ge"),
    *("Delete", "count", "dict", "get", "index", "keys", "len", "list", "pop", "popitem"),
    *("remove", "setdefault", "sort", "sorted"),
    *("_assert_async", "_assert_scalar", "_functional_assert_async", "_functional_assert_scalar"),
    *("__interpolate", "_convolution_mode", "conv1d", "conv2d", "conv3d", "pad"),
    *("device", "div", "div_", "divide", "divide_", "einsum", "gelu", "gelu_", "mul", "select"),
    *("index_reduce", "index_reduce_", "scatter", "scatter_", "scatter_reduce", "scatter_reduce_"),
    *("linalg_norm", "linalg_matrix_norm", "meshgrid", "norm", "searchsorted", "slice", "split"),
    *("Float", "Int", "quantize_per_channel", "tensor", "to"),
}
_LISTED = {
    "quantized": {"linear_dynamic", "linear_relu_dynamic"},
    "prim": {
        *("NumToTensor", "RaiseException", "TupleUnpack", "abs", "data", "device", "dtype"),
        *("layout", "max", "min", "unchecked_unwrap_optional"),
    },
}
_WORD = re.compile(r"[\w.]+")


def check_operator(namespace: str, name: str) -> None:
    """Raise unless an operator is one that computes.

    Args:
        namespace: Where it stands, as `aten`.
        name: Its name there.

    Raises:
        ValueError: If it is not, or is not known.
    """
    if namespace in _LISTED:
        allowed = name in _LISTED[namespace]
    else:
        allowed = namespace in ("aten", "prims") and _computes(namespace, name)
    if not allowed:
        msg = f"it calls {reprlib.repr(f'{namespace}::{name}')}, which is not for computing"
        raise ValueError(msg)


def is_operator(name: str) -> bool:
    """Tell whether a name means an operator of PyTorch's own.

    Args:
        name: The name, without a namespace.
    """
    return bool(_schemas("aten", name))


@cache
def _computes(namespace: str, name: str) -> bool:
    schemas = _schemas(namespace, name)
    return bool(schemas) and all(_takes_values(schema, name) for schema in schemas)


def _takes_values(schema: Any, name: str) -> bool:
    types = [str(item.type) for item in (*schema.arguments, *schema.returns)]
    words = {word for text in types for word in _WORD.findall(text)}
    named = any(str(item.type) in ("str", "Optional[str]") for item in schema.arguments)
    return words <= _VALUES and (not named or name in _WORDED)


@cache
def _schemas(namespace: str, name: str) -> tuple[Any, ...]:
    import torch

    found: tuple[Any, ...] = tuple(torch._C._jit_get_schemas_for_operator(f"{namespace}::{name}"))
    return found
