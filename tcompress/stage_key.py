"""What a stage's result depends on. Equal keys, equal result; unequal ones say what changed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from .digests import document_digest
from .machine import cpu_features, library_versions

if TYPE_CHECKING:
    from .artifact import Manifest

# One more where a stage's code begins to give other results for the same inputs.
_CODE = {"score": 1, "prune": 1, "finetune": 1, "quantize": 1, "export": 1}
_LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")
_DIGEST_LENGTH = 64


@dataclass(frozen=True)
class Reads:
    """What a stage reads besides its model and its recipe.

    Attributes:
        inputs: Digests of data and other files, by name.
        libraries: Libraries that it uses besides those that open and run any encoder.
        cpu: Whether the instruction sets of the CPU decide, as in int8 and where it measures.
    """

    inputs: Mapping[str, str] = field(default_factory=dict)
    libraries: tuple[str, ...] = ()
    cpu: bool = False


@dataclass(frozen=True)
class StageKey:
    """Everything that a stage's result depends on.

    Attributes:
        stage: The stage.
        model: Digest of the model that it reads.
        recipe: Its parameters, as JSON.
        inputs: Digests of what else it reads, by name.
        versions: Versions of the libraries that it uses.
        cpu_features: Instruction sets; empty where they do not matter.
        code: Version of the stage's own code.
    """

    stage: str
    model: str
    recipe: dict[str, Any]
    inputs: dict[str, str]
    versions: dict[str, str]
    cpu_features: dict[str, bool]
    code: int

    @classmethod
    def of(cls, stage: str, model: str, recipe: dict[str, Any], reads: Reads) -> Self:
        """Return the key that a stage has now.

        Args:
            stage: The stage.
            model: Digest of the model that it reads.
            recipe: Its parameters, as JSON.
            reads: What else it depends on.
        """
        used = {*_LIBRARIES, *reads.libraries}
        return cls(
            stage,
            model,
            recipe,
            dict(reads.inputs),
            {name: found for name, found in library_versions().items() if name in used},
            cpu_features() if reads.cpu else {},
            _CODE[stage],
        )

    @classmethod
    def again(cls, manifest: "Manifest", model: str) -> Self:
        """Return the key that an artifact's stage has now, by the same recipe on the same data.

        Args:
            manifest: The artifact's.
            model: Digest that its parent has now.
        """
        kept, stage = manifest.key, manifest.stage
        used, features = kept.get("versions", {}), kept.get("cpu_features", {})
        return cls(
            stage,
            model,
            manifest.recipe,
            kept.get("inputs", {}),
            _those(library_versions(), used),
            _those(cpu_features(), features),
            _CODE.get(stage, 0),
        )

    @property
    def digest(self) -> str:
        """The key itself."""
        return document_digest(vars(self))

    def to_json(self) -> dict[str, Any]:
        """Return what a manifest keeps of it, besides what it says anyway."""
        return {
            "digest": self.digest,
            "code": self.code,
            "inputs": self.inputs,
            "versions": self.versions,
            "cpu_features": self.cpu_features,
        }

    def changes(self, manifest: "Manifest") -> list[str]:
        """Say what is no longer as it was when an artifact was written; empty: nothing.

        Args:
            manifest: The artifact's; one from before keys were kept is held to what it says.
        """
        kept = manifest.key
        found = [] if manifest.stage == self.stage else [f"it is by {manifest.stage}"]
        found += [] if manifest.parent.digest == self.model else ["the model changed"]
        found += differences(manifest.recipe, self.recipe)
        found += differences(kept.get("inputs", self.inputs), self.inputs)
        versions = kept.get("versions") or _those(manifest.versions, self.versions)
        found += differences(versions, self.versions)
        features = kept.get("cpu_features", _those(manifest.cpu_features, self.cpu_features))
        found += [f"CPU: {words}" for words in differences(features, self.cpu_features)]
        if kept.get("code", self.code) != self.code:
            found.append(f"tcompress {self.stage} changed")
        return list(dict.fromkeys(found))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Say how two documents differ.

    Args:
        old: A document.
        new: Another.

    Yields:
        A few words for each value that differs.
    """
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if _is_digest(before) or _is_digest(after):
            yield f"{name} changed"
        elif isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after)
        else:
            yield f"{name} {_shown(before)} -> {_shown(after)}"


def _those(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in wanted if name in values}


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == _DIGEST_LENGTH


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value}"
