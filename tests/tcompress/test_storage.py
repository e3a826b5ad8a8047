import ast
import errno
import fcntl
import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tcompress import storage
from tcompress.encoder import save_tensors
from tcompress.errors import StorageError
from tcompress.export import openvino_ir
from tcompress.staging import sweep, write_text_atomically
from tcompress.storage import Moment, Operation
from tcompress.writing import writing_directory

ROOT = Path(storage.__file__).parents[1]
# What may change the file system besides, and why.
OUTSIDE = {
    "tcompress/storage.py": "it is the one",
    "tcompress/interruption.py": "removes what is temporary while the process dies",
    "compress/streams.py": "maps files of a temporary directory",
    "tcompress/preprocessing.py": "lays the checked tokenizer files out in a temporary directory",
    "tcompress/tokenizing.py": "holds standard error back in a temporary file",
}
# Methods of paths and tables that change it, and functions that do, wherever they come from.
METHODS = {
    *("write_text", "write_bytes", "mkdir", "rename", "unlink", "rmdir", "touch", "chmod"),
    *("symlink_to", "hardlink_to", "to_csv", "to_json_file", "save_pretrained"),
}
FUNCTIONS = {
    *("rmtree", "copyfile", "copytree", "copy2", "makedirs", "truncate", "mkdtemp"),
    *("savez", "save_file", "save_model", "memmap"),
}
LIBRARIES = {"torch", "jit", "onnx", "np", "openvino", "export"}


def _changes(tree: ast.AST) -> Iterator[str]:
    """Yield calls that change the file system; what storage's functions are handed is no call."""
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name, owner = _names(node.func)
        if owner != "storage" and (name in FUNCTIONS or (owner is not None and name in METHODS)):
            yield f"{node.lineno}: {name}"
        elif name == "save" and owner in LIBRARIES and not _into_memory(node):
            yield f"{node.lineno}: {owner}.save"
        elif name == "replace" and owner is not None and _is_path_replace(node):
            yield f"{node.lineno}: {owner}.replace"
        elif name == "open" and any(_writes(argument) for argument in _arguments(node)):
            yield f"{node.lineno}: open to write"


def _names(function: ast.expr) -> tuple[str, str | None]:
    """Return what is called, and what it is a part of."""
    if isinstance(function, ast.Attribute):
        owner = function.value
        return function.attr, getattr(owner, "id", getattr(owner, "attr", ""))
    return getattr(function, "id", ""), None


def _is_path_replace(node: ast.Call) -> bool:
    """Strings take two arguments, and dates take them by name."""
    return len(node.args) == 1 and not node.keywords


def _into_memory(node: ast.Call) -> bool:
    return any(getattr(argument, "id", "") == "buffer" for argument in node.args)


def _arguments(node: ast.Call) -> list[ast.expr]:
    return [*node.args, *(keyword.value for keyword in node.keywords)]


def _writes(argument: ast.expr) -> bool:
    value = argument.value if isinstance(argument, ast.Constant) else None
    return (
        isinstance(value, str)
        and re.fullmatch(r"[rwax]b?\+?|[rwax]\+?b?", value)
        and (value[0] != "r" or "+" in value)
    )


def test_no_other_module_changes_the_file_system() -> None:
    found = {
        name: changes
        for folder in ("tcompress", "compress", "export", "evaluate")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (name := path.relative_to(ROOT).as_posix()) not in OUTSIDE
        and (changes := list(_changes(ast.parse(path.read_text()))))
    }
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "path.write_text(text)",
        "shutil.rmtree(path)",
        "staging.replace(path)",
        "path.open('wb')",
        "torch.save(state, path)",
        "save_file(tensors, path)",
    ],
)
def test_the_walk_sees_a_writer(line: str) -> None:
    assert len(list(_changes(ast.parse(line)))) == 1


