"""Factories of users' own modules, `package.module:factory`: trusted only where they were typed.

Opening a model must not run code that a file names. So a factory is imported only after its name
came from the user: with `--model`, `--trust-module`, `tcompress.load(..., trust_module=...)`, or
the environment variable that hands it to processes started by this one.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module, util
from pathlib import Path
from typing import Any

from . import storage
from .digests import document_digest
from .errors import ModelError, RequestError
from .intake import check_files, read_json
from .keeping import renew
from .locking import lock_file, locked
from .machine import cache_directory
from .own_sources import source_digest
from .staging import staged

FACTORY_FILE = "factory.json"
TRUST_VARIABLE = "TCOMPRESS_TRUST_MODULE"
_WEIGHTS_FILE = "model.safetensors"
_SCHEMA_VERSION = 1
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_factory(name: str) -> bool:
    """Tell whether something typed is the name of a factory, and no path.

    Args:
        name: What was typed.
    """
    return _NAME.fullmatch(name) is not None and not Path(name).exists()


def trust(name: str) -> None:
    """Allow this process, and those it starts, to import a factory.

    Args:
        name: What the user typed.

    Raises:
        RequestError: If it is no name of a factory.
    """
    if _NAME.fullmatch(name) is None:
        msg = f"{name!r} is no name of a factory; write it as package.module:factory"
        raise RequestError(msg)
    os.environ[TRUST_VARIABLE] = ",".join(dict.fromkeys([*_trusted(), name]))


def built_by(directory: Path) -> Any:
    """Call the factory that a model directory names.

    Args:
        directory: A directory with `factory.json`.

    Returns:
        What it returned.

    Raises:
        RequestError: If the factory is not trusted, or cannot be imported.
        ModelError: If the file names none, or the factory fails.
    """
    name = factory_of(directory)
    if name not in _trusted():
        msg = (
            f"{directory}: its model is built by {name}, code that is only imported where you "
            f"say so: --trust-module {name}"
        )
        raise RequestError(msg)
    try:
        return imported(name)()
    except Exception as error:  # the user's code raises anything
        if isinstance(error, RequestError):
            raise
        msg = f"{name}() raised {type(error).__name__}: {error}"
        raise ModelError(msg) from error


def factory_of(directory: Path) -> str:
    """Return the name of the factory that a model directory names.

    Args:
        directory: A directory with `factory.json`.

    Raises:
        ModelError: If the file names none.
    """
    path = directory / FACTORY_FILE
    name = read_json(path).get("factory")
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        msg = f"{path}: {name!r} is no name of a factory (package.module:factory)"
        raise ModelError(msg)
    return name


def write_factory(name: str, directory: Path) -> None:
    """Write the name of a factory, and the digest of its source as it is now.

    Args:
        name: The factory, which is trusted.
        directory: An existing directory.

    Raises:
        StorageError: If the file system refuses.
    """
    document = {"schema_version": _SCHEMA_VERSION, "factory": name, "source": _source(name)}
    storage.write_text(directory / FACTORY_FILE, json.dumps(document) + "\n")


def source_of_factory(directory: Path) -> str | None:
    """Return the digest of the source of the factory that a model directory names.

    Args:
        directory: A directory with `factory.json`.

    Returns:
        That of the source as it is now; where the factory is not trusted or not found, what the
        directory says. None where that says nothing.

    Raises:
        ModelError: If the file names no factory.
    """
    name = factory_of(directory)
    now = _source(name) if name in _trusted() else None
    return recorded_source(directory) if now is None else now


def recorded_source(directory: Path) -> str | None:
    """Return the digest of a factory's source when a model directory was made, if it is there.

    Args:
        directory: A directory with `factory.json`.

    Raises:
        ModelError: If the file cannot be read.
    """
    source = read_json(directory / FACTORY_FILE).get("source")
    return source if isinstance(source, str) else None


def imported(name: str) -> Callable[[], Any]:
    """Import a trusted factory, from the current directory too, as `python -m` would.

    Args:
        name: Its name.

    Raises:
        RequestError: If there is no such thing.
    """
    module, _, attribute = name.partition(":")
    _make_current_directory_importable()
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        msg = f"{name}: cannot be imported: {error}; run where `python -m {module}` would work"
        raise RequestError(msg) from error
    if not callable(found):
        msg = f"{name} is a {type(found).__name__}, not a function that returns a module"
        raise RequestError(msg)
    factory: Callable[[], Any] = found
    return factory


def house(name: str, weights: Path | None) -> Path:
    """Make a model directory of a factory and its weights, which get a second name in it.

    Args:
        name: The factory, which is trusted from here on.
        weights: A safetensors file, or a directory with `model.safetensors`; tokenizer files and
            `anatomy.json` are taken from beside it. None for beside the factory's module.

    Returns:
        The directory, in the user's cache; that of the weights itself where it is one already.

    Raises:
        RequestError: If there are no such weights.
        ModelError: If a file beside them may not be opened.
        StorageError: If the file system refuses.
    """
    trust(name)
    file = _weights_of(name, weights)
    if (file.parent / FACTORY_FILE).is_file() and factory_of(file.parent) == name:
        return file.parent
    key = document_digest({"factory": name, "weights": str(file.resolve())})
    directory = _cached() / key[:16]
    with staged(directory.parent) as made:
        write_factory(name, made)
        _take_over(file, made)
        return renew(made, directory)


@contextmanager
def settled(directory: Path, workspace: Path) -> Iterator[Path]:
    """Give a copy of what `house` made in the cache, gone with the block unless it is kept.

    Args:
        directory: A model directory.
        workspace: Where the copy may stand.

    Yields:
        The copy; the directory itself where it stands elsewhere and so lasts.

    Raises:
        StorageError: If the file system refuses.
    """
    if directory.parent != _cached():
        yield directory
        return
    with staged(workspace) as made:
        with locked(lock_file(directory)):
            storage.copy_file(directory / FACTORY_FILE, made / FACTORY_FILE)
            _take_over(directory / _WEIGHTS_FILE, made)
        yield made


def _source(name: str) -> str | None:
    _make_current_directory_importable()
    return source_digest(name.partition(":")[0])


def _take_over(weights: Path, made: Path) -> None:
    """Give weights a second name in a directory, and copy what stands beside them."""
    from .blueprint import ANATOMY_FILE
    from .preprocessing import TOKENIZER_FILES

    beside = (ANATOMY_FILE, *TOKENIZER_FILES)
    check_files(weights.parent, beside)
    for name in beside:
        if (weights.parent / name).is_file():
            storage.copy_file(weights.parent / name, made / name)
    storage.link(weights.resolve(), made / _WEIGHTS_FILE)


def _cached() -> Path:
    return cache_directory() / "modules"


def _trusted() -> list[str]:
    return [name for name in os.environ.get(TRUST_VARIABLE, "").split(",") if name]


def _make_current_directory_importable() -> None:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def _weights_of(name: str, weights: Path | None) -> Path:
    if weights is None:
        _make_current_directory_importable()
        try:
            spec = util.find_spec(name.partition(":")[0])
        except ImportError:
            spec = None
        if spec is None or spec.origin is None:
            msg = f"{name}: there is no such module; run where `python -m` would find it"
            raise RequestError(msg)
        weights = Path(spec.origin).parent
    file = weights / _WEIGHTS_FILE if weights.is_dir() else weights
    if not file.is_file():
        msg = (
            f"{file}: no such weights; name a safetensors file, or a directory with "
            f"{_WEIGHTS_FILE}, with --weights"
        )
        raise RequestError(msg)
    return file
