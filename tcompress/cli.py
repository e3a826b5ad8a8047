"""The command line: finds commands lazily, and turns exceptions into exit codes."""

import os
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click

from .console import one_line, tame_libraries
from .errors import InputError, MachineError, RequestError, TcompressError
from .interruption import Interruption, leaving_nothing
from .lazy_group import LazyGroup
from .standard_streams import EXIT_MACHINE, Failure, open_streams, take_over_streams

EXIT_UNEXPECTED = 1
EXIT_USAGE = 2
EXIT_INPUT = 5
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
  129  the terminal is gone (SIGHUP)
  130  interrupted (Ctrl-C)
  143  terminated (SIGTERM)
"""


@click.command(
    cls=CommandLine,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(package_name="tcompress", prog_name="tcompress")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Make a trained transformer encoder small and fast, and know what it cost.

    The commands chain: each reads the newest artifact in the workspace that it can build on.

    \b
    Start:   tcompress run --demo                     (everything, on an embedded model)
             tcompress init MODEL --data FILE         (your own)
    """
    _find_current_directory()
    ctx.obj = open_meter


def _find_current_directory() -> None:
    """Native libraries abort where there is none.

    Raises:
        MachineError: If it was deleted, or may not be looked up.
    """
    try:
        Path.cwd()
    except OSError as error:
        msg = f"the current directory cannot be used: {error.strerror}; change to another"
        raise MachineError(msg) from error


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
    """Run the command line.

    Where whoever reads stdout is gone, it ends with `EXIT_UNREAD`, and says nothing.
    """
    open_streams()
    _in_utf8()
    take_over_streams()
    tame_libraries()
    leaving_nothing(partial(cli, prog_name="tcompress"))
