"""Names of the Hugging Face hub: nothing is fetched but what the user names by one.

A model becomes a directory in the hub's own cache, with files of known names only: safetensors,
configuration, tokenizer. From there on it is a directory like any other.
"""

import re
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

from .errors import MachineError, ModelError, RequestError

HUB_PREFIX = "hf:"
_MODEL = re.compile(r"(?P<repository>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?", re.ASCII)
# Modules of a sentence encoder stand in folders that begin with their number.
_FOLDERS = ("", "[0-9]_*/")


def is_hub_name(name: Path | str) -> bool:
    """Tell whether a model or data are named as on the hub, not by a path.

    Args:
        name: What the user typed.
    """
    return str(name).startswith(HUB_PREFIX)


def fetched(name: str) -> Path:
    """Return the directory of a model of the hub; what its cache holds is not fetched again.

    Without a network, or with `HF_HUB_OFFLINE=1`, it is the one that was fetched last.

    Args:
        name: `hf:OWNER/NAME`, with `@REVISION` behind it for another than the newest: a branch,
            a tag or a commit.

    Returns:
        A directory whose name is the commit.

    Raises:
        RequestError: If it is no such name.
        ModelError: If there is no such model or revision, or none that may be read.
        MachineError: If the hub cannot be reached, and the model was never fetched.
    """
    parts = _MODEL.fullmatch(name.removeprefix(HUB_PREFIX))
    if parts is None:
        msg = f"{name!r} is no name of a model of the hub; write it as {HUB_PREFIX}OWNER/NAME"
        raise RequestError(msg)
    directory = _snapshot(name, parts["repository"], parts["revision"])
    if not any(directory.glob("*.safetensors")):
        msg = (
            f"{name}: has no weights in safetensors there; name a revision that has some, as in "
            f"{HUB_PREFIX}{parts['repository']}@refs/pr/1, or fetch its files yourself and see "
            "`tcompress init --allow-pickle-weights`"
        )
        raise ModelError(msg)
    return directory


def _snapshot(name: str, repository: str, revision: str | None) -> Path:
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()  # a line per step of every bar
    download = partial(snapshot_download, repository, revision=revision, allow_patterns=_patterns())
    try:
        return Path(download())
    except errors.HFValidationError as error:
        msg = f"{name!r} is no name of a model of the hub: {_first_line(error)}"
        raise RequestError(msg) from error
    except errors.GatedRepoError as error:
        msg = f"{name}: its owner lets in only whom they know; ask there, then `hf auth login`"
        raise ModelError(msg) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        what = "revision" if isinstance(error, errors.RevisionNotFoundError) else "model"
        msg = f"{name}: there is no such {what}, or it is private: then `hf auth login`"
        raise ModelError(msg) from error
    except Exception as error:  # also those of its HTTP library, of which it had several
        with suppress(Exception):
            return Path(download(local_files_only=True))
        msg = (
            f"{name}: the hub cannot be reached, and it was not fetched before; name a directory "
            f"({_first_line(error)})"
        )
        raise MachineError(msg) from error


def _patterns() -> list[str]:
    """Return which files are fetched: those that a model directory is opened by, and no code."""
    from .embedder import LENGTH_FILE, MODULES_FILE
    from .images import PROCESSOR_FILE
    from .intake.configs import CONFIG_FILE
    from .intake.weights import INDEX_FILE, WEIGHTS_FILE
    from .preprocessing import TOKENIZER_FILES

    parts = WEIGHTS_FILE.replace(".", "-*-of-*.")
    names = (CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE, parts, LENGTH_FILE, *TOKENIZER_FILES)
    inner = [folder + name for folder in _FOLDERS for name in names]
    return [*inner, MODULES_FILE, PROCESSOR_FILE]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
