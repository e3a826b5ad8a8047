"""Texts, words and questions as token ids, with what each token stands for."""

import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from .data import Examples
from .encoded import NO_SPAN, Indices
from .errors import DataError, ModelError, TcompressError

_STDERR = 2


@dataclass
class Tokenized:
    """Inputs in the order of their examples.

    Attributes:
        columns: Per input name the values of each input.
        owners: The example of each input.
        cuts: Per input, which of its tokens are rows, or None; see `Encoded`.
        parts: Per input, what its rows stand for, or None.
    """

    columns: dict[str, list[list[int]]] = field(default_factory=dict)
    owners: Indices | None = None
    cuts: tuple[Indices, ...] | None = None
    parts: tuple[Indices, ...] | None = None


# Standard error is one for all threads: who finds it taken shares it with who took it.
_stderr_taken = threading.Lock()


@contextmanager
def _without_panics() -> Iterator[None]:
    """Hold back what is written to standard error, and drop it after a panic of Rust.

    A panic writes lines there, past Python, before it becomes an exception.
    """
    if not _can_be_held_back() or not _stderr_taken.acquire(blocking=False):
        yield
        return
    try:
        with _held_back() as held:
            try:
                yield
            except BaseException as error:
                if type(error).__name__ == "PanicException":
                    held.truncate(0)
                raise
    finally:
        _stderr_taken.release()


@contextmanager
def _held_back() -> Iterator[Any]:
    """Let standard error be a file, whose content is passed on at the end."""
    with tempfile.TemporaryFile() as held:
        kept = os.dup(_STDERR)
        os.dup2(held.fileno(), _STDERR)
        try:
            yield held
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)
            held.seek(0)
            with suppress(OSError):  # nobody reads it any more
                os.write(_STDERR, held.read())


def _can_be_held_back() -> bool:
    """Tell whether standard error is open, and there is room for a file in its place."""
    try:
        os.fstat(_STDERR)
        tempfile.gettempdir()
    except OSError:
        return False
    return True


@contextmanager
def one_line_of(what: str, names: Mapping[str, str] | None = None) -> Iterator[None]:
    """Make a `ModelError` of whatever a tokenizer raises; a panic of its parsers is no Exception.

    Args:
        what: What could not be done, as the start of the message.
        names: What the user calls the paths that the message may name.

    Yields:
        Nothing.

    Raises:
        ModelError: If the tokenizer raises anything.
    """
    try:
        with _without_panics():
            yield
    except TcompressError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        for path, name in (names or {}).items():
            reason = reason.replace(path, name)
        msg = f"{what}: {reason}; take the model's tokenizer files from where it came"
        raise ModelError(msg) from error


def tokenize_texts(tokenizer: Any, examples: Examples, max_tokens: int | None) -> Tokenized:
    """Tokenize texts or text pairs.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        examples: Examples with texts.
        max_tokens: Where to cut, or None for nowhere.
    """
    pairs = None if examples.text_pairs is None else list(examples.text_pairs)
    cutting = "longest_first" if max_tokens else False
    features = tokenizer(
        list(examples.texts or ()), pairs, truncation=cutting, max_length=max_tokens, verbose=False
    )
    return Tokenized(dict(features))


def tokenize_words(tokenizer: Any, examples: Examples, max_tokens: int | None) -> Tokenized:
    """Tokenize words; the first token of each is its row, and what is cut off has none.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        examples: Examples with words.
        max_tokens: Where to cut, or None for nowhere.

    Raises:
        ModelError: If the tokenizer cannot take words.
    """
    if _runs_words_together(tokenizer):
        msg = (
            "the tokenizer cannot take words one by one; save it again with add_prefix_space=True, "
            "as the model was trained"
        )
        raise ModelError(msg)
    features = tokenizer(
        [list(words) for words in examples.words or ()],
        is_split_into_words=True,
        truncation=bool(max_tokens),
        max_length=max_tokens,
        verbose=False,
    )
    cuts, parts = [], []
    for i in range(len(examples)):
        words = features.word_ids(i)
        first = {word: place for place, word in reversed(list(enumerate(words)))}
        first.pop(None, None)
        known = np.asarray(sorted(first), dtype=np.int64)
        cuts.append(np.asarray([first[word] for word in known], dtype=np.int64))
        parts.append(np.stack([known, known + 1], axis=1))
    return Tokenized(dict(features), None, tuple(cuts), tuple(parts))


