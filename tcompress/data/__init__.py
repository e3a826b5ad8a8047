"""Labelled examples: texts, words or questions from a table, or tensors from an array file."""

from .columns import Columns
from .examples import STRIDE, Answer, Examples, join_examples
from .labels import label_index
from .reading import read_digests, read_examples
from .splitting import split_examples

__all__ = [
    "STRIDE",
    "Answer",
    "Columns",
    "Examples",
    "join_examples",
    "label_index",
    "read_digests",
    "read_examples",
    "split_examples",
]
