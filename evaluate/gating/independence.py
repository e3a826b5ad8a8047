"""Whether examples may judge a candidate: not if it was fitted, calibrated or selected on them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tcompress.artifact import Manifest, is_artifact
from tcompress.data import Examples
from tcompress.errors import DataError


def check_independent(examples: Examples, candidate: Path) -> None:
    """Raise if the candidate, or what it was made from, says that it was made on these examples.

    Manifests keep digests of sets, so this finds the same file, and what a stage drew from it;
    another file with some of the same examples is found by the workspace alone.

    Args:
        examples: The examples of the gate.
        candidate: A model directory or an artifact.

    Raises:
        DataError: If they are the same.
    """
    for directory, manifest in _lineage(candidate):
        recorded = {"recipe": manifest.recipe, "details": manifest.details}
        digests = {value for _, value in _leaves(recorded) if isinstance(value, str)}
        if not digests.isdisjoint(_drawn(examples, recorded)):
            msg = (
                f"{examples.origin}: {directory} was made on these very examples "
                f"({manifest.stage}); judge by others"
            )
            raise DataError(msg)


def _lineage(directory: Path) -> Iterator[tuple[Path, Manifest]]:
    """Yield an artifact and those it was made from, as far as they are still there."""
    seen: set[Path] = set()
    while is_artifact(directory) and directory not in seen:
        seen.add(directory)
        manifest = Manifest.read(directory)
        yield directory, manifest
        directory = Path(manifest.parent.path)


def _drawn(examples: Examples, recorded: dict[str, Any]) -> set[str]:
    """Return the digests of the examples, and of what a stage would have drawn from them."""
    found = list(_leaves(recorded))
    counts = {v for name, v in found if name in ("examples", "max_examples") and type(v) is int}
    seeds = {0, *(value for name, value in found if name == "seed" and type(value) is int)}
    samples = {examples.sample(n, seed).digest for n in counts if n > 0 for seed in seeds}
    return {examples.digest, *samples}


def _leaves(document: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(document, dict):
        for key, value in document.items():
            yield from _leaves(value, key)
    elif isinstance(document, list):
        for value in document:
            yield from _leaves(value, name)
    else:
        yield name, document
