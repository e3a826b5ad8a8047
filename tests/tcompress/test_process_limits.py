"""What processes that serve engines may use."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tcompress.errors import ArtifactError
from tcompress.evaluate.engine_process import EngineProcess

_IN_BLOCK = """
import numpy, resource, sys
from pathlib import Path
from tcompress.process_limits import limit_process, limits_of_opening
here = Path(sys.argv[1])
limit_process()
before = [resource.getrlimit(kind) for kind in range(16)]
try:
    with limits_of_opening(here):
        {}
except Exception as error:
    print(type(error).__name__, error)
assert before == [resource.getrlimit(kind) for kind in range(16)]
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems count otherwise")


def _run(body: str, directory: Path) -> subprocess.CompletedProcess[str]:
    words = (sys.executable, "-c", _IN_BLOCK.format(body), directory)
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_opening_a_small_file_may_not_take_ten_gigabytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(1000))
    ended = _run("numpy.empty(10 << 30, 'u1')", tmp_path)
    assert f"InputError {tmp_path}: opening it takes far more memory than its 1000" in ended.stdout
    assert ended.returncode == 0, ended.stderr


def test_opening_may_take_what_a_large_file_needs(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(1 << 30)  # sparse
    ended = _run("numpy.empty(4 << 30, 'u1')", tmp_path)
    assert (ended.stdout, ended.returncode) == ("", 0), ended.stderr


def test_a_process_has_few_files_and_no_core_dump(tmp_path: Path) -> None:
    body = "print(before[resource.RLIMIT_CORE][0], before[resource.RLIMIT_NOFILE][0])"
    core, files = map(int, _run(body, tmp_path).stdout.split())
    assert core == 0
    assert files <= 4096


@pytest.mark.fresh_engines
def test_a_signal_blames_the_file_while_it_is_opened(model_directories: Callable) -> None:
    bert = model_directories("bert")
    with EngineProcess(bert) as engine:
        os.kill(engine.pid, signal.SIGSEGV)  # while it still imports
        message = f"{bert}: .* ended by SIGSEGV as it opened the file.*; make it again"
        with pytest.raises(ArtifactError, match=message):
            engine.opened()
