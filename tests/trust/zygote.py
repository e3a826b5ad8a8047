"""A process that has imported everything, and forks for every command line it is given.

A command spends most of its first seconds on imports; hundreds of commands are killed in the tests.
Reads a JSON line per command from its standard input, answers with the child's id, and then with
how it ended. Run as a script.
"""

import gc
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NoReturn

MODULES = (
    "compress.score_command",
    "compress.prune_stage",
    "compress.finetuning",
    "compress.recovery",
    "compress.mixed_stage",
    "compress.init_command",
    "export.exporting",
    "export.serving",
    "evaluate.commands",
    "evaluate.document",
    "evaluate.gating.command",
)
FORKED_ENGINES = "TCOMPRESS_TEST_FORKED_ENGINES"
"""Set where engines are to be forked, too, from a server that all commands share."""


def _become(request: dict) -> None:
    """Turn this process into one that was started with a command line."""
    os.chdir(request["cwd"])
    os.umask(request["umask"])
    os.environ.update(request["env"])
    tempfile.tempdir = None  # an import may have looked it up already
    for name in request["without"]:
        os.environ.pop(name, None)
    for stream, path in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(handle, stream)
        os.close(handle)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` of the tests is not the command's
    if "fault" in request:
        import faults

        faults.arm(request["fault"], request["trace"])
    if "limits" in request:
        import resource

        limits = request["limits"]
        resource.setrlimit(resource.RLIMIT_AS, (limits["memory_bytes"],) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (round(limits["seconds"]) + 1,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if "audit" in request:
        import audit

        sys.dont_write_bytecode = True
        audit.arm(request["audit"])
    # as bytes of UTF-8 reach a process of any locale
    words = (word.encode("utf-8", "surrogateescape") for word in request["words"])
    sys.argv = ["tcompress", *map(os.fsdecode, words)]


def _end(tcompress: Callable[[], None]) -> NoReturn:
    """Run the command, and end without taking apart, for seconds, what was imported."""
    code = 1
    try:
        tcompress()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else error.code is not None
    except BaseException:
        traceback.print_exc()  # the interpreter would, were it to end
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _instead(module: str, name: str) -> Callable[[], None]:
    """Return what is called in place of the command line: `run` of a module beside this one."""
    sys.path.append(str(Path(__file__).parents[1]))
    return partial(import_module(f"trust.{module}").run, name)


def main() -> None:
    for name in MODULES:
        import_module(f"tcompress.{name}")
    from transformers import BertForSequenceClassification  # noqa: F401 - lazy otherwise

    from tcompress import worker_process
    from tcompress.cli import main as tcompress

    if FORKED_ENGINES in os.environ:
        sys.path.append(str(Path(__file__).parents[1]))
        from engine_forks import Forking, ForkServer

        worker_process.subprocess = Forking
        Forking._server = ForkServer()

    gc.collect()
    gc.freeze()
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            replies.close()
            _become(request)
            _end(_instead(*request["instead"]) if "instead" in request else tcompress)
        print(child, file=replies, flush=True)
        print(os.waitpid(child, 0)[1], file=replies, flush=True)


if __name__ == "__main__":
    main()
