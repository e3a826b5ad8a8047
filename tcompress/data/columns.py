"""What the reader of a file is told about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import RequestError
from .examples import STRIDE

TAG_COLUMNS = ("tags", "ner_tags")
# What `rows` looks for by itself.
_CUSTOMARY = ("id", "image", "tokens", *TAG_COLUMNS, "question", "context", "answers")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that matter in a table, and how to read them.

    Where a table has no column `text`, the customary ones are looked for: `tokens` with `tags` or
    `ner_tags`, and `question` and `context` with `answers`.

    Attributes:
        text: Column of the text; of lists of words, where words are labelled.
        text_pair: Column of the second text, or None.
        label: Column of the label; of lists, where an example has several labels or its words have.
        group: Column whose values must stay on one side of a split, or None.
        slices: Columns by whose values accuracy is also told apart; arrays for tensor data.
        label_separator: What stands between the labels of one example, or None for one label.
        label_columns: Columns of 0 and 1, one per label, in place of `label`.
        label_map: The model's label names by the data's.
        stride: Tokens that neighbouring windows of a context share.
        image: Column of paths of images, relative to the table's directory, in place of `text`.
    """

    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    group: str | None = None
    slices: tuple[str, ...] = ()
    label_separator: str | None = None
    label_columns: tuple[str, ...] = ()
    label_map: Mapping[str, str] = field(default_factory=dict)
    stride: int = STRIDE
    image: str | None = None

    def __post_init__(self) -> None:
        if self.label_columns and self.label_separator is not None:
            msg = "--label-columns and --label-separator exclude each other"
            raise RequestError(msg)
        if self.label_separator == "":
            msg = "--label-separator must not be empty"
            raise RequestError(msg)
        if self.stride < 0:
            msg = f"--stride must be at least 0, got {self.stride}"
            raise RequestError(msg)

    @property
    def readable(self) -> frozenset[str]:
        """Names of all columns that may count; whatever else a table has is not read."""
        named = (self.text, self.text_pair, self.label, self.group, self.image)
        return frozenset(filter(None, (*named, *self.slices, *self.label_columns, *_CUSTOMARY)))
