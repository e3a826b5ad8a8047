"""From examples to model inputs: tokenization, truncation, dynamic padding."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .data import Examples
from .encoded import ATTENTION_MASK, Array, Batch, Encoded, Unit, real_tokens
from .errors import DataError, ModelError, RequestError, StorageError
from .images import PatchPreprocessor
from .intake import check_tokenizer, checked_file, is_there, read_json
from .intake.configs import CONFIG_FILE
from .intake.files import DESCRIPTION_BYTES
from .tokenizing import (
    Tokenized,
    one_line_of,
    tokenize_questions,
    tokenize_texts,
    tokenize_words,
)
from .transformer import ARCHITECTURE_FILE, TensorInputs, TransformerSpec

__all__ = [
    "ATTENTION_MASK",
    "TOKENIZER_FILES",
    "TOKEN_TYPES",
    "Array",
    "Batch",
    "Encoded",
    "Preprocessor",
    "TensorPreprocessor",
    "TextPreprocessor",
    "Unit",
    "open_preprocessor",
    "real_tokens",
]

TOKEN_TYPES = "token_type_ids"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
)
# What the configuration says about the tokenizer.
_CONFIG_KEYS = ("model_type", "tokenizer_class", "transformers_version", "_name_or_path")


class Preprocessor(Protocol):
    """Turns examples into model inputs."""

    @property
    def max_tokens(self) -> int:
        """Longest input in tokens; longer ones are truncated."""

    @property
    def fixed_tokens(self) -> int | None:
        """Tokens of every input, where all have as many; None where they differ in length."""

    @property
    def padding_id(self) -> int | None:
        """Token id at padded places, or None where there is none."""

    def encode(self, examples: Examples) -> Encoded:
        """Prepare examples.

        Args:
            examples: The examples.

        Raises:
            DataError: If the examples are not of the kind that the model takes.
        """

    def random_batch(self, size: int, tokens: int, seed: int = 0) -> Batch:
        """Make a batch of an exact shape without padding, for timing and tracing.

        Args:
            size: Examples.
            tokens: Tokens per example.
            seed: Seed of the values.
        """


@dataclass(frozen=True)
class TextPreprocessor:
    """Tokenizes texts with the tokenizer of a model directory.

    Attributes:
        tokenizer: A fast Hugging Face tokenizer.
        input_names: Names of the model's inputs, in the tokenizer's order.
        max_tokens: Longest input in tokens.
        vocab_size: Rows of the model's token table.
        pairs: Whether text pairs can be read; not by a file whose token types were folded away.
        unit: What the model decides on its own: examples, words, or the tokens of a context, which
            the second text then is.
    """

    tokenizer: Any
    input_names: tuple[str, ...]
    max_tokens: int
    vocab_size: int
    pairs: bool = True
    unit: Unit = Unit.EXAMPLE

    @property
    def fixed_tokens(self) -> int | None:
        """None: texts differ in length."""
        return None

    @property
    def padding_id(self) -> int | None:
        """Token id at padded places; see `Preprocessor.padding_id`."""
        found = self.tokenizer.pad_token_id
        return None if found is None else int(found)

    def encode(self, examples: Examples) -> Encoded:
        """Tokenize texts, pairs, words or questions; see `Preprocessor.encode`.

        Args:
            examples: Text examples.

        Raises:
            DataError: If the examples are not of the model's kind, or ids exceed its token table.
            RequestError: If they are text pairs and those cannot be read.
        """
        self._check_kind(examples)
        with one_line_of(f"{self.tokenizer.name_or_path}: the tokenizer cannot read the texts"):
            tokenized = self._tokenize(examples, self.max_tokens)
        rows = tokenized.columns["input_ids"]
        self._check_ids(rows)
        lengths = np.asarray([len(row) for row in rows], dtype=np.int64)
        truncated = 0
        if self.unit is not Unit.CONTEXT:
            at_limit = np.flatnonzero(lengths >= self.max_tokens)
            truncated = self._count_truncated(examples.take(at_limit))
        return Encoded(
            lengths,
            truncated,
            lambda positions: self._collate(tokenized.columns, lengths[list(positions)], positions),
            tokenized.owners,
            tokenized.cuts,
            tokenized.parts,
            padded_left=self._pads_left,
        )

    def random_batch(self, size: int, tokens: int, seed: int = 0) -> Batch:
        """Make a batch of random token ids; see `Preprocessor.random_batch`.

        Args:
            size: Examples.
            tokens: Tokens per example.
            seed: Seed of the values.
        """
        shape = (size, tokens)
        ids = np.random.default_rng(seed).integers(0, self.vocab_size, shape, dtype=np.int64)
        if (pad := self.padding_id) is not None:
            ids[ids == pad] = (pad + 1) % self.vocab_size
        values = {"input_ids": ids, "attention_mask": np.ones(shape, dtype=np.int64)}
        return {
            name: values.get(name, np.zeros(shape, dtype=np.int64)) for name in self.input_names
        }

    def _padding_value(self, name: str) -> int:
        if name == "input_ids":
            return self.padding_id or 0
        return int(self.tokenizer.pad_token_type_id) if name == TOKEN_TYPES else 0

    @property
    def _pads_left(self) -> bool:
        return bool(self.tokenizer.padding_side == "left")

    def _tokenize(self, examples: Examples, max_tokens: int | None) -> Tokenized:
        if self.unit is Unit.CONTEXT:
            return tokenize_questions(self.tokenizer, examples, self.max_tokens)
        tokenize = tokenize_words if self.unit is Unit.WORD else tokenize_texts
        return tokenize(self.tokenizer, examples, max_tokens)

    def _collate(
        self,
        columns: dict[str, list[list[int]]],
        lengths: npt.NDArray[np.int64],
        positions: Sequence[int],
    ) -> Batch:
        longest = max(1, int(lengths.max()))
        batch = {}
        for name in self.input_names:
            shape = (len(positions), longest)
            array = np.full(shape, self._padding_value(name), dtype=np.int64)
            for i, position in enumerate(positions):
                row = columns[name][position]
                part = slice(longest - len(row), None) if self._pads_left else slice(len(row))
                array[i, part] = row
            batch[name] = array
        return batch

    def _check_kind(self, examples: Examples) -> None:
        origin = examples.origin
        if examples.inputs is not None or examples.images is not None:
            kind = "tensors" if examples.images is None else "images"
            msg = f"{origin}: this model reads texts, the file holds {kind}"
            raise DataError(msg)
        if self.unit is Unit.WORD and examples.words is None:
            msg = (
                f"{origin}: this model tags words, the file holds texts; give lists of tokens and "
                "tags, or a CoNLL file"
            )
            raise DataError(msg)
        if self.unit is not Unit.WORD and examples.texts is None:
            msg = f"{origin}: this model reads texts, the file holds lists of words"
            raise DataError(msg)
        if self.unit is Unit.CONTEXT and examples.text_pairs is None:
            msg = (
                f"{origin}: this model finds answers in a context; name the columns with "
                "--text-column QUESTION and --text-pair-column CONTEXT"
            )
            raise DataError(msg)
        if examples.text_pairs is not None and not self.pairs:
            msg = (
                f"{origin}: text pairs need token types, and those are folded away; "
                "export with --keep-token-types"
            )
            raise RequestError(msg)

    def _check_ids(self, rows: list[list[int]]) -> None:
        top = max((max(row) for row in rows if row), default=0)
        if top >= self.vocab_size:
            msg = (
                f"{self.tokenizer.name_or_path}: the tokenizer gives token id {top}, the model's "
                f"table has {self.vocab_size} rows: the tokenizer belongs to another model"
            )
            raise DataError(msg)

    def _count_truncated(self, long: Examples) -> int:
        if len(long) == 0:
            return 0
        whole = self._tokenize(long, None).columns["input_ids"]
        return sum(len(row) > self.max_tokens for row in whole)


@dataclass(frozen=True)
class TensorPreprocessor:
    """Passes arrays on, cut to the model's positions.

    Attributes:
        spec: What the model reads.
    """

    spec: TensorInputs

    @property
    def max_tokens(self) -> int:
        """Longest input in tokens."""
        return self.spec.max_positions

    @property
    def fixed_tokens(self) -> int | None:
        """None: sequences may differ in length."""
        return None

    @property
    def padding_id(self) -> int | None:
        """None: the mask alone says what is padding."""
        return None

    def encode(self, examples: Examples) -> Encoded:
        """Check and cut arrays; see `Preprocessor.encode`.

        Args:
            examples: Tensor examples.

        Raises:
            DataError: If the examples are texts or have the wrong width.
        """
        inputs = examples.inputs
        if inputs is None:
            msg = f"{examples.origin}: this model reads tensors, the file holds texts"
            raise DataError(msg)
        self._check_shape(examples.origin, inputs)
        limit = self.max_tokens
        inputs = inputs[:, :limit].astype(np.int64 if self.spec.vocab_size else np.float32)
        mask = np.ones(inputs.shape[:2]) if examples.mask is None else examples.mask[:, :limit]
        mask = mask.astype(np.int64)
        whole = mask if examples.mask is None else examples.mask
        truncated = int((whole[:, limit:].sum(1) > 0).sum())
        if examples.mask is None and examples.inputs is not None:
            truncated = len(examples) if examples.inputs.shape[1] > limit else 0

        def collate(positions: Sequence[int]) -> Batch:
            rows = list(positions)
            longest = max(1, int(lengths[rows].max()))
            return self._named(inputs[rows, :longest], mask[rows, :longest])

        ends = mask.shape[1] - np.argmax(mask[:, ::-1] > 0, axis=1)
        lengths = np.where(mask.any(1), ends, 0).astype(np.int64)
        return Encoded(lengths, truncated, collate)

    def random_batch(self, size: int, tokens: int, seed: int = 0) -> Batch:
        """Make a batch of random inputs; see `Preprocessor.random_batch`.

        Args:
            size: Examples.
            tokens: Tokens per example.
            seed: Seed of the values.
        """
        rng = np.random.default_rng(seed)
        inputs: Array = (
            rng.integers(0, self.spec.vocab_size, (size, tokens), dtype=np.int64)
            if self.spec.vocab_size
            else rng.standard_normal((size, tokens, self.spec.feature_size), dtype=np.float32)
        )
        mask = np.ones((size, tokens), dtype=np.int64)
        return self._named(inputs, mask)

    def _named(self, inputs: Array, mask: Array) -> Batch:
        named = {self.spec.input_name: inputs}
        return named | {ATTENTION_MASK: mask} if self.spec.masked else named

    def _check_shape(self, origin: str, inputs: Array) -> None:
        expected = (
            "(examples, tokens) ids"
            if self.spec.vocab_size
            else f"(examples, tokens, {self.spec.feature_size})"
        )
        fits = (
            inputs.ndim == 2 and np.issubdtype(inputs.dtype, np.integer)
            if self.spec.vocab_size
            else inputs.ndim == 3 and inputs.shape[2] == self.spec.feature_size
        )
        if not fits:
            msg = f"{origin}: 'inputs' must be {expected}, got {inputs.dtype} {inputs.shape}"
            raise DataError(msg)
        if self.spec.vocab_size and inputs.size:
            low, high = inputs.min(), inputs.max()
            if low < 0 or high >= self.spec.vocab_size:
                msg = f"{origin}: token ids {low} to {high}; vocab_size is {self.spec.vocab_size}"
                raise DataError(msg)


def open_preprocessor(
    directory: Path,
    *,
    max_positions: int | None,
    vocab_size: int,
    token_types: bool,
    pairs: bool = True,
    unit: Unit | str = Unit.EXAMPLE,
    patches: Mapping[str, Any] | None = None,
    masked: bool = True,
    tensors: Mapping[str, Any] | None = None,
) -> Preprocessor:
    """Open the preprocessing of a model directory.

    Args:
        directory: A directory with `architecture.json`, or with tokenizer files.
        max_positions: Longest input that the model's position table allows, or None.
        vocab_size: Rows of the model's token table.
        token_types: Whether the model takes `token_type_ids`.
        pairs: Whether it can read text pairs.
        unit: What the model decides on its own, where it reads texts.
        patches: `input_name`, `shape` and `tokens` of a model of images or spectrograms, or None.
        masked: Whether the model is told what is padding.
        tensors: Fields of `TensorInputs` for a directory that describes neither; else None.

    Raises:
        ModelError: If the directory has neither, or the tokenizer cannot be opened.
    """
    if patches is not None:
        shape = tuple(map(int, patches["shape"]))
        return PatchPreprocessor(directory, patches["input_name"], shape, int(patches["tokens"]))
    spec_path = directory / ARCHITECTURE_FILE
    has_tokenizer = any((directory / name).is_file() for name in TOKENIZER_FILES)
    if spec_path.is_file() and not has_tokenizer:
        return TensorPreprocessor(TransformerSpec.read(spec_path).inputs)
    if tensors is not None and not has_tokenizer:
        return TensorPreprocessor(TensorInputs(**tensors))
    if not has_tokenizer:
        msg = f"{directory}: no tokenizer files in it (tokenizer.json, vocab.txt, ...)"
        raise ModelError(msg)
    kind = check_tokenizer(directory, TOKENIZER_FILES, vocab_size)
    tokenizer = _open_checked(directory)
    _check_opened(directory, tokenizer, vocab_size, kind)
    limits = [tokenizer.model_max_length, max_positions or tokenizer.model_max_length]
    if spec_path.is_file():
        limits.append(TransformerSpec.read(spec_path).max_positions)
    available = tuple(tokenizer.model_input_names)
    wanted = ("input_ids", TOKEN_TYPES, "attention_mask")
    taken = {"input_ids": True, TOKEN_TYPES: token_types, ATTENTION_MASK: masked}
    names = tuple(name for name in wanted if name in available and taken[name])
    return TextPreprocessor(tokenizer, names, int(min(limits)), vocab_size, pairs, Unit(unit))


def _check_opened(directory: Path, tokenizer: Any, vocab_size: int, kind: str | None) -> None:
    """Raise where every text would fail or lose its meaning, whatever it says."""
    found = type(tokenizer.backend_tokenizer.model).__name__
    if kind not in (None, found):
        msg = (
            f"{directory}: {type(tokenizer).__name__} has a vocabulary of kind {found}, its "
            f"tokenizer.json one of kind {kind}; correct 'tokenizer_class' in tokenizer_config.json"
        )
        raise ModelError(msg)
    if "input_ids" not in tokenizer.model_input_names:
        msg = f"{directory}: the tokenizer gives {tokenizer.model_input_names}, not 'input_ids'"
        raise ModelError(msg)
    if vocab_size and (pad := tokenizer.pad_token_id) is not None and pad >= vocab_size:
        msg = (
            f"{directory}: padding has token id {pad}, the model's table has {vocab_size} rows: "
            "the tokenizer belongs to another model"
        )
        raise ModelError(msg)
    if (added := tokenizer.num_special_tokens_to_add(pair=True)) >= tokenizer.model_max_length:
        msg = (
            f"{directory}: the tokenizer adds {added} tokens to every text, and cuts at "
            f"{tokenizer.model_max_length}"
        )
        raise ModelError(msg)


def _open_checked(directory: Path) -> Any:
    """Open a tokenizer from a place with nothing in it but the files that were checked.

    transformers opens whatever else it finds beside them, such as templates, and what they name.
    """
    try:
        with TemporaryDirectory(prefix="tcompress-", ignore_cleanup_errors=True) as place:
            _link_files(directory, Path(place))
            with one_line_of(
                f"{directory}: the tokenizer cannot be opened", {place: str(directory)}
            ):
                return _renamed(_open_tokenizer(place), place, str(directory))
    except OSError as error:
        msg = (
            f"{directory}: no temporary directory for its tokenizer: {error.strerror or error}; "
            "name another place in TMPDIR"
        )
        raise StorageError(msg) from error


def _link_files(directory: Path, place: Path) -> None:
    for name in TOKENIZER_FILES:
        if is_there(directory / name):
            (place / name).symlink_to((directory / name).resolve())
    if is_there(directory / CONFIG_FILE):
        path = checked_file(directory, CONFIG_FILE, limit_bytes=DESCRIPTION_BYTES)
        document = read_json(path)
        said = {key: document[key] for key in _CONFIG_KEYS if isinstance(document.get(key), str)}
        (place / CONFIG_FILE).write_text(json.dumps(said))


def _renamed(tokenizer: Any, place: str, name: str) -> Any:
    """Let a tokenizer name the directory that it is of: the place where it was opened is gone."""
    tokenizer.name_or_path = name
    for fields in (tokenizer.init_kwargs, vars(tokenizer)):
        for key, value in fields.items():
            if isinstance(value, str) and value.startswith(place):
                fields[key] = name + value.removeprefix(place)
    return tokenizer


def _open_tokenizer(place: str) -> Any:
    """Open a tokenizer, also one of a class that only another line of transformers knows."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        return AutoTokenizer.from_pretrained(
            place, local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except ValueError:
        if not Path(place, "tokenizer.json").is_file():
            raise
        return PreTrainedTokenizerFast.from_pretrained(place, local_files_only=True)