LARGE = next((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"))
WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: storage.write_text(path, "x" * 4_000_000),
    "tensors": lambda path: save_tensors({"w": torch.zeros(1_000_000)}, path),
    "torch": lambda path: storage.write_stream(path, lambda f: torch.save(torch.zeros(10**6), f)),
    "arrays": lambda path: storage.write_with(path, lambda p: np.savez(p, w=np.zeros(1_000_000))),
    "table": lambda path: storage.write_with(path, pd.DataFrame({"a": range(500_000)}).to_csv),
    "copy": lambda path: storage.copy_file(
        Path(torch._C.__file__).parent / "lib/libtorch_cpu.so", path
    ),
    "atomic": lambda path: write_text_atomically(path, "x" * 4_000_000),
}


@contextmanager
def _mounted(directory: Path, options: str) -> Iterator[Path]:
    words = ("mount", "-t", "tmpfs", "-o", options, "tmpfs", directory)
    if not shutil.which("mount") or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs takes root")
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of a megabyte."""
    with _mounted(tmp_path_factory.mktemp("disk"), "size=1m") as directory:
        yield directory


def test_a_read_only_file_system_is_one_line(tmp_path: Path) -> None:
    with (
        _mounted(tmp_path, "ro") as directory,
        pytest.raises(StorageError, match=r"0: cannot be written: Read-only file system"),
        writing_directory(directory / "report"),
    ):
        pass


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_with_what_is_free(small_disk: Path, name: str) -> None:
    with pytest.raises(StorageError, match=r"disk full: \S+ needs .* MB free on its file system"):
        WRITERS[name](small_disk / f"{name}.npz")
    for path in small_disk.iterdir():
        path.unlink()


def test_a_full_disk_is_one_line_where_openvino_writes(small_disk: Path) -> None:
    openvino = pytest.importorskip("openvino")
    operators = openvino.opset13
    given = operators.parameter([1, 1_000_000], np.float32)
    grown = operators.add(given, operators.constant(np.ones((1, 10**6), np.float32)))
    with pytest.raises(StorageError, match=r"disk full: \S+ needs .* MB free on its file system"):
        openvino_ir.save(openvino.Model([grown], [given], "model"), small_disk / "model.xml", {})


@pytest.mark.parametrize("name", WRITERS)
def test_a_limit_on_the_size_of_files_is_one_line(tmp_path: Path, name: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
        with pytest.raises(StorageError, match="cannot be written: File too large"):
            WRITERS[name](tmp_path / f"{name}.npz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, kept)


def test_a_failure_in_a_temporary_directory_names_the_place_that_the_user_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(operation: Operation, path: Path, moment: Moment) -> None:
        if path.name == "model.safetensors":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(storage, "observer", refuse)
    said = f"{re.escape(str(tmp_path))}: cannot be written: Input/output error"
    with (
        pytest.raises(StorageError, match=f"^{said}"),
        writing_directory(tmp_path / "prune") as staging,
    ):
        storage.write_text(staging / "model.safetensors", "weights")


def test_what_a_library_says_of_the_content_stays_as_it_is(tmp_path: Path) -> None:
    shared = torch.zeros(4)
    with pytest.raises(RuntimeError, match="share memory"):
        save_tensors({"a": shared, "b": shared}, tmp_path / "model.safetensors")


def test_devices_are_written_and_never_replaced(tmp_path: Path) -> None:
    write_text_atomically(Path(os.devnull), "nothing")
    with pytest.raises(StorageError, match="disk full: /dev/full"):
        write_text_atomically(Path("/dev/full"), "too much")
    assert Path(os.devnull).is_char_device()
    assert Path("/dev/full").is_char_device()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text_atomically(tmp_path / "pipe", "report")
    assert os.read(reader, 99) == b"report"
    os.close(reader)


def test_a_link_to_a_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_text_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_files_are_forced_to_disk_before_they_appear_and_their_directory_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def observe(operation: Operation, path: Path, moment: Moment) -> None:
        if moment is Moment.AFTER and not path.name.startswith(".tcompress-"):
            calls.append((operation, path.name))

    monkeypatch.setattr(storage, "observer", observe)
    write_text_atomically(tmp_path / "report", "text")
    assert calls == [
        (Operation.WRITE, "report"),
        (Operation.SYNC, "report"),
        (Operation.RENAME, "report"),
        (Operation.SYNC, tmp_path.name),
    ]


def test_only_what_nobody_is_at_work_on_is_swept(tmp_path: Path) -> None:
    live, left = (tmp_path / f".tcompress-{digit * 32}.tmp" for digit in "ab")
    others = [".tcompress-mine.tmp", f".tcompress-{'c' * 31}.tmp", f"x.tcompress-{'d' * 32}.tmp"]
    for path in (live, left, *(tmp_path / name for name in others)):
        path.mkdir()
        (path / "file").write_text("something")
    (tmp_path / ".tcompress-mine.old").mkdir()
    others.append(".tcompress-mine.old")
    handle = os.open(live, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {live.name, *others}
    os.close(handle)
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*others}
