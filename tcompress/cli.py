"""The command line: finds commands lazily, and turns exceptions into exit codes."""

import os
import sys
import traceback
from functools import partial
from typing import Any, NoReturn

import click

from . import __version__
from .console import colored, one_line, tame_libraries
from .errors import InputError, MachineError, RequestError, TcompressError
from .interruption import Interruption, asked_to_end, leaving_nothing
from .lazy_group import LazyGroup

EXIT_UNEXPECTED = 1
EXIT_USAGE = 2
EXIT_INPUT = 5
EXIT_MACHINE = 6
EXIT_INTERRUPTED = 130

_DEBUG_VARIABLE = "TCOMPRESS_DEBUG"
_COMMANDS = {
    "init": "tcompress.compress.init_command:init",
    "score": "tcompress.compress.score_command:score",
    "prune": "tcompress.compress.prune_command:prune",
    "finetune": "tcompress.compress.finetune_command:finetune",
    "quantize": "tcompress.compress.quantize_command:quantize",
    "export": "tcompress.export.commands:export",
    "evaluate": "tcompress.evaluate.commands:evaluate",
    "gate": "tcompress.evaluate.gating.command:gate",
    "run": "tcompress.pipeline:run",
    "inspect": "tcompress.inspect_command:inspect",
    "doctor": "tcompress.evaluate.doctor_command:doctor",
}


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


class CommandLine(LazyGroup):
    """The root group; turns what a command raises into an exit code."""

    members = _COMMANDS

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command and turn what it raises into an exit code.

        Args:
            ctx: Click's context.
        """
        try:
            return super().invoke(ctx)
        except (click.Abort, click.exceptions.Exit):
            raise
        except click.ClickException as error:
            error.message = one_line(error.message)  # type: ignore[misc]
            raise
        except BrokenPipeError:
            raise  # click ends quietly when the reader of stdout is gone
        except Interruption:
            _show_trace()
            raise
        except KeyboardInterrupt:
            _fail("interrupted", EXIT_INTERRUPTED)
        except TcompressError as error:
            _fail(str(error), _exit_code(error))
        except (OSError, MemoryError) as error:
            _fail(f"{type(error).__name__}: {error}", EXIT_MACHINE)
        except Exception as error:  # the last resort: a fault of tcompress's own
            hint = f"set {_DEBUG_VARIABLE}=1 for the traceback"
            _fail(f"unexpected {type(error).__name__}: {error} ({hint})", EXIT_UNEXPECTED)


def _exit_code(error: TcompressError) -> int:
    for kind, code in (
        (RequestError, EXIT_USAGE),
        (InputError, EXIT_INPUT),
        (MachineError, EXIT_MACHINE),
    ):
        if isinstance(error, kind):
            return code
    return EXIT_UNEXPECTED


def _fail(message: str, code: int) -> NoReturn:
    _show_trace()
    raise Failure(message, code)


def _show_trace() -> None:
    if os.environ.get(_DEBUG_VARIABLE):
        traceback.print_exc(file=sys.stderr)


_EPILOG = """\b
Exit codes:
    0  done, or the gate passes
    1  unexpected failure (also: an export that failed its parity check)
    2  wrong usage
    3  gate: regression shown
    4  gate: inconclusive, not enough evidence
    5  bad or unsafe input
    6  environment or I/O (missing extra, disk full, no GPU)
  130  interrupted (Ctrl-C)
  143  terminated (SIGTERM)
"""


@click.command(
    cls=CommandLine,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(__version__, prog_name="tcompress")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Make a trained transformer encoder small and fast, and know what it cost.

    The commands chain: each reads the newest artifact in the workspace that it can build on.

    \b
    Start:   tcompress run --demo                     (everything, on an embedded model)
             tcompress init MODEL --data FILE         (your own)
    """
    ctx.obj = open_meter


def open_meter(encoder: Any, serving: Any) -> Any:
    """Start an engine that times shapes of an encoder: the `OpenMeter` that commands get as `obj`.

    It stands here because the stages that plan by it may not import the one that measures.

    Args:
        encoder: The `Encoder`.
        serving: The `Serving`.

    Returns:
        A `LatencyMeter`, to be used in a `with` statement.
    """
    from tcompress.evaluate.costing import EngineMeter

    return EngineMeter(encoder, serving)


def _in_utf8() -> None:
    """Start over where names of files are not UTF-8: native libraries take them for that."""
    if sys.getfilesystemencoding() == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def main() -> None:
    """Run the command line; the entry point of the console script."""
    _in_utf8()
    for stream in (sys.stdout, sys.stderr):
        # A log that knows ASCII only must not end a run that took an hour.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    tame_libraries()
    leaving_nothing(partial(cli, prog_name="tcompress"))
