"""torch.export programs, looked at before PyTorch opens them.

Their reader trusts them: it unpickles what says so, evaluates sizes as Python, runs conditions on
inputs as Python, finds functions by any dotted name below `torch`, and loads compiled libraries.
Only what computes may stand in them, so that a file needs no trust: there is no option to open one
that is refused.
"""

import ast
import re
import reprlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ArtifactError
from .json_documents import parse_json
from .pickle_opcodes import TENSOR_GLOBALS, check_pickle, check_storages
from .torch_operators import check_operator
from .torch_zips import TorchZip, opened_zip

_MODEL = "models/model.json"
_WEIGHTS = ("data/weights", "model_weights_config.json")
_CONSTANTS = ("data/constants", "model_constants_config.json")
_SAMPLES = "data/sample_inputs/model.pt"
_MEMBER = re.compile(
    r"data/weights/(weight_[0-9]{1,9}|model_weights_config\.json)"
    r"|data/constants/(tensor_[0-9]{1,9}|model_constants_config\.json)"
    r"|models/model\.json|data/sample_inputs/model\.pt|archive_format|archive_version"
    r"|(\.data/)?version|byteorder|\.data/serialization_id",
    re.ASCII,
)
_PAYLOAD = re.compile(r"(weight|tensor)_[0-9]{1,9}", re.ASCII)
_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)(\.\w+)?", re.ASCII)
_HIGHER_ORDER = {"cond", "wrap_with_autocast", "wrap_with_set_grad_enabled"}
_PYTHON_OPERATORS = re.compile(
    r"_operator\.(add|sub|mul|truediv|floordiv|mod|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.sym_(max|min|not|int|float|ite|sqrt|sum)"
)
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_WORD = re.compile(r"[\w.+-]{1,40}", re.ASCII)
_DOTTED = re.compile(r"[\w.]*", re.ASCII)
_NAMES_ONLY = re.compile(r"\[(\"\w+\"(, \"\w+\")*)?\]", re.ASCII)
_NODES = (
    *(ast.Expression, ast.Load, ast.Call, ast.keyword, ast.Name, ast.Constant, ast.UnaryOp),
    *(ast.BinOp, ast.BoolOp, ast.Compare, ast.Attribute, ast.Subscript),
    *(ast.USub, ast.Not, ast.And, ast.Or, ast.cmpop),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod),
)
_SIZE_NAMES = {
    *("Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Mod", "Min", "Max", "Abs"),
    *("FloorDiv", "CleanDiv", "CeilDiv", "PythonMod", "ModularIndexing", "IntTrueDiv", "ToFloat"),
    *("TruncToInt", "CeilToInt", "FloorToInt", "Where", "Piecewise", "Identity", "Not", "And"),
    *("Or", "Equality", "Unequality", "LessThan", "StrictLessThan", "GreaterThan"),
    *("StrictGreaterThan", "Eq", "Ne", "Le", "Lt", "Ge", "Gt", "true", "false"),
}
_GUARD_NAMES = {"L", "max", "min", "math", "FloorDiv", "Mod", "PythonMod", "Max", "Min", "abs"}
_GUARD_ATTRIBUTES = {"size", "stride", "storage_offset", "dim", "ceil", "floor", "trunc"}
_LARGEST = 1 << 63
_MAX_POWER, _MAX_POWERS = 8, 4
_MAX_EXPRESSION = 2_000
_CONTAINERS = {"builtins.tuple", "builtins.list", "builtins.dict", None}


def check_program(path: Path) -> None:
    """Raise unless a file is a torch.export program that only computes, on the CPU.

    Args:
        path: A regular file.

    Raises:
        ArtifactError: If it is not.
    """
    try:
        with opened_zip(path) as archive:
            _check_archive(archive)
    except (ValueError, TypeError, AttributeError, RecursionError, MemoryError) as fault:
        msg = f"{path}: not a program that only computes: {fault}; export the model again"
        raise ArtifactError(msg) from fault


