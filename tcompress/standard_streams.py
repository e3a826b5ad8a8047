"""The process's standard streams, and how it ends where they cannot be written or were closed."""

import io
import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

import click

from .console import colored, one_line
from .interruption import asked_to_end

EXIT_MACHINE = 6
EXIT_UNREAD = 141
"""As of a process that SIGPIPE ended: whoever read stdout is gone."""
_STANDARD = (0, 1, 2)


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
