from dataclasses import replace

import numpy as np

from tcompress.data import Examples
from tcompress.evaluate.accuracy import Predictions
from tcompress.evaluate.flips import LONGEST_TEXT, flipped_examples

TEXTS = ("<b>one</b>", "two", "three", "x" * 400, "five")
EXAMPLES = Examples(
    "test", ids=tuple("12345"), labels=("no", "no", "yes", "yes", "no"), texts=TEXTS
)


def answers(*margins: float) -> Predictions:
    """Say yes by the margin, which is a difference of logits."""
    logits = np.stack([np.zeros(len(margins)), margins], axis=1).astype(np.float32)
    return Predictions(logits, ("no", "yes"), truncated=0)


BASELINE = answers(-1, 1, 1, -2, -1)  # right, wrong, right, wrong, right
CANDIDATE = answers(2, 1, -1, 3, -5)  # lost, still wrong, lost, gained, still right


def test_flips_are_told_with_their_direction_the_most_confident_first():
    found = flipped_examples(CANDIDATE, BASELINE, EXAMPLES)
    assert [(f.id, f.label, f.before, f.after, f.direction) for f in found] == [
        ("4", "yes", "no", "yes", "gained"),
        ("1", "no", "no", "yes", "lost"),
        ("3", "yes", "yes", "no", "lost"),
    ]
    assert [f.confidence for f in found] == sorted((f.confidence for f in found), reverse=True)
    assert flipped_examples(CANDIDATE, BASELINE, EXAMPLES, most=1) == found[:1]


def test_texts_are_raw_and_cut():
    gained, lost, _ = flipped_examples(CANDIDATE, BASELINE, EXAMPLES)
    assert (lost.text, gained.text) == ("<b>one</b>", "x" * LONGEST_TEXT)
    pairs = replace(EXAMPLES, text_pairs=("a", "b", "c", "d", "e"))
    assert flipped_examples(CANDIDATE, BASELINE, pairs)[2].text == "three\nc"


def test_tensors_have_no_text_and_without_labels_nothing_is_known_to_have_flipped():
    tensors = replace(EXAMPLES, texts=None)
    assert {f.text for f in flipped_examples(CANDIDATE, BASELINE, tensors)} == {None}
    assert flipped_examples(CANDIDATE, BASELINE, replace(EXAMPLES, labels=None)) == []
