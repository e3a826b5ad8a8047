"""The code of users' own modules, told apart by its source files: nothing of it is run here.

What is installed, the standard library and tcompress are told apart by their versions.
"""

import ast
import sys
import warnings
from collections.abc import Iterator
from importlib import util
from importlib.machinery import ModuleSpec
from pathlib import Path

from .digests import document_digest, file_digest

_INSTALLED = ("site-packages", "dist-packages")
_NOT_OWN = {*sys.stdlib_module_names, __name__.partition(".")[0]}


def source_digest(module: str) -> str | None:
    """Return a digest of a module's source and of all of the user's that it imports.

    Args:
        module: Its name; packages above it are imported, as to import it would.

    Returns:
        The digest; None where no file of the module is found.
    """
    first = _file_of(_found(module))
    files: dict[str, Path] = {} if first is None else {module: first}
    waiting = list(files)
    while waiting:
        name = waiting.pop()
        for imported in _imports(name, files[name]):
            file = None if imported in files else _own_file(imported)
            if file is not None:
                files[imported] = file
                waiting.append(imported)
    return document_digest({n: file_digest(f) for n, f in files.items()}) if files else None


def _own_file(name: str) -> Path | None:
    top = name.partition(".")[0]
    if top in _NOT_OWN or _is_installed(_found(top)):
        return None
    return _file_of(_found(name))


def _found(name: str) -> ModuleSpec | None:
    package = name.rpartition(".")[0]
    if package:
        above = _found(package)
        if above is None or above.submodule_search_locations is None:
            return None
    try:
        return util.find_spec(name)
    except Exception:  # packages above it are the user's code, which raises anything
        return None


def _is_installed(spec: ModuleSpec | None) -> bool:
    if spec is None:
        return False
    places = [*(spec.submodule_search_locations or ()), spec.origin or ""]
    return any(part in _INSTALLED for place in places for part in Path(place).parts)


def _file_of(spec: ModuleSpec | None) -> Path | None:
    file = Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None
    return file if file is not None and file.is_file() else None


def _imports(name: str, file: Path) -> Iterator[str]:
    """Yield what may be the names of the modules that a module imports, anywhere in it."""
    package = name if file.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(_parsed(file)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            within = _absolute(node, package)
            names = [f"{within}.{alias.name}" for alias in node.names] if within else []
        for imported in names:
            parts = imported.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _absolute(node: ast.ImportFrom, package: str) -> str | None:
    try:
        return util.resolve_name("." * node.level + (node.module or ""), package)
    except ImportError:
        return None


def _parsed(file: Path) -> ast.AST:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are shown where it is imported
            return ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError):  # compiled, or not to be imported anyway
        return ast.Module([], [])
