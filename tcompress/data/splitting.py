"""One set of examples into train, validation and test."""

import numpy as np

from ..errors import DataError
from .examples import Examples


def split_examples(
    examples: Examples, *, validation: float, test: float, seed: int
) -> tuple[Examples, Examples, Examples]:
    """Split into train, validation and test; equal groups, or else equal inputs, stay together.

    Args:
        examples: All examples.
        validation: Fraction for validation, 0 to 1.
        test: Fraction for test, 0 to 1.
        seed: Seed of the split.

    Raises:
        DataError: If a side would be empty.
    """
    keys = examples.groups or examples.content_digests
    names, member = np.unique(np.asarray(keys), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    sizes = np.bincount(member, minlength=len(names))[order]
    reached = np.cumsum(sizes) / len(examples)
    side_of_key = np.empty(len(names), dtype=np.int64)
    # 0: test, 1: validation, 2: train; by cumulated size, so that fractions hold with big groups
    side_of_key[order] = np.searchsorted([test, test + validation], reached - 1e-9)
    sides = [np.flatnonzero(side_of_key[member] == side) for side in (2, 1, 0)]
    for name, side in zip(("train", "validation", "test"), sides, strict=True):
        if len(side) == 0:
            msg = f"{examples.origin}: {len(examples)} examples are too few to split off {name}"
            raise DataError(msg)
    train, valid, held_out = (examples.take(side) for side in sides)
    return train, valid, held_out
