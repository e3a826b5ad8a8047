from collections.abc import Callable

import numpy as np
import pytest

from tcompress.data import Examples
from tcompress.encoder import Encoder
from tcompress.preprocessing import Encoded

Encode = Callable[..., Encoded]


def random_examples(encoder: Encoder, count: int, seed: int = 0) -> Examples:
    """Inputs of 2 to 11 tokens for an encoder of any kind."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 12, count)
    ids = tuple(map(str, range(count)))
    spec = getattr(encoder.preprocessor, "spec", None)
    if spec is None:
        words = [word for word in encoder.preprocessor.tokenizer.get_vocab() if word[0] != "["]
        texts = tuple(" ".join(rng.choice(sorted(words), length)) for length in lengths)
        return Examples("random", ids, texts=texts)
    inputs = rng.standard_normal((count, 11, spec.feature_size), dtype=np.float32)
    mask = (np.arange(11) < lengths[:, None]).astype(np.int64)
    return Examples("random", ids, inputs=inputs, mask=mask)


@pytest.fixture
def encode() -> Encode:
    """Encode so many random examples for an encoder."""

    def run(encoder: Encoder, count: int, seed: int = 0) -> Encoded:
        return encoder.preprocessor.encode(random_examples(encoder, count, seed))

    return run
