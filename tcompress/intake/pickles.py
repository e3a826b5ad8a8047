"""Weights that torch.save wrote: pickles, which may run any code where they are read carelessly.

They are read on demand only, once, and become a safetensors file: the archive is looked at, then a
process with limits of its own reads it with torch's `weights_only`. There is no other way in.
"""

import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import storage
from ..errors import InputError, ModelError, StorageError
from ..floors import check_floors
from ..worker_process import WorkerProcess
from .files import checked_file, is_there
from .json_documents import read_json
from .pickle_opcodes import TENSOR_GLOBALS, check_pickle, check_storages
from .torch_zips import opened_zip

PICKLE_FILES = ("pytorch_model.bin", "model.pt", "model.pth")
"""Names that pickled weights go by, as those of safetensors go by `model.safetensors`."""
PICKLE_INDEX = "pytorch_model.bin.index.json"
WORKER = "tcompress.intake.pickle_worker"
_MAX_BYTES = 64 << 30
_MAX_PARTS = 1_000
_MEMBERS = {
    *("data.pkl", "version", "byteorder"),
    *(".format_version", ".storage_alignment", ".data/serialization_id"),
}
_REMEDY = "save the model in safetensors form where it was trained"


@dataclass(frozen=True)
class PickledWeights:
    """The files that hold pickled weights.

    Attributes:
        directory: Where they are.
        parts: Their names.
        listed: In which part each tensor is, where an index says it.
    """

    directory: Path
    parts: tuple[str, ...]
    listed: dict[str, str] | None = None

    @classmethod
    def find(cls, directory: Path) -> "PickledWeights | None":
        """Return what a directory has of them; nothing is opened but an index.

        Args:
            directory: A directory.

        Raises:
            ModelError: If an index is bad.
        """
        found = next(pickles_in(directory), None)
        if found is None:
            return None
        if found.name != PICKLE_INDEX:
            return cls(directory, (found.name,))
        listed = _listed(directory)
        return cls(directory, tuple(dict.fromkeys(listed.values())), listed)

    def check(self) -> None:
        """Look at every file, and unpickle nothing.

        Raises:
            ModelError: If one of them is no plain file of dense tensors.
            StorageError: If the system does not let it be read.
        """
        for name in self.parts:
            path = checked_file(
                self.directory, name, limit_bytes=_MAX_BYTES, error=ModelError, remedy=_REMEDY
            )
            check_state_file(path)

    def convert(self, target: Path) -> None:
        """Write the weights as a safetensors file.

        Args:
            target: The file.

        Raises:
            ModelError: If they are none, or the process that reads them fails.
            MachineError: If torch is too old to read files of unknown origin.
            StorageError: If the file system refuses.
        """
        check_floors()
        self.check()
        paths = [self.directory / name for name in self.parts]
        size = sum(path.stat().st_size for path in paths)
        opening = {"paths": paths, "listed": self.listed, "size_bytes": size}
        with _Reading(WORKER, name=str(paths[0]), threads=1, opening=opening) as process:
            process.opened()
            storage.write_with(target, lambda path: process.ask("write", path=path), size)


def pickles_in(directory: Path) -> Iterator[Path]:
    """Yield the files of a directory whose names say that they are pickled weights, or list them.

    Args:
        directory: A directory.

    Yields:
        Their paths.
    """
    names = (*PICKLE_FILES, PICKLE_INDEX)
    yield from (directory / name for name in names if is_there(directory / name))


def check_state_file(path: Path, error: type[InputError] = ModelError) -> None:
    """Raise unless a file is one of dense tensors as torch.save writes it; it is not unpickled.

    Args:
        path: A regular file.
        error: What to raise of a bad file.

    Raises:
        InputError: If it is not; of the type `error`.
        StorageError: If the system does not let it be read.
    """
    try:
        with opened_zip(path) as archive:
            for name in archive.members:
                if name not in _MEMBERS and not _is_data(name):
                    msg = f"{reprlib.repr(name)} is in it, which is not of weights"
                    raise ValueError(msg)
            storages = check_pickle(archive.read("data.pkl"), TENSOR_GLOBALS.__contains__)
            check_storages(storages, archive.members, "data")
            archive.check_sums()
    except ValueError as fault:
        msg = f"{path}: not weights as torch.save writes them: {fault}; {_REMEDY}"
        raise error(msg) from fault
    except OSError as fault:
        msg = f"{path}: cannot be read: {fault.strerror or fault}; check its permissions"
        raise StorageError(msg) from fault


class _Reading(WorkerProcess):
    """The process that unpickles; of a bad file it may die."""

    failure = ModelError


def _is_data(name: str) -> bool:
    folder, _, number = name.partition("/")
    return folder == "data" and number.isascii() and number.isdigit()


def _listed(directory: Path) -> dict[str, str]:
    """Return in which part each tensor is, as the index says."""
    path = checked_file(directory, PICKLE_INDEX, limit_bytes=_MAX_BYTES)
    listed = read_json(path, remedy=_REMEDY).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        msg = f"{path}: 'weight_map' must say which file holds each tensor; {_REMEDY}"
        raise ModelError(msg)
    for part in listed.values():
        if not isinstance(part, str) or Path(part).name != part or not part.endswith(".bin"):
            msg = f"{path}: {reprlib.repr(part)} is no name of a .bin file beside it; {_REMEDY}"
            raise ModelError(msg)
    if (count := len(set(listed.values()))) > _MAX_PARTS:
        msg = f"{path}: {count:,} parts, at most {_MAX_PARTS:,} are read; {_REMEDY}"
        raise ModelError(msg)
    return listed
