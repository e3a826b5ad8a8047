"""One malformed or malicious input, and what opens it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Opens(StrEnum):
    """What an input is, which says which commands open it."""

    MODEL = "model"  # a model directory
    ARTIFACT = "artifact"  # a directory with a manifest
    DATA = "data"  # a file of examples
    TENSORS = "tensors"  # a file of examples for models without a tokenizer
    WORKSPACE = "workspace"  # a directory with a tcompress.toml
    BASELINE = "baseline"  # a file that `gate record` wrote
    WORDS = "words"  # a command line of its own


@dataclass(frozen=True)
class Seeds:
    """What cases are built from: small valid things, to be copied and then spoiled.

    Attributes:
        bert: A directory with a tiny classifier of Hugging Face's form, with a tokenizer.
        torch: A directory with a tiny `TransformerClassifier`.
        embedder: A directory of sentence-transformers' form.
        onnx: An artifact, exported as ONNX from `bert`.
        torchscript: Likewise, as TorchScript.
        program: Likewise, as a torch.export program.
        pruned: An artifact with weights, pruned from `bert`.
        texts: A CSV of labelled texts for `bert`.
        tensors: A .npz of labelled examples for `torch`.
        workspace: A workspace of `bert` and `texts`, with artifacts in it.
        baseline: A recorded baseline file.
        canary: Must not exist afterwards; code that runs would create it.
    """

    bert: Path
    torch: Path
    embedder: Path
    onnx: Path
    torchscript: Path
    program: Path
    pruned: Path
    texts: Path
    tensors: Path
    workspace: Path
    baseline: Path
    canary: Path


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        name: Short and telling; the test's id is family and name.
        family: `F1` to `F12`.
        opens: What it is.
        build: Makes it in an empty directory from the seeds; returns what is handed to commands.
        codes: Exit codes that are right; every command must end with one of them.
        says: Words of the one line on stderr (case-insensitive), or "" where it is accepted.
        accepted: Whether commands may also simply work, because it is strange but harmless.
        words: Of `WORDS`: the command line, with `{input}`, `{output}` in it.
    """

    name: str
    family: str
    opens: Opens
    build: Callable[[Seeds, Path], Path]
    codes: frozenset[int] = frozenset({5})
    says: str = ""
    accepted: bool = False
    words: tuple[str, ...] = ()
