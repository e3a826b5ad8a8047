"""Model directories whose weights are pickles, made into such with safetensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import storage
from .embedder import EmbedderSpec, dense_weights, is_embedder
from .encoder import copy_carried_files
from .errors import ModelError, RequestError
from .intake import is_there
from .intake.pickles import PickledWeights
from .intake.weights import INDEX_FILE, WEIGHTS_FILE
from .staging import staged


@contextmanager
def unpickled(directory: Path, workspace: Path) -> Iterator[Path]:
    """Give a directory of the same model without pickles, gone with the block unless it is kept.

    Args:
        directory: A model directory.
        workspace: Where it may stand.

    Yields:
        The new directory; the old one where it has no pickled weights to read.

    Raises:
        ModelError: If the pickles are no plain weights.
        MachineError: If torch is too old to read files of unknown origin.
        StorageError: If the file system refuses.
    """
    found = _pickled(directory)
    if not found:
        yield directory
        return
    for weights in found.values():  # before anything is written
        weights.check()
    with staged(workspace) as made:
        copy_carried_files(directory, made)
        for name, weights in found.items():
            storage.make_directory((made / name).parent)
            weights.convert(made / name)
        try:
            yield made
        except (ModelError, RequestError) as error:  # what is bad about the copy is so about it
            raise type(error)(str(error).replace(str(made), str(directory))) from error


def _pickled(directory: Path) -> dict[str, PickledWeights]:
    """Return the pickles, by the name of the safetensors file that is to hold their content."""
    safe = any(is_there(directory / name) for name in (WEIGHTS_FILE, INDEX_FILE))
    names = [] if safe else [WEIGHTS_FILE]
    if is_embedder(directory):
        dense = dense_weights(EmbedderSpec.read(directory)).values()
        names += [name for name in dense if not is_there(directory / name)]
    found = {name: PickledWeights.find((directory / name).parent) for name in names}
    return {name: weights for name, weights in found.items() if weights is not None}
