"""Digests of files and JSON documents."""

import hashlib
import json
from pathlib import Path
from typing import Any


def file_digest(path: Path) -> str:
    """Return the sha256 of a file.

    Args:
        path: The file.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def document_digest(document: Any) -> str:
    """Return the sha256 of a JSON document in canonical form (sorted keys, no blanks).

    Args:
        document: Anything that `json` can write.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
