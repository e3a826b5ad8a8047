"""Reading TOML that somebody else wrote."""

import tomllib
from pathlib import Path
from typing import Any

from ..errors import TcompressError

LIMIT_BYTES = 1 << 20


def read_toml(path: Path, error: type[TcompressError]) -> dict[str, Any]:
    """Read a TOML document.

    Args:
        path: A regular file.
        error: What to raise of a bad document.

    Raises:
        TcompressError: If it is no such file, too large or no TOML; of the type `error`.
    """
    try:
        if not path.is_file():
            msg = "not a regular file" if path.exists() else "no such file"
            raise ValueError(msg)
        with path.open("rb") as stream:
            raw = stream.read(LIMIT_BYTES + 1)
        if len(raw) > LIMIT_BYTES:
            msg = f"larger than {LIMIT_BYTES:,} bytes"
            raise ValueError(msg)
        return tomllib.loads(raw.decode())
    except (OSError, ValueError, RecursionError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else fault
        msg = f"{path}: cannot be read as TOML: {reason}; correct the file"
        raise error(msg) from fault
