"""Tokenizer files, before the parsers of `tokenizers` see them: those end a process on bad ones."""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .files import checked_file, is_there
from .json_documents import read_json

LIMIT_BYTES = 128 << 20
MAX_ADDED = 50_000
MAX_PATTERN = 2_000
MAX_GROWTH = 64
MAX_ROW = 2
MAX_CHARSMAP_BYTES = 8 << 20
_MODEL_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
_CODE_KEYS = ("auto_map", "trust_remote_code")
_VERSIONS_KEY = "fast_tokenizer_files"
_PATH_KEYS = ("vocab_file", "merges_file", "tokenizer_file")
_REMEDY = "take the model's tokenizer files from where it came"
# An escape, a class of characters, the start of a group, its end, a repetition, an alternative.
_PIECES = re.compile(r"\\.|\[\^?\]?(?:\\.|\[:.*?:\]|[^\]\\])*\]|(\()|(\))|([*+]|\{\d*,?\d*\})|(\|)")
# One character or class that is repeated without bound, not possessively.
_REPEATED = re.compile(
    r"(\\[pP]\{\^?\w+\}|\\.|\[\^?\]?(?:\\.|\[:.*?:\]|[^\]\\])*\]|[^\\()|*+?{}\[\]])(?:[*+]|\{\d*,\})\??(?!\+)",
    re.DOTALL,
)
_PROBES = "a 1.\ue000"
_ONCE = re.compile(r"\{(\d*,)?[01]\}")


def check_tokenizer(directory: Path, names: tuple[str, ...], rows: int) -> str | None:
    """Check the tokenizer files of a model directory.

    Args:
        directory: The model directory.
        names: Names of tokenizer files, of which it has some.
        rows: Rows of the model's token table; 0 where they are not known.

    Returns:
        The kind of its vocabulary, such as `WordPiece`, where a `tokenizer.json` says it.

    Raises:
        ModelError: If a file is too large, damaged or of harm, or belongs to another model.
    """
    for name in names:
        if is_there(directory / name):
            checked_file(directory, name, limit_bytes=LIMIT_BYTES, remedy=_REMEDY)
    if (path := directory / _CONFIG_FILE).is_file():
        _check_config(path, read_json(path, remedy=_REMEDY))
    if (path := directory / _MODEL_FILE).is_file():
        return _check_model(path, rows)
    if (path := directory / "vocab.txt").is_file():
        _check_lines(path)
    return None


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    for key in _CODE_KEYS:
        if config.get(key):
            msg = (
                f"{path}: {key!r} asks for code from the model's directory, which is never run; "
                "save the tokenizer as tokenizer.json and remove the key"
            )
            raise ModelError(msg)
    if config.get(_VERSIONS_KEY):
        msg = f"{path}: {_VERSIONS_KEY!r} names files in place of {_MODEL_FILE}; remove the key"
        raise ModelError(msg)
    for key in _PATH_KEYS:  # often the path on its author's machine, which is not there
        if isinstance(named := config.get(key), str) and Path(named).exists():
            msg = f"{path}: {key!r} names {named!r}, which is not the model's; remove the key"
            raise ModelError(msg)
    kinds = {"tokenizer_class": str, "model_max_length": int | float, "model_input_names": list}
    for key, kind in kinds.items():
        if not isinstance(value := config.get(key), kind | None) or isinstance(value, bool):
            msg = f"{path}: {key!r} must not be {value!r}; {_REMEDY}"
            raise ModelError(msg)
    if (longest := config.get("model_max_length")) is not None and longest < 1:
        msg = f"{path}: 'model_max_length' must be at least 1, got {longest}; {_REMEDY}"
        raise ModelError(msg)
    _check_count(path, "added_tokens_decoder", config.get("added_tokens_decoder") or {})