def _check_archive(archive: TorchZip) -> None:
    for name in archive.members:
        if _MEMBER.fullmatch(name) is None:
            msg = f"{reprlib.repr(name)} is in it, which tcompress does not write"
            raise ValueError(msg)
    for folder, listing in (_WEIGHTS, _CONSTANTS):
        _check_payloads(archive, folder, _document(archive, f"{folder}/{listing}"))
    with opened_zip(archive.read(_SAMPLES)) as samples:
        storages = check_pickle(samples.read("data.pkl"), TENSOR_GLOBALS.__contains__)
        check_storages(storages, samples.members, "data")
    document = _document(archive, _MODEL)
    for key, value in _entries(document):
        if (check := _CHECKS.get(key)) is not None:
            check(value)


def _document(archive: TorchZip, name: str) -> dict[str, Any]:
    document: dict[str, Any] = _parsed_json(archive.read(name), name, dict)
    return document


def _parsed_json(raw: bytes, origin: str, expected: type) -> Any:
    try:
        return parse_json(raw, origin, error=ArtifactError, expected=expected)
    except ArtifactError as fault:
        raise ValueError(str(fault)) from fault


def _check_payloads(archive: TorchZip, folder: str, document: dict[str, Any]) -> None:
    """Check what a listing says of the files beside it."""
    config = document.get("config")
    if not isinstance(config, dict):
        msg = f"{folder} is not listed"
        raise ValueError(msg)
    for name, entry in config.items():
        _check_dotted(name)
        place = str(entry.get("path_name")) if isinstance(entry, dict) else ""
        member = archive.members.get(f"{folder}/{place}")
        if _PAYLOAD.fullmatch(place) is None or member is None or entry.get("use_pickle"):
            msg = f"{reprlib.repr(name)} is a pickle, or not in it"
            raise ValueError(msg)
        meta = entry.get("tensor_meta") or {}
        sizes = [size.get("as_int") for size in meta.get("sizes", ())]
        if member.file_size == 0 and 0 not in sizes:  # it would be made of zeros
            msg = f"{reprlib.repr(name)} has the sizes {sizes}, but no bytes"
            raise ValueError(msg)
        _check_device(meta.get("device"))


