"""Checkpoints for another line of transformers to open.

    python -m tests.families.checkpoints write|compare DIRECTORY

Run from the root of the repository, by the interpreter of either line.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers

from tcompress.artifact import ENCODER_KIND, Manifest, Parent
from tcompress.compress.pruning import prune_
from tcompress.encoder import Encoder, model_digest, open_encoder
from tcompress.loading import load_encoder
from tcompress.preprocessing import Batch
from tcompress.writing import writing_artifact

from .family_fixture import FamilyFixture
from .fixtures import FAMILIES
from .plans import uneven

ANSWERS_SUFFIX = ".npy"
LIMIT = 1e-5
# The families that transformers 4 itself can prune, and how.
CUT_BY_TRANSFORMERS = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra")
CUT = {0: [1], 2: [0, 3]}


def write(root: Path) -> None:
    """Write models as their library does, pruned ones, and what each answers.

    Args:
        root: An empty directory.
    """
    for family in FAMILIES.values():
        whole = root / family.name / "whole"
        family.write(whole, 0)
        encoder = open_encoder(whole)
        _write_answers(family, encoder, whole)
        _write_pruned(family, encoder, root / family.name / "pruned")
        if family.name in CUT_BY_TRANSFORMERS and transformers.__version__.startswith("4."):
            _write_cut(family, whole, root / family.name / "cut")


def _write_pruned(family: FamilyFixture, encoder: Encoder, target: Path) -> None:
    prune_(encoder, uneven(encoder))
    source = Parent(str(encoder.directory), model_digest(encoder.directory))
    with writing_artifact(target) as draft:
        encoder.save(draft.directory)
        draft.manifest = Manifest(ENCODER_KIND, "prune", source, source, encoder.plan, recipe={})
    _write_answers(family, encoder, target)


def _write_cut(family: FamilyFixture, whole: Path, target: Path) -> None:
    """Write what transformers 4 makes of a model when it prunes heads."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(whole)).eval()
    model.prune_heads(CUT)
    encoder = open_encoder(whole)
    target.mkdir()
    encoder.save(target)
    model.save_pretrained(target)
    inputs = {name: torch.from_numpy(array) for name, array in _batch(family, encoder).items()}
    with torch.no_grad():
        np.save(_answers_file(target), model(**inputs).logits.numpy())


def compare(root: Path) -> dict[str, float]:
    """Open what `write` wrote.

    Args:
        root: Its directory.

    Returns:
        The largest difference of a logit by checkpoint.
    """
    return dict(_differences(root))


def _differences(root: Path) -> Iterator[tuple[str, float]]:
    for family in FAMILIES.values():
        for answers in sorted((root / family.name).glob(f"*{ANSWERS_SUFFIX}")):
            encoder = load_encoder(answers.with_suffix(""))
            found = encoder.predict(_batch(family, encoder))
            yield f"{family.name}/{answers.stem}", float(np.abs(found - np.load(answers)).max())


def _write_answers(family: FamilyFixture, encoder: Encoder, directory: Path) -> None:
    np.save(_answers_file(directory), encoder.predict(_batch(family, encoder)))


def _answers_file(directory: Path) -> Path:
    return directory.with_suffix(ANSWERS_SUFFIX)


def _batch(family: FamilyFixture, encoder: Encoder) -> Batch:
    return encoder.preprocessor.encode(family.examples(12)).collate([0, 3, 8])


def main() -> None:
    """Write checkpoints, or compare and end with 1 where one does not hold."""
    command, root = sys.argv[1], Path(sys.argv[2])
    if command == "write":
        write(root)
        return
    differences = compare(root)
    faults = [f"{name}: {value:.3g}" for name, value in differences.items() if not value <= LIMIT]
    if faults or not differences:
        sys.exit("logits differ: " + ("; ".join(faults) or "no checkpoint was found"))


if __name__ == "__main__":
    main()