def _check_lines(path: Path) -> None:
    """Check a vocabulary of one token a line."""
    try:
        count = len(path.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        msg = f"{path}: byte {error.start} is not UTF-8; {_REMEDY}"
        raise ModelError(msg) from error
    if not count:
        msg = f"{path}: no vocabulary in it; {_REMEDY}"
        raise ModelError(msg)


def _check_model(path: Path, rows: int) -> str | None:
    document = read_json(path, limit_bytes=LIMIT_BYTES, remedy=_REMEDY)
    _check_ids(path, _vocabulary(path, document), rows)
    _check_added(path, document.get("added_tokens") or [])
    for step in _steps(document.get("normalizer"), document.get("pre_tokenizer")):
        _check_pattern(path, step)
        if step.get("type") == "Precompiled":
            _check_charsmap(path, step.get("precompiled_charsmap"))
    _check_replacements(path, document.get("normalizer"))
    _check_growth(path, document.get("normalizer"), document.get("pre_tokenizer"))
    if dropout := document["model"].get("dropout"):
        msg = f"{path}: 'dropout' {dropout!r:.40} makes its tokens random; set it to null"
        raise ModelError(msg)
    kind = document["model"].get("type")
    return kind if isinstance(kind, str) else None


def _vocabulary(path: Path, document: Mapping[str, Any]) -> list[Any]:
    """Return the ids of a vocabulary, or its entries where their order gives the ids."""
    model = document.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict | list) or not vocabulary:
        msg = f"{path}: no vocabulary in it; {_REMEDY}"
        raise ModelError(msg)
    if isinstance(vocabulary, list):
        return list(range(len(vocabulary)))
    return list(vocabulary.values())


def _check_ids(path: Path, ids: list[Any], rows: int) -> None:
    if wrong := [number for number in ids if type(number) is not int or number < 0]:
        msg = f"{path}: {wrong[0]!r} is no token id; {_REMEDY}"
        raise ModelError(msg)
    if rows and (top := max(ids)) >= rows:
        msg = (
            f"{path}: its vocabulary goes to token id {top}, the model's table has {rows} rows: "
            f"the tokenizer belongs to another model; {_REMEDY}"
        )
        raise ModelError(msg)


def _check_added(path: Path, added: Any) -> None:
    _check_count(path, "added_tokens", added)
    for token in added:
        number = token.get("id") if isinstance(token, dict) else None
        if type(number) is not int or not 0 <= number < 1 << 31:
            msg = f"{path}: 'added_tokens' holds the id {number!r}; {_REMEDY}"
            raise ModelError(msg)


def _check_count(path: Path, key: str, added: Any) -> None:
    if not isinstance(added, list | dict) or len(added) > MAX_ADDED:
        found = f"{len(added):,} tokens" if isinstance(added, list | dict) else repr(added)
        msg = f"{path}: {key!r} holds {found}, at most {MAX_ADDED:,} are read; {_REMEDY}"
        raise ModelError(msg)


