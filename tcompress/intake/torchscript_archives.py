"""TorchScript files, looked at before PyTorch opens them.

They hold code in a language of PyTorch's own, which can read and write files. Only what computes
may stand in it, so that a file needs no trust: there is no option to open one that is refused.
"""

import ast
import re
import reprlib
from pathlib import Path

from ..errors import ArtifactError
from .pickle_opcodes import OBJECT_OPCODES, TENSOR_GLOBALS, check_pickle, check_storages
from .torch_operators import check_operator, is_operator
from .torch_zips import TorchZip, opened_zip

_MAX_CODE_BYTES = 8 << 20
_MEMBER = re.compile(
    r"(data|constants)(\.pkl|/[0-9]{1,9})|code/__torch__(/\w+)*(/\w+)?\.py(\.debug_pkl)?"
    r"|code/__torch__\.py(\.debug_pkl)?|(\.data/)?version|byteorder|\.data/serialization_id",
    re.ASCII,
)
_GLOBALS = TENSOR_GLOBALS | {
    "torch._utils _rebuild_qtensor",
    "torch per_channel_affine",
    "torch per_tensor_affine",
    *(f"torch.jit._pickle build_{kind}list" for kind in ("int", "bool", "double", "tensor")),
}
_CLASS = re.compile(r"__torch__(\.\w+)* \w+", re.ASCII)
_NATIVE_CLASSES = "__torch__.torch.classes."
_NATIVE_CLASS = f"{_NATIVE_CLASSES}quantized LinearPackedParamsBase"
_REFUSED_NAMES = {"fork", "awaitable", "print", "getattr", "hasattr", "__import__"}
# What Python and TorchScript do not read alike could hide code from this check.
_AMBIGUOUS = ("\\", "#", '"""', "'''", "`", "\f", "\v", "\0", "\r")


def check_torchscript(path: Path) -> None:
    """Raise unless a file is TorchScript that only computes, on the CPU.

    Args:
        path: A regular file.

    Raises:
        ArtifactError: If it is not.
    """
    try:
        with opened_zip(path, packed=True) as archive:
            _check_archive(archive)
    except (ValueError, RecursionError, MemoryError) as fault:
        msg = f"{path}: not TorchScript that only computes: {fault}; export the model again"
        raise ArtifactError(msg) from fault


def _check_archive(archive: TorchZip) -> None:
    for name in archive.members:
        if _MEMBER.fullmatch(name) is None:
            msg = f"{reprlib.repr(name)} is in it, which tcompress does not write"
            raise ValueError(msg)
    for kind in ("data", "constants"):
        storages = check_pickle(archive.read(f"{kind}.pkl"), _allows, OBJECT_OPCODES)
        check_storages(storages, archive.members, kind)
        for storage in storages:
            if storage.location != "cpu":
                msg = f"it has weights for the device {reprlib.repr(storage.location)}"
                raise ValueError(msg)
    for name in archive.members:
        if name.endswith(".py"):
            _check_code(archive.read(name, _MAX_CODE_BYTES))
        elif name.endswith(".debug_pkl"):
            check_pickle(archive.read(name, _MAX_CODE_BYTES), _allows)


def _allows(name: str) -> bool:
    if name in _GLOBALS or name == _NATIVE_CLASS:
        return True
    return _CLASS.fullmatch(name) is not None and not name.startswith(_NATIVE_CLASSES)


def _check_code(raw: bytes) -> None:
    """Raise unless all that code names computes.

    A variable may stand for a module of operators, so every name counts, wherever it stands.
    """
    source = raw.decode("ascii")
    if sign := next((sign for sign in _AMBIGUOUS if sign in source), None):
        msg = f"its code has {sign!r} in it"
        raise ValueError(msg)
    try:
        tree = ast.parse(source)
    except SyntaxError as fault:
        msg = f"its code cannot be read: {fault.msg} in line {fault.lineno}"
        raise ValueError(msg) from fault
    whole = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            _check_name(node.id)
        elif isinstance(node, ast.Attribute):
            whole += _check_attribute(node)
    if whole != sum(isinstance(n, ast.Name) and n.id == "ops" for n in ast.walk(tree)):
        msg = "its code takes a whole module of operators"
        raise ValueError(msg)


def _check_name(name: str) -> None:
    if name in _REFUSED_NAMES:
        msg = f"its code calls {name}"
        raise ValueError(msg)


def _check_attribute(node: ast.Attribute) -> bool:
    """Check what stands behind a dot; returns whether it names an operator by its namespace."""
    match node:
        case ast.Attribute(ast.Attribute(ast.Name("ops"), namespace), name):
            check_operator(namespace, name)
            return True
        case ast.Attribute(ast.Name("torch"), name):
            check_operator("aten", name)
        case ast.Attribute(_, name) if is_operator(name):
            check_operator("aten", name)
    return False
