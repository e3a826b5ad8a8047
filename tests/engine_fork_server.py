"""The process that engines of the tests fork from; run as a script, see `engine_forks`."""

import gc
import os
import pickle
import runpy
import select
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from importlib import import_module

_IMPORTED = (
    "torch",
    "transformers.models.bert.modeling_bert",
    "tcompress.loading",
    "tcompress.compress.precision",
    "tcompress.evaluate.worker",
)
_AUDITED = "TCOMPRESS_TEST_AUDIT"
_MESSAGE_BYTES, _STREAMS, _NUMBER_BYTES = 1 << 17, 4, 8


def _become(module: str, env: dict[str, str], folder: str, streams: list[int]) -> None:
    """Turn this process into one that was started with a module."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # an import may have looked it up already
    sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    for number, handle in enumerate(streams):
        os.dup2(handle, number)
    os.closerange(3, max(streams) + 1)
    signal.set_wakeup_fd(-1)
    if _AUDITED in env:  # which a new process would import
        runpy.run_path(f"{env['PYTHONPATH']}/sitecustomize.py")
    import_module(module).main()


def main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    for name in _IMPORTED:
        import_module(name)
    gc.collect()
    gc.freeze()
    tellers: dict[int, tuple[int, int]] = {}  # where to say how a process ended, by its pidfd
    owned: dict[int, set[int]] = {}  # processes that do not outlive another, by its pidfd
    known: dict[int, int] = {}  # the pidfd of another by its id
    while True:
        for ready in select.select([requests, *tellers, *owned], [], [])[0]:
            if ready is requests:
                message, streams, *_ = socket.recv_fds(requests, _MESSAGE_BYTES, _STREAMS)
                if not message:
                    return
                *asked, owner = pickle.loads(message)
                if (child := os.fork()) == 0:
                    *own, _ = streams
                    _become(*asked, own)
                    return
                *own, tell = streams
                for handle in own:
                    os.close(handle)
                _tell(tell, child)
                tellers[os.pidfd_open(child)] = child, tell
                with suppress(ProcessLookupError):  # it may be dead, and its pipe says so then
                    known[owner] = known.get(owner) or os.pidfd_open(owner)
                    owned.setdefault(known[owner], set()).add(child)
            elif ready in owned:
                for child in owned[ready]:  # as the kernel does for children
                    os.kill(child, signal.SIGKILL)
                _forget(ready, known, owned)
            elif ready in tellers:
                child, tell = tellers.pop(ready)
                _tell(tell, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                os.close(tell)
                os.close(ready)
                for handle, children in list(owned.items()):
                    children.discard(child)
                    if not children:
                        _forget(handle, known, owned)


def _forget(handle: int, known: dict[int, int], owned: dict[int, set[int]]) -> None:
    del owned[handle]
    for owner in [owner for owner, found in known.items() if found == handle]:
        del known[owner]
    os.close(handle)


def _tell(stream: int, number: int) -> None:
    with suppress(BrokenPipeError):  # whoever asked may be dead
        os.write(stream, number.to_bytes(_NUMBER_BYTES, signed=True))


if __name__ == "__main__":
    main()
