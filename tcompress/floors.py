"""The versions of libraries below which a model file could do harm, held before one is opened.

Versions are read from the installed metadata: nothing heavy is imported.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import metadata

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from .errors import MachineError

FLOORS = {
    "onnx": ">=1.21",
    "onnxruntime": ">=1.24",
    "safetensors": ">=0.8",
    "torch": ">=2.10",
    # 4.57 is the last line of transformers 4; of transformers 5, what came before 5.10 is too old.
    "transformers": (
        ">=4.57,<6,!=5.0.*,!=5.1.*,!=5.2.*,!=5.3.*,!=5.4.*,!=5.5.*,!=5.6.*,!=5.7.*,!=5.8.*,!=5.9.*"
    ),
}
"""What pyproject.toml asks for too, by distribution."""

_KERNELS = "kernels"
_NO_KERNELS_BELOW = Version("5")


@dataclass(frozen=True)
class Floor:
    """A library, and the versions of it that may open a file.

    Attributes:
        name: Its distribution.
        needs: The versions, as pip takes them.
        version: The one that is installed, or None.
    """

    name: str
    needs: str
    version: str | None

    @property
    def holds(self) -> bool:
        """Whether the installed version is one of them."""
        return self.version is not None and SpecifierSet(self.needs).contains(
            self.version, prereleases=True
        )


def floors() -> tuple[Floor, ...]:
    """Return every floor, with the version that stands on it."""
    return tuple(Floor(name, needs, _installed(name)) for name, needs in FLOORS.items())


def faults(found: Iterable[Floor]) -> list[str]:
    """Say what is installed that may open no file, and the way out.

    Args:
        found: From `floors`.

    Returns:
        At most one line on all that is too old, and one on what must go.
    """
    found = tuple(found)
    old = [floor for floor in found if not floor.holds]
    lines = []
    if old:
        what = ", ".join(f"{floor.name} {floor.version or 'missing'}" for floor in old)
        wanted = " ".join(f'"{floor.name}{floor.needs}"' for floor in old)
        lines.append(f"too old to open files of unknown origin: {what}; pip install {wanted}")
    transformers = next((f.version for f in found if f.name == "transformers"), None)
    if _installed(_KERNELS) and transformers and Version(transformers) < _NO_KERNELS_BELOW:
        lines.append(
            f"transformers {transformers} lets a model name code that the package {_KERNELS} "
            f"downloads and runs; pip uninstall {_KERNELS}, or pip install 'transformers>=5.10'"
        )
    return lines


@cache
def check_floors() -> None:
    """Refuse to go on with libraries that are too old; looks once.

    Raises:
        MachineError: If one is; the message names all of them.
    """
    if lines := faults(floors()):
        raise MachineError("; ".join(lines))


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
