"""Files with a form of their own: CoNLL columns, and JSON documents such as SQuAD's."""

import re
import sys
from collections.abc import Collection, Iterator
from itertools import chain, islice
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import pandas as pd

from ..errors import DataError
from .columns import Columns
from .examples import Examples
from .streams import UNREADABLE, open_bytes, open_text
from .tables import CHUNK_ROWS, frame_of, parse_values

CONLL_SUFFIXES = (".conll", ".bio", ".txt")
MAX_WORDS = 100_000
_DOCUMENT_START = "-DOCSTART-"
Sentence = tuple[tuple[str, ...], tuple[str, ...]]


def read_conll(path: Path, columns: Columns) -> Iterator[Examples]:
    """Read sentences of one word a line, with its tag in the last column, between blank lines.

    Args:
        path: The file; columns are parted by tabs or blanks.
        columns: Only its stride counts, and that it asks for no slices.

    Yields:
        Examples of at most `CHUNK_ROWS` sentences.

    Raises:
        DataError: If a line has no tag, or the file is no text.
    """
    if asked := [*columns.slices, *filter(None, [columns.group])]:
        msg = f"{path}: no column {asked[0]!r}; a CoNLL file has words and tags only"
        raise DataError(msg)
    start = 0
    sentences = _sentences(path)
    while chunk := list(islice(sentences, CHUNK_ROWS)):
        words, tags = zip(*chunk, strict=True)
        ids = tuple(str(i) for i in range(start, start + len(chunk)))
        yield Examples(str(path), ids, words=words, tags=tags, stride=columns.stride)
        start += len(chunk)


def _sentences(path: Path) -> Iterator[Sentence]:
    pairs: list[tuple[str, str]] = []
    for pair in chain(_pairs(path), [None]):
        if pair is not None:
            pairs.append(pair)
            if len(pairs) > MAX_WORDS:
                msg = (
                    f"{path}: over {MAX_WORDS:,} words without a blank line, from "
                    f"{shortened(pairs[0][0])} on; part the sentences by blank lines"
                )
                raise DataError(msg)
        elif pairs:
            yield tuple(word for word, _ in pairs), tuple(tag for _, tag in pairs)
            pairs = []


def _pairs(path: Path) -> Iterator[tuple[str, str] | None]:
    """Yield words with their tags, and None between sentences."""
    try:
        with open_text(path) as stream:
            for number, line in enumerate(stream, 1):
                yield _pair(path, number, line.strip("\n\r\t "))
    except UNREADABLE as error:
        msg = f"{path}: cannot be read as CoNLL columns: {error}"
        raise DataError(msg) from error


def _pair(path: Path, number: int, line: str) -> tuple[str, str] | None:
    if not line or line.startswith(_DOCUMENT_START):
        return None
    # other blanks, such as a non-breaking one, belong to the word
    parts = line.split("\t") if "\t" in line else re.split(" +", line)
    if len(parts) < 2:
        msg = (
            f"{path}: line {number} has no tag: {shortened(line)}; each line is a word, and its "
            "tag in the last column"
        )
        raise DataError(msg)
    # words recur; each takes ten times its bytes
    return sys.intern(parts[0]), sys.intern(parts[-1])


def read_json(path: Path, wanted: Collection[str]) -> Iterator[pd.DataFrame]:
    """Read a JSON document: a list of records, or questions in the form of SQuAD, v1.1 or v2.

    Args:
        path: The file.
        wanted: Names of the columns that are kept.

    Yields:
        One frame.

    Raises:
        DataError: If it is of another form.
    """
    try:
        with open_bytes(path) as stream:
            document = parse_values(stream.read(), str(path), expected=object)
        records = _records(document)
    except (*UNREADABLE, TypeError, AttributeError) as error:
        reason = f"no {error} in it" if isinstance(error, KeyError) else str(error)
        msg = f"{path}: neither a list of records nor questions in SQuAD's form: {reason}"
        raise DataError(msg) from error
    yield frame_of(records, wanted)


def _records(document: Any) -> list[dict[str, Any]]:
    rows = document["data"] if isinstance(document, dict) else document
    return [
        record
        for row in rows
        for record in (_questions(row["paragraphs"]) if "paragraphs" in row else [dict(row)])
    ]


def _questions(paragraphs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for paragraph in paragraphs:
        for question in paragraph["qas"]:
            yield {
                "id": question["id"],
                "question": question["question"],
                "context": paragraph["context"],
                "answers": question["answers"],
            }
