import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer

from tcompress.data import Answer, Examples
from tcompress.errors import DataError, ModelError
from tcompress.preprocessing import TextPreprocessor, Unit, open_preprocessor

CONTEXT = "the film was great , but the plot was dull and it was not very good . " * 6


@pytest.fixture
def make(model_directories: Callable[[str], Path]) -> Callable[[Unit], TextPreprocessor]:
    def opened(unit: Unit) -> TextPreprocessor:
        found = open_preprocessor(
            model_directories("bert"), max_positions=24, vocab_size=20, token_types=True, unit=unit
        )
        assert isinstance(found, TextPreprocessor)
        return found

    return opened


def _questions(*questions: str, context: str = CONTEXT, stride: int = 4) -> Examples:
    ids = tuple(f"q{i}" for i in range(len(questions)))
    pairs = (context,) * len(questions)
    return Examples("q.json", ids, texts=questions, text_pairs=pairs, stride=stride)


def _sentences(*sentences: str) -> Examples:
    words = tuple(tuple(sentence.split()) for sentence in sentences)
    return Examples("s.conll", tuple(map(str, range(len(words)))), words=words)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_words_row_is_the_output_at_its_first_token(
    make: Callable[[Unit], TextPreprocessor], side: str
) -> None:
    preprocessor = make(Unit.WORD)
    preprocessor.tokenizer.padding_side = side
    encoded = preprocessor.encode(_sentences("the film-plot was good", "bad"))
    batch = encoded.collate([1, 0])
    rows, owners = encoded.rows([1, 0], batch["input_ids"][..., None])
    names = preprocessor.tokenizer.convert_ids_to_tokens(rows[:, 0].tolist())
    assert names == ["bad", "the", "film", "was", "good"]
    assert owners.tolist() == [1, 0, 0, 0, 0]
    assert encoded.row_numbers([1, 0]).tolist() == [4, 0, 1, 2, 3]
    assert encoded.spans[:, 0].tolist() == [0, 1, 2, 3, 0]
    assert torch.equal(
        encoded.rows([1, 0], torch.from_numpy(batch["input_ids"])[..., None])[0],
        torch.from_numpy(rows),
    )


def test_words_beyond_the_models_positions_have_no_row(
    make: Callable[[Unit], TextPreprocessor],
) -> None:
    encoded = make(Unit.WORD).encode(_sentences("good " * 30, "good " * 22))
    assert encoded.truncated == 1
    assert np.bincount(encoded.row_owners).tolist() == [22, 22]


def test_windows_cover_a_long_context_and_share_the_stride(
    make: Callable[[Unit], TextPreprocessor],
) -> None:
    encoded = make(Unit.CONTEXT).encode(_questions("was it good", "great", stride=4))
    assert encoded.lengths.max() == 24
    assert encoded.owners.tolist() == sorted(encoded.owners.tolist())
    for example in (0, 1):
        windows = np.flatnonzero(encoded.owners == example)
        pieces = [encoded.spans[encoded.row_numbers([w])][1:].tolist() for w in windows]
        assert len(pieces) > 3
        for earlier, later in pairwise(pieces):
            assert earlier[-4:] == later[:4]
        covered = {tuple(span) for piece in pieces for span in piece}
        assert len(covered) == len(CONTEXT.split())


def test_an_answer_maps_to_rows_in_every_window_that_holds_it_and_back(
    make: Callable[[Unit], TextPreprocessor],
) -> None:
    encoded = make(Unit.CONTEXT).encode(_questions("good", "was it good"))
    for text in ("film", "plot was dull", "very good ."):
        for start in (i for i in range(len(CONTEXT)) if CONTEXT.startswith(text, i)):
            for example in (0, 1):
                found = encoded.answer_rows(example, Answer(text, start))
                assert found
                for first, last in found:
                    assert encoded.answer_text(CONTEXT, first, last) == text
                    assert encoded.row_owners[first] == encoded.row_owners[last] == example
                    assert encoded.spans[first, 0] == start
    assert (encoded.owners[encoded.row_windows] == encoded.row_owners).all()
    windows = int((encoded.owners == 1).sum())
    empty = encoded.answer_rows(1, None)
    assert len(empty) == windows
    assert {encoded.answer_text(CONTEXT, *pair) for pair in empty} == {""}


def test_an_input_is_the_row_of_a_text(make: Callable[[Unit], TextPreprocessor]) -> None:
    examples = Examples("d.csv", ("0", "1", "2"), texts=("good", "bad film", "it"))
    encoded = make(Unit.EXAMPLE).encode(examples)
    output = np.arange(4.0).reshape(2, 2)
    rows, owners = encoded.rows([2, 0], output)
    assert rows is output
    assert owners.tolist() == encoded.row_numbers([2, 0]).tolist() == [2, 0]


def test_the_windows_of_a_question_do_not_depend_on_its_neighbours(
    make: Callable[[Unit], TextPreprocessor],
) -> None:
    preprocessor = make(Unit.CONTEXT)
    both = preprocessor.encode(_questions("good", "good " * 17))
    alone = preprocessor.encode(_questions("good"))
    count = len(alone.lengths)
    assert both.lengths[:count].tolist() == alone.lengths.tolist()
    assert (both.collate([0])["input_ids"] == alone.collate([0])["input_ids"]).all()


@pytest.mark.parametrize(
    ("unit", "examples", "message"),
    [
        pytest.param(
            Unit.WORD,
            replace(_questions("it"), text_pairs=None),
            "this model tags words, the file holds texts",
            id="texts for tagging",
        ),
        pytest.param(
            Unit.EXAMPLE, _sentences("it"), "reads texts, the file holds lists of words", id="words"
        ),
        pytest.param(
            Unit.CONTEXT,
            replace(_questions("it"), text_pairs=None),
            "--text-pair-column CONTEXT",
            id="no context",
        ),
        pytest.param(
            Unit.CONTEXT,
            _questions("it", "good " * 21),
            "question 'q1' has 21 tokens and leaves no room for its context in the model's 24",
            id="no room",
        ),
    ],
)
def test_data_of_another_task_are_refused(
    make: Callable[[Unit], TextPreprocessor], unit: Unit, examples: Examples, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make(unit).encode(examples)


def _byte_level(directory: Path, *, add_prefix_space: bool) -> TextPreprocessor:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([CONTEXT], 300, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    trained.save_model(str(directory))
    config = {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": add_prefix_space}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text('{"model_type": "roberta"}')
    tokenizer = AutoTokenizer.from_pretrained(str(directory), use_fast=True)
    return TextPreprocessor(tokenizer, ("input_ids",), 40, 400, unit=Unit.WORD)


def test_words_that_a_byte_level_tokenizer_would_run_together_are_refused(tmp_path: Path) -> None:
    sentences = _sentences("the film was")
    with pytest.raises(ModelError, match="save it again with add_prefix_space=True"):
        _byte_level(tmp_path, add_prefix_space=False).encode(sentences)
    preprocessor = _byte_level(tmp_path, add_prefix_space=True)
    encoded = preprocessor.encode(sentences)
    rows, _ = encoded.rows([0], encoded.collate([0])["input_ids"][..., None])
    tokens = preprocessor.tokenizer.convert_ids_to_tokens(rows[:, 0].tolist())
    assert [token[0] for token in tokens] == ["\u0120"] * 3
