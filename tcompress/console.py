"""What commands say: the product on stdout, the talk on stderr."""

import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import click

ItemT = TypeVar("ItemT")
_SECONDS_BETWEEN_LINES = 5.0
_BAR_WIDTH = 12
_LONGEST_CELL = 400
LONGEST_LINE = 4_000
"""Longer ones are cut: no path is, and what somebody else wrote may be."""
# Services take a line that begins with two colons for a command; `##[` and `##name[` anywhere.
_COMMAND = re.compile(r"^(\s*)::", re.MULTILINE)
_COMMAND_WITHIN = re.compile(r"##(?=\w*\[)")
_SHADES = " ░▒▓█"
# For terminals and logs that cannot show more than ASCII.
_IN_ASCII = str.maketrans(
    dict(zip("░▒▓█▌", ".:*#-", strict=True)) | {"±": "+-", "×": "x", "–": "-"}
)


class Console:
    """Where a command's words go.

    Args:
        as_json: Whether stdout carries one JSON document and nothing else.
        quiet: Whether to keep silent about progress.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet

    def say(self, message: str) -> None:
        """Tell the user what happens, on stderr.

        Args:
            message: One line.
        """
        if not self.quiet:
            click.echo(one_line(message), err=True)

    def warn(self, message: str) -> None:
        """Warn, on stderr, even when quiet.

        Args:
            message: One line.
        """
        click.echo(f"{colored('warning:', 'yellow')} {one_line(message)}", err=True)

    def show_json(self, document: Any) -> None:
        """Print the command's one JSON document.

        Args:
            document: What to print.
        """
        text = json.dumps(document, indent=2, allow_nan=False)
        # The same document, without what a CI service takes for a command.
        click.echo(text.replace("##", "#\\u0023"))

    def show(self, *lines: str) -> None:
        """Print a part of the product as text.

        Args:
            lines: Lines; what stands in one cannot begin another.
        """
        for line in lines:
            click.echo(shown(one_line(line)))

    def bar(self, fraction: float) -> str:
        """Return a bar for a cell of a table, longer for more.

        Args:
            fraction: Part of the full length, 0 to 1.
        """
        halves = round(2 * _BAR_WIDTH * min(max(fraction, 0.0), 1.0))
        return "█" * (halves // 2) + "▌" * (halves % 2)

    def shade(self, fraction: float) -> str:
        """Return a character that is darker for more.

        Args:
            fraction: How dark, 0 to 1.
        """
        return _SHADES[min(len(_SHADES) - 1, int(fraction * len(_SHADES)))]

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, dense: bool = False
    ) -> None:
        """Print a table; the first column and one without a heading are left-aligned.

        Args:
            columns: Headings.
            rows: Cells, shown by `str`.
            dense: Whether columns stand close together.
        """
        from rich import box
        from rich.console import Console as RichConsole
        from rich.table import Table
        from rich.text import Text

        padding = (0, 1, 0, 0) if dense else (0, 1)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=padding, collapse_padding=dense)
        for i, name in enumerate(columns):
            table.add_column(Text(_cell(name)), justify="left" if i == 0 or not name else "right")
        for row in rows:
            table.add_row(*(Text(_cell(str(cell))) for cell in row))
        RichConsole(file=sys.stdout, highlight=False, soft_wrap=False).print(table)

    def track(self, items: Iterable[ItemT], what: str, total: int | None = None) -> Iterator[ItemT]:
        """Pass items on and show how far it is, with the time left.

        A bar on a terminal; elsewhere a line every few seconds.

        Args:
            items: What is worked through.
            what: What is being done, for the user.
            total: Number of items, where `len` does not tell.

        Yields:
            The items.
        """
        if total is None and isinstance(items, Sized):
            total = len(items)
        if self.quiet:
            yield from items
        elif sys.stderr.isatty():
            yield from self._bar(items, what, total)
        else:
            yield from self._lines(items, what, total)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Say that something begins, and how long it took when it ends well.

        Args:
            what: What is being done.

        Yields:
            Nothing.
        """
        start = time.perf_counter()
        self.say(f"{what} ...")
        yield
        self.say(f"{what}: done in {time.perf_counter() - start:.1f} s")

    def _bar(self, items: Iterable[ItemT], what: str, total: int | None) -> Iterator[ItemT]:
        from rich.console import Console as RichConsole
        from rich.markup import escape
        from rich.progress import Progress

        with Progress(console=RichConsole(file=sys.stderr), transient=True) as progress:
            yield from progress.track(items, description=escape(one_line(what)), total=total)

    def _lines(self, items: Iterable[ItemT], what: str, total: int | None) -> Iterator[ItemT]:
        start = last = time.perf_counter()
        for done, item in enumerate(items):
            now = time.perf_counter()
            if now - last >= _SECONDS_BETWEEN_LINES and done:
                last = now
                left = f", {(now - start) / done * (total - done):.0f} s left" if total else ""
                self.say(f"{what}: {done}/{total or '?'}{left}")
            yield item


def _cell(text: str) -> str:
    # where a cell is wrapped, any of its words may stand at the beginning of a line
    return shown(one_line(text, _LONGEST_CELL)).replace("::", ": :")


def shown(text: str) -> str:
    """Return text as the standard output can show it.

    Args:
        text: Any text.
    """
    unicode = (sys.stdout.encoding or "ascii").lower().startswith("utf")
    return text if unicode else text.translate(_IN_ASCII)


def colored(text: str, color: str) -> str:
    """Return text in a color, unless `NO_COLOR` is set; click leaves it out without a terminal.

    Args:
        text: The text.
        color: A color that click knows.
    """
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=color)


def one_line(text: str, longest: int = LONGEST_LINE) -> str:
    """Return text as one inert line, cut where it is absurdly long.

    Args:
        text: Any text.
        longest: Most characters.
    """
    line = inert(" ".join(text[: longest + 1].splitlines()))
    return line if len(line) <= longest else f"{line[:longest]}…"


def printable(text: str) -> str:
    """Return text without characters that steer a terminal.

    Names and texts come from files of unknown origin.

    Args:
        text: Any text.
    """
    shown = (c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return "".join(shown)


def inert(text: str) -> str:
    """Return text that steers neither a terminal nor a CI service that reads the log.

    Args:
        text: Any text.
    """
    return _COMMAND.sub(r"\1: :", _COMMAND_WITHIN.sub("# #", printable(text)))


def tame_libraries() -> None:
    """Keep what libraries log and warn of to one inert line each: they quote names of models."""
    make = logging.getLogRecordFactory()

    def make_inert(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        with suppress(TypeError, ValueError):  # arguments that do not fit are the handler's to tell
            record.msg, record.args = one_line(record.getMessage()), None
        return record

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> str:
        return f"{category.__name__}: {one_line(str(message))}\n"

    logging.setLogRecordFactory(make_inert)
    warnings.formatwarning = show
