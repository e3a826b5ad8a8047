"""Make a trained transformer encoder small and fast, and know what it cost."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .blueprint import Declared
    from .encoder import Encoder
    from .loading import load
    from .plan import CompressionPlan
    from .runtime import ExportedEncoder
    from .transformer import TransformerClassifier, TransformerSpec

    __version__: str

# Heavy modules load on first use, so that `tcompress --help` stays quick.
_HOMES = {
    "CompressionPlan": "plan",
    "Declared": "blueprint",
    "Encoder": "encoder",
    "ExportedEncoder": "runtime",
    "TransformerClassifier": "transformer",
    "TransformerSpec": "transformer",
    "load": "loading",
}

__all__ = [
    "CompressionPlan",
    "Declared",
    "Encoder",
    "ExportedEncoder",
    "TransformerClassifier",
    "TransformerSpec",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    """Load a public name's module when the name is first asked for, and likewise the version."""
    if name == "__version__":
        from importlib import metadata

        return metadata.version("tcompress")
    if name not in _HOMES:
        msg = f"module 'tcompress' has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