def tokenize_questions(tokenizer: Any, examples: Examples, max_tokens: int) -> Tokenized:
    """Tokenize questions with their contexts; long contexts become overlapping windows.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        examples: Questions in `texts`, contexts in `text_pairs`.
        max_tokens: Tokens of a window, question included.

    Raises:
        DataError: If a question leaves no room for its context.
    """
    strides = _strides(tokenizer, examples, max_tokens)
    whole = Tokenized()
    owners, cuts, parts = [], [], []
    for stride in np.unique(strides):
        members = np.flatnonzero(strides == stride)
        features = _windows(tokenizer, examples.take(members), max_tokens, int(stride))
        owners.append(members[features.pop("overflow_to_sample_mapping")])
        for window in range(len(owners[-1])):
            cut, part = _context_tokens(tokenizer, features, window)
            cuts.append(cut)
            parts.append(part)
        for name, values in features.items():
            whole.columns.setdefault(name, []).extend(values)
    whole.owners = np.concatenate(owners)
    order = np.argsort(whole.owners, kind="stable")
    columns = {name: [values[i] for i in order] for name, values in whole.columns.items()}
    return Tokenized(
        columns,
        whole.owners[order],
        tuple(cuts[i] for i in order),
        tuple(parts[i] for i in order),
    )


def _runs_words_together(tokenizer: Any) -> bool:
    """Tell whether words would lose the blanks that a byte-level model was trained with.

    transformers 4 refuses such a tokenizer, 5 takes it silently. One of no model's own class says
    nothing about it: its models were trained as it is.
    """
    if type(tokenizer).__name__ in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        return False
    splitter = tokenizer.backend_tokenizer.pre_tokenizer
    return isinstance(splitter, ByteLevel) and not splitter.add_prefix_space


def _strides(tokenizer: Any, examples: Examples, max_tokens: int) -> Indices:
    """Return the stride of each question: the data's, or half of what a long one leaves."""
    questions = tokenizer(list(examples.texts or ()), add_special_tokens=False, verbose=False)
    taken = np.asarray([len(ids) for ids in questions["input_ids"]])
    room = max_tokens - tokenizer.num_special_tokens_to_add(pair=True) - taken
    if (room < 1).any():
        i = int(np.argmin(room))
        msg = (
            f"{examples.origin}: question {examples.ids[i]!r} has {taken[i]} tokens and leaves no "
            f"room for its context in the model's {max_tokens}"
        )
        raise DataError(msg)
    return np.asarray(np.minimum(examples.stride, room // 2), dtype=np.int64)


def _windows(tokenizer: Any, examples: Examples, max_tokens: int, stride: int) -> Any:
    return tokenizer(
        list(examples.texts or ()),
        list(examples.text_pairs or ()),
        truncation="only_second",
        max_length=max_tokens,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )


def _context_tokens(tokenizer: Any, features: Any, window: int) -> tuple[Indices, Indices]:
    """Return the rows of a window: the place of "no answer", then the context's tokens."""
    offsets = np.asarray(features["offset_mapping"][window], dtype=np.int64)
    sequences = features.sequence_ids(window)
    cut = [i for i, sequence in enumerate(sequences) if sequence == 1]
    part = offsets[cut].reshape(-1, 2)
    ids = features["input_ids"][window]
    if tokenizer.cls_token_id in ids:
        cut = [ids.index(tokenizer.cls_token_id), *cut]
        part = np.concatenate([[NO_SPAN], part])
    return np.asarray(cut, dtype=np.int64), part
