"""Telling how far a stage is."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

ItemT = TypeVar("ItemT")


class Progress(Protocol):
    """Passes items on and shows how far it is, as `Console.track` does."""

    def __call__(self, items: Iterable[ItemT], what: str, total: int, /) -> Iterable[ItemT]:
        """Pass items on.

        Args:
            items: What is worked through.
            what: What is being done, for the user.
            total: Number of items.
        """


def silent(items: Iterable[ItemT], _what: str, _total: int, /) -> Iterable[ItemT]:
    """Pass items on and show nothing.

    Args:
        items: What is worked through.
    """
    return items
