"""More texts for a teacher to answer: parts, joins and thinned copies of those at hand."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tcompress.data import Examples
from tcompress.errors import RequestError

_LEAST_WORDS = 3
_LEFT_OUT = 0.15
"""How likely each word of a thinned text is left out."""


def check_variable(examples: Examples) -> None:
    """Raise unless examples are single texts.

    Args:
        examples: The examples.

    Raises:
        RequestError: If they are something else.
    """
    if examples.texts is None or examples.text_pairs is not None or examples.answers is not None:
        msg = f"--vary-texts is for single texts, which {examples.origin} does not hold"
        raise RequestError(msg)


def varied(examples: Examples, fraction: float, seed: Sequence[int]) -> Examples:
    """Replace some texts by new ones, whose labels nobody knows.

    A new text is, with equal chances, a run of a text's words, the start of one text followed by
    the end of another, or a text with some words left out. The teacher answers it like any other,
    so that a small encoder cannot learn the few answers by heart.

    Args:
        examples: Single texts.
        fraction: How many of them to replace.
        seed: Of the choice; equal seeds, equal texts.

    Returns:
        As many examples, without labels.

    Reference:
        Jiao et al. 2020 (TinyBERT), arXiv:1909.10351, section 3.2, and Tang et al. 2019,
        arXiv:1903.12136, section 3.2, who change texts for the same end, word by word.
    """
    assert examples.texts is not None
    rng = np.random.default_rng(seed)
    texts = list(examples.texts)
    for row in np.flatnonzero(rng.random(len(texts)) < fraction):
        words = examples.texts[row].split()
        if len(words) > _LEAST_WORDS:
            texts[row] = " ".join(_changed(words, examples.texts, rng))
    return replace(examples, texts=tuple(texts), labels=None, label_sets=None)


def _changed(words: list[str], texts: Sequence[str], rng: np.random.Generator) -> list[str]:
    kind = rng.integers(3)
    if kind == 0:
        size = int(rng.integers(_LEAST_WORDS, len(words)))
        start = int(rng.integers(len(words) - size + 1))
        return words[start : start + size]
    if kind == 1:
        other = texts[int(rng.integers(len(texts)))].split()
        size = int(rng.integers(1, len(words)))
        return words[:size] + other[int(rng.integers(max(1, len(other) - 1))) :]
    kept = rng.random(len(words)) >= _LEFT_OUT
    return [word for word, is_kept in zip(words, kept, strict=True) if is_kept] or words
