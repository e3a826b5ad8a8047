"""What commands say: the product on stdout, the talk on stderr."""

import io
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TypeVar

import click

from .interruption import asked_to_end

ItemT = TypeVar("ItemT")
_SECONDS_BETWEEN_LINES = 5.0
_BAR_WIDTH = 12
_LONGEST_CELL = 400
LONGEST_LINE = 4_000
"""Longer ones are cut: no path is, and what somebody else wrote may be."""
# Services take a line that begins with two colons for a command; `##[` and `##name[` anywhere.
_COMMAND = re.compile(r"^(\s*)::", re.MULTILINE)
_COMMAND_WITHIN = re.compile(r"##(?=\w*\[)")
EXIT_MACHINE = 6
EXIT_UNREAD = 141
"""As of a process that SIGPIPE ended: whoever read stdout is gone."""
_STANDARD = (0, 1, 2)
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


class Failure(click.ClickException):
    """A tcompress error as the command line shows it: one line, and an exit code.

    Args:
        message: The line.
        exit_code: The process's exit code.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        """Print the line on stderr.

        Args:
            file: Where to print instead.
        """
        if not asked_to_end():  # that is said elsewhere, and the cause of this
            line = one_line(" ".join(self.message.split()))
            click.echo(f"{colored('error:', 'red')} {line}", file=file, err=True)


class Product(io.TextIOWrapper):
    """The standard output: where it cannot be written, the command has failed."""

    def write(self, text: str) -> int:
        """Write text.

        Args:
            text: The text.

        Returns:
            How many characters.

        Raises:
            Failure: If the system refuses.
            Exit: If nobody reads any more, with `EXIT_UNREAD`, and nothing said.
        """
        if text == "":  # click tries that, and swallows what an unbuffered stream raises
            return 0
        try:
            return super().write(text)
        except OSError as error:
            _give_up(self, error)

    def flush(self) -> None:
        """Write what is held back.

        Raises:
            Failure: If the system refuses.
            Exit: If nobody reads any more, with `EXIT_UNREAD`, and nothing said.
        """
        try:
            super().flush()
        except OSError as error:
            _give_up(self, error)


class Talk(io.TextIOWrapper):
    """The standard error output: where it cannot be written, the command goes on in silence."""

    def write(self, text: str) -> int:
        """Write text.

        Args:
            text: The text.

        Returns:
            How many characters.
        """
        with suppress(OSError):
            return super().write(text)
        _silence(self)
        return len(text)

    def flush(self) -> None:
        """Write what is held back."""
        try:
            super().flush()
        except OSError:
            _silence(self)


def _give_up(stream: io.TextIOWrapper, error: OSError) -> NoReturn:
    _silence(stream)
    if isinstance(error, BrokenPipeError):
        raise click.exceptions.Exit(EXIT_UNREAD) from error
    raise Failure(f"stdout cannot be written: {error.strerror}", EXIT_MACHINE) from error


def _silence(stream: io.TextIOWrapper) -> None:
    """Let a stream lead nowhere, or the interpreter would try it once more at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def open_streams() -> None:
    """Let the standard streams that were closed lead nowhere, before a file takes their numbers."""
    while (handle := os.open(os.devnull, os.O_RDWR)) in _STANDARD:
        os.set_inheritable(handle, True)
    os.close(handle)
    for number, name in zip(_STANDARD, ("stdin", "stdout", "stderr"), strict=True):
        if getattr(sys, name) is None:
            stream = os.fdopen(number, "w" if number else "r")
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)  # keeps it open when another takes its place


def take_over_streams() -> None:
    """Say how a command ends whose output cannot be written, and write whatever its encoding."""
    sys.stdout = _taken_over(Product, sys.stdout)
    sys.stderr = _taken_over(Talk, sys.stderr)


def _taken_over(kind: type[io.TextIOWrapper], stream: Any) -> io.TextIOWrapper:
    return kind(
        stream.buffer,
        encoding=stream.encoding,
        # A log that knows ASCII only must not end a run that took an hour.
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


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
