"""The process that unpickles weights, within limits, and writes them as safetensors.

As a program, `python -m tcompress.intake.pickle_worker`. From the first pickle on it starts no
program, reaches no network, and has the memory, the time and the files that tensors of that size
take.
"""

import os
import reprlib
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..worker_process import serve

if TYPE_CHECKING:
    from torch import Tensor

_SPARE_BYTES = 1 << 30
_SPARE_SECONDS = 30
_BYTES_PER_SECOND = 20 << 20
_MAX_FILES = 64
# A tensor may stand in a file under several names, as one that is shared.
_MAX_GROWTH = 4
_SMALL_BYTES = 1 << 20
_FORBIDDEN = ("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.system", "pty.")
_REMEDY = "save the model in safetensors form where it was trained"


class Unpickler:
    """Reads the weights of one model; every public method answers one request."""

    def open(
        self, paths: list[Path], listed: dict[str, str] | None, size_bytes: int, threads: int
    ) -> None:
        """Read the weights.

        Args:
            paths: The files that were looked at.
            listed: In which file each tensor is, by name, where that is known.
            size_bytes: Their size together.
            threads: Not used.

        Raises:
            ModelError: If they hold anything but tensors by name.
        """
        import safetensors.torch
        import torch

        self._save = safetensors.torch.save_file
        torch.set_num_threads(threads)
        limit(size_bytes)
        self._tensors: dict[str, Tensor] = {}
        for path in paths:
            found = _read(path)
            _check_part(path, found, listed)
            self._tensors |= found
        if absent := sorted(set(listed or ()) - set(self._tensors)):
            msg = f"{paths[0]}: {reprlib.repr(absent[0])} is in none of the parts; {_REMEDY}"
            raise ModelError(msg)
        _check_size(paths[0], self._tensors, size_bytes)

    def write(self, path: Path) -> None:
        """Write them.

        Args:
            path: The file.
        """
        whole = {name: value.contiguous().clone() for name, value in self._tensors.items()}
        self._save(whole, path, metadata={"format": "pt"})


def limit(size_bytes: int) -> None:
    """Take from this process, for good, what reading so many bytes of tensors does not need.

    Args:
        size_bytes: How many.
    """
    statm = Path("/proc/self/statm")
    if statm.is_file():  # elsewhere the system counts otherwise
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, used + 2 * _MAX_GROWTH * size_bytes + _SPARE_BYTES)
    spent = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(spent.ru_utime + spent.ru_stime) + size_bytes // _BYTES_PER_SECOND
    _lower(resource.RLIMIT_CPU, seconds + _SPARE_SECONDS)
    _lower(resource.RLIMIT_NOFILE, _MAX_FILES)
    _lower(resource.RLIMIT_CORE, 0)
    sys.addaudithook(_refuse)


def _lower(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _refuse(event: str, _arguments: tuple[Any, ...]) -> None:
    if event.startswith(_FORBIDDEN):
        os._exit(1)


def _read(path: Path) -> "dict[str, Tensor]":
    import torch

    try:
        # Mapped into memory, a storage that is larger than its member would show its neighbours.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # of what does not fit together, torch raises many kinds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        msg = f"{path}: cannot be read as weights: {reason[:200]}; {_REMEDY}"
        raise ModelError(msg) from error
    if not isinstance(found, dict) or not found:
        msg = f"{path}: holds a {type(found).__name__}, expected tensors by name; {_REMEDY}"
        raise ModelError(msg)
    for name, value in found.items():
        if not isinstance(name, str) or not _is_plain(value):
            msg = (
                f"{path}: holds {reprlib.repr(name)}, {_described(value)}, expected dense tensors "
                f"by name, as torch.save(model.state_dict(), ...) writes them; {_REMEDY}"
            )
            raise ModelError(msg)
    return dict(found)


def _is_plain(value: Any) -> bool:
    import torch

    if not isinstance(value, torch.Tensor):
        return False
    return value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized


def _described(value: Any) -> str:
    return f"of type {type(value).__name__}"


def _check_part(path: Path, found: "dict[str, Tensor]", listed: dict[str, str] | None) -> None:
    for name in found:
        if listed is not None and listed.get(name) != path.name:
            msg = f"{path}: holds {reprlib.repr(name)}, which the index does not say; {_REMEDY}"
            raise ModelError(msg)


def _check_size(path: Path, tensors: "dict[str, Tensor]", size_bytes: int) -> None:
    """Raise where tensors that share their numbers would fill far more than the files."""
    total = sum(value.nbytes for value in tensors.values())
    if total > _MAX_GROWTH * size_bytes + _SMALL_BYTES:
        msg = (
            f"{path}: its tensors unfold to {total:,} bytes, the files have {size_bytes:,}; "
            f"{_REMEDY}"
        )
        raise ModelError(msg)


def main() -> None:
    """Serve one model."""
    serve(Unpickler())


if __name__ == "__main__":
    main()