def _entries(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, at all depths."""
    waiting = [document]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield from found.items()
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found


def _check_target(value: Any) -> None:
    if not isinstance(value, str):  # a tensor that goes by this name
        return
    match = _OPERATOR.fullmatch(value)
    if match is None:
        if _PYTHON_OPERATORS.fullmatch(value) is None:
            msg = f"it calls {reprlib.repr(value)}, which is not for computing"
            raise ValueError(msg)
    elif not (match[1] == "higher_order" and match[2] in _HIGHER_ORDER):
        check_operator(match[1], match[2])


def _check_size(value: Any) -> None:
    """Raise unless a size is made of numbers, symbols and what computes with them."""
    nodes = _parsed(value)
    if sum(isinstance(node, ast.Name) and node.id == "Pow" for node in nodes) > _MAX_POWERS:
        _refuse_expression(value)
    for node in nodes:
        match node:
            case ast.Name(name) if name not in _SIZE_NAMES:
                _refuse_expression(value)
            case ast.Constant(str(text)) if _WORD.fullmatch(text) is None:
                _refuse_expression(value)
            case ast.Call(ast.Name("Pow"), arguments) if not _is_small_power(arguments):
                _refuse_expression(value)
            case ast.Attribute() | ast.Subscript() | ast.BinOp():
                _refuse_expression(value)


def _is_small_power(arguments: list[ast.expr]) -> bool:
    match arguments:
        case [_, ast.Call(ast.Name("Integer"), [power])]:
            try:
                return abs(int(ast.literal_eval(power))) <= _MAX_POWER
            except (ValueError, TypeError):
                return False
    return False


def _check_guards(value: Any) -> None:
    """Raise unless conditions only compare sizes of inputs."""
    for guard in value if isinstance(value, list) else [value]:
        for node in _parsed(guard):
            match node:
                case ast.Name(name) if name not in _GUARD_NAMES:
                    _refuse_expression(guard)
                case ast.Attribute(_, name) if name not in _GUARD_ATTRIBUTES:
                    _refuse_expression(guard)
                case ast.Constant(str(text)):
                    _check_name(text)


def _parsed(expression: Any) -> list[ast.AST]:
    """Return the nodes of an expression, which are of harmless kinds."""
    if not isinstance(expression, str) or len(expression) > _MAX_EXPRESSION:
        _refuse_expression(expression)
    try:
        nodes = list(ast.walk(ast.parse(expression, mode="eval")))
    except SyntaxError as fault:
        msg = f"it computes with {reprlib.repr(expression)}, which cannot be read"
        raise ValueError(msg) from fault
    for node in nodes:
        large = isinstance(node, ast.Constant) and (
            not isinstance(node.value, int | float | str)
            or (not isinstance(node.value, str) and not abs(node.value) <= _LARGEST)
        )
        if not isinstance(node, _NODES) or large:
            _refuse_expression(expression)
    return nodes


def _refuse_expression(expression: Any) -> NoReturn:
    msg = f"it evaluates {reprlib.repr(expression)}, which is not for computing sizes"
    raise ValueError(msg)


def _check_name(value: Any) -> None:
    """Names end up in Python code that PyTorch writes."""
    if isinstance(value, str) and _NAME.fullmatch(value) is None:
        msg = f"it has the name {reprlib.repr(value)}"
        raise ValueError(msg)


def _check_dotted(value: Any) -> None:
    if isinstance(value, str) and _DOTTED.fullmatch(value) is None:
        msg = f"it has the name {reprlib.repr(value)}"
        raise ValueError(msg)


def _check_names(value: Any) -> None:
    for name in value if isinstance(value, list | dict) else ():
        _check_name(name)


def _check_structure(value: Any) -> None:
    """Raise unless inputs or outputs are nested in plain containers: others are imported."""
    if not isinstance(value, str):
        return
    document = _parsed_json(value.encode(), "the form of its inputs", list)
    for key, found in _entries(document):
        plain = (
            found in _CONTAINERS
            if key == "type"
            else found in (None, "null") or _NAMES_ONLY.fullmatch(str(found)) is not None
        )
        if key in ("type", "context") and not plain:
            msg = f"its inputs or outputs are of the type {reprlib.repr(found)}"
            raise ValueError(msg)


def _check_device(value: Any) -> None:
    if isinstance(value, dict) and value.get("type", "cpu") != "cpu":
        msg = f"it has tensors for the device {reprlib.repr(value['type'])}"
        raise ValueError(msg)


def _check_nothing(value: Any) -> None:
    if value:
        msg = f"it holds an object of a class of its own: {reprlib.repr(value)}"
        raise ValueError(msg)


_CHECKS: dict[str, Callable[[Any], None]] = {
    **dict.fromkeys(("target", "as_operator"), _check_target),
    "expr_str": _check_size,
    "guards_code": _check_guards,
    **dict.fromkeys(("range_constraints", "forward_arg_names", "tensor_values"), _check_names),
    **dict.fromkeys(("sym_int_values", "sym_bool_values", "sym_float_values"), _check_names),
    **dict.fromkeys(("name", "as_name", "user_input_name"), _check_name),
    **dict.fromkeys(("parameter_name", "buffer_name", "tensor_constant_name"), _check_dotted),
    **dict.fromkeys(("fqn", "target_name"), _check_dotted),
    **dict.fromkeys(("in_spec", "out_spec"), _check_structure),
    **dict.fromkeys(("device", "as_device"), _check_device),
    **dict.fromkeys(("as_custom_obj", "custom_obj_values", "custom_obj"), _check_nothing),
    **dict.fromkeys(("custom_obj_name", "class_fqn"), _check_nothing),
    "treespec_namedtuple_fields": _check_nothing,
}
"""What is checked of a value of the program, by its key."""