def _steps(*parts: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in parts of the document; its depth is bounded."""
    for part in parts:
        if isinstance(part, dict):
            yield part
            yield from _steps(*part.values())
        elif isinstance(part, list):
            yield from _steps(*part)


def _check_pattern(path: Path, step: Mapping[str, Any]) -> None:
    if not isinstance(pattern := step.get("Regex"), str):
        return
    if len(pattern) > MAX_PATTERN or repeats_in_repeats(pattern):
        msg = (
            f"{path}: the pattern {pattern[:60]!r} repeats what itself repeats, which can take "
            f"forever; {_REMEDY}"
        )
        raise ModelError(msg)
    if repeats_in_a_row(pattern):
        msg = (
            f"{path}: the pattern {pattern[:60]!r} has over {MAX_ROW} repetitions in a row, which "
            f"can take forever; {_REMEDY}"
        )
        raise ModelError(msg)


def repeats_in_repeats(pattern: str) -> bool:
    """Tell whether a group that repeats or chooses something is itself repeated without bound.

    Args:
        pattern: A regular expression of Oniguruma, which tries every way to part a text.
    """
    groups = [False]
    closed: tuple[int, bool] | None = None
    for piece in _PIECES.finditer(pattern):
        opens, closes, repeats, chooses = piece.groups()
        if opens:
            groups.append(False)
        elif closes and len(groups) > 1:
            closed = piece.end(), groups.pop()
            groups[-1] |= closed[1]
        elif repeats and not _ONCE.fullmatch(repeats):
            if closed == (piece.start(), True):
                return True
            groups[-1] |= not repeats.strip("{}").isdecimal()
        elif chooses and len(groups) > 1:
            groups[-1] = True
    return False


def repeats_in_a_row(pattern: str) -> bool:
    """Tell whether more than `MAX_ROW` repetitions follow each other that may share a text.

    Two that do occur in known patterns, such as `\\s*[\\r\\n]+`; three have too many ways.

    Args:
        pattern: A regular expression of Oniguruma.
    """
    row, end, before = 0, -1, ""
    for found in _REPEATED.finditer(pattern):
        atom = found[1]
        follows = found.start() == end and not _are_apart(before, atom)
        row, end, before = row + 1 if follows else 1, found.end(), atom
        if row > MAX_ROW:
            return True
    return False


def _are_apart(one: str, other: str) -> bool:
    """Tell whether no character is of both, where that is simple to say."""
    if len(one) == len(other) == 1:
        return one != other and "." not in (one, other)
    return one[0] == other[0] == "\\" and one != other and one.lower() == other.lower()


def _check_replacements(path: Path, normalizer: Any) -> None:
    """Raise where what a pattern finds is nothing, so that it is replaced everywhere."""
    from tokenizers import Regex  # not where a command's help is asked for
    from tokenizers.normalizers import Replace

    for step in _steps(normalizer):
        if not isinstance(pattern := step.get("Regex", step.get("String")), str):
            continue
        try:
            matcher = Regex(pattern) if "Regex" in step else pattern
            replace = Replace(matcher, "\0").normalize_str
            finds_nothing = not pattern or any(f"{c}\0{c}" in replace(c * 2) for c in _PROBES)
        except Exception as error:  # the library raises nothing narrower
            msg = f"{path}: {pattern[:60]!r} is no pattern: {error}; {_REMEDY}"
            raise ModelError(msg) from error
        if finds_nothing:
            msg = f"{path}: the pattern {pattern[:60]!r} also finds the empty text; {_REMEDY}"
            raise ModelError(msg)


def _check_growth(path: Path, normalizer: Any, splitter: Any) -> None:
    """Raise where changes one after the other make a text many times as long."""
    growth = prod(_growth(step) for step in _steps(normalizer, splitter))
    if growth > MAX_GROWTH:
        msg = f"{path}: its replacements make a text over {MAX_GROWTH} times as long; {_REMEDY}"
        raise ModelError(msg)


def _growth(step: Mapping[str, Any]) -> int:
    """Return how many times as long a step may make a text; of one character, where it adds."""
    added = [step[key] for key in ("content", "prepend") if isinstance(step.get(key), str)]
    bytewise = 2 if step.get("type") == "ByteLevel" else 1
    return bytewise * max(1, *(len(text) for text in added), 1)


def _check_charsmap(path: Path, encoded: Any) -> None:
    """Raise unless a character map of sentencepiece is whole: its reader checks no index."""
    import numpy as np  # not where a command's help is asked for

    try:
        raw = base64.b64decode(encoded, validate=True)
        size = int.from_bytes(raw[:4], "little")
        units = np.frombuffer(raw[4 : 4 + size], dtype="<u4")
        texts = raw[4 + size :]
        texts.decode()
        if len(raw) > MAX_CHARSMAP_BYTES or not len(units) or not _stays_inside(units, texts):
            msg = "an index leads out of it"
            raise ValueError(msg)
    except (TypeError, ValueError, binascii.Error) as error:
        msg = f"{path}: its 'precompiled_charsmap' is damaged: {error}; {_REMEDY}"
        raise ModelError(msg) from error


def _stays_inside(units: Any, texts: bytes) -> bool:
    """Tell whether every step in a double array of Darts leads to one of its units.

    A unit's children lie in the block of 256 at its own index XOR its offset; the first of them
    holds the value, where there is one: the place of a text that ends with a zero.
    """
    import numpy as np

    inner = np.flatnonzero(units >> 31 == 0)
    words = units[inner].astype(np.int64)
    children = inner ^ ((words >> 10) << ((words & (1 << 9)) >> 6))
    if (children | 255).max(initial=0) >= len(units) or not texts.endswith(b"\0"):
        return False
    places = units[children[(words >> 8) & 1 == 1]] & 0x7FFFFFFF
    if places.max(initial=0) >= len(texts):
        return False
    starts = np.frombuffer(texts, dtype=np.uint8)[places]
    return not (starts >> 6 == 0b10).any()  # none is the middle of a character
