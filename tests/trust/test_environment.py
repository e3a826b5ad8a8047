"""Odd homes, paths, streams, locales, permissions and clocks."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tcompress import stages
from tcompress.workspace import Workspace

from .processes import Zygote
from .zygote import FORKED_ENGINES

COMMANDS = (
    ("score", "--criterion", "curvature"),
    ("prune", "--heads", "0.3"),
    ("quantize",),
    ("export",),
)
_HOMES = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TCOMPRESS_CACHE", "HF_HOME", "USER")
NOWHERE = "/proc/nowhere"  # not even root may write there
ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "no home": {"without": _HOMES},
    "home that cannot be written": {
        "env": {"HOME": NOWHERE, "XDG_CACHE_HOME": NOWHERE, "TCOMPRESS_CACHE": NOWHERE}
    },
    "no terminal, no colors": {"env": {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "20"}},
}
PATHS = {
    "blanks": "a workspace  of mine ",
    "emoji": "🎉 ünï",
    "newline": "two\nlines",
    "255 bytes": "x" * 255,
    "looks like an option": "--force",
    "looks like markup": "[red]**x**<b>",
}
FULL = "error: stdout cannot be written: No space left on device\n"
# A command of which only what it prints is of interest.
PRINTS = """
from tcompress import cli, console
doctor = cli.cli.get_command(None, "doctor")
out = console.Console()
doctor.callback = lambda **_: {print}
cli.main()
"""
PRINTED = {
    "text": 'out.show("a")',
    "a table": 'out.table(("a",), [("b",)])',
    "json": "out.show_json({})",
}


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("zygote"), {FORKED_ENGINES: "1"}) as zygote:
        yield zygote


Chain = Callable[..., None]


@pytest.fixture
def chain(zygote: Zygote, model_directories: Callable, reviews_file: Path) -> Chain:
    """Run the stages in a workspace, as one line each."""

    def run(workspace: Path, **options: Any) -> None:
        source = ("init", model_directories("bert"), "--data", reviews_file)
        last = ("inspect", workspace / "artifacts/export/onnx")
        for words in (source, *COMMANDS, last):
            place = () if words is last else (f"--workspace={workspace}",)
            ended = zygote.run(*words, *place, **options)
            assert ended.code == 0, ended.stderr
            assert "Traceback" not in ended.stderr

    return run


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_stages_work_with(name: str, chain: Chain, tmp_path: Path) -> None:
    chain(tmp_path / "w", **ENVIRONMENTS[name])


@pytest.mark.parametrize("name", PATHS)
def test_the_stages_work_in_a_path_with(name: str, chain: Chain, tmp_path: Path) -> None:
    chain(tmp_path / PATHS[name])


@pytest.mark.parametrize(
    ("umask", "file", "directory"), [(0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_files_can_be_read_by_whom_the_umask_says(
    chain: Chain, tmp_path: Path, umask: int, file: int, directory: int
) -> None:
    chain(tmp_path / "w", umask=umask)
    for path in (tmp_path / "w").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (directory if path.is_dir() else file), path


def test_a_directory_behind_a_link_is_the_same_workspace(
    chain: Chain, zygote: Zygote, tmp_path: Path
) -> None:
    chain(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    for words in COMMANDS[1:]:
        model = {"quantize": "prune", "export": "quantize"}.get(words[0])
        source = () if model is None else ("--model", f"artifacts/{model}")
        ended = zygote.run(
            *words, *source, cwd=tmp_path / "link", env={"PWD": str(tmp_path / "link")}
        )
        assert ended.stderr.strip().endswith("is up to date"), ended.stderr


def _in_shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        f'python() {{ "{sys.executable}" "$@"; }}; {command}',
        shell=True,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--version >&-", 0, ""),
        ("--version 2>&-", 0, ""),
        ("--version <&- >&- 2>&-", 0, ""),
        ("--version >/dev/full", 6, FULL),
        ("doctor --help >/dev/full", 6, FULL),
        ("--version >/dev/full 2>&1", 6, ""),
        ("inspect nothing --json >&-", 5, "error: "),
        ("inspect nothing 2>&-", 5, ""),
        ("inspect nothing 2>/dev/full", 5, ""),
        ("inspect --no-such-option 2>/dev/full", 2, ""),
    ],
)
def test_streams_that_are_closed_or_full_change_no_exit_code_but_of_what_is_lost(
    tmp_path: Path, words: str, code: int, said: str
) -> None:
    ended = _in_shell(f"python -m tcompress {words}", tmp_path)
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.startswith(said)
    assert ended.stderr.count("\n") == bool(said)


@pytest.mark.parametrize("what", PRINTED)
def test_what_cannot_be_printed_is_an_error_unless_nobody_reads(what: str) -> None:
    reading, unread = os.pipe()
    os.close(reading)
    full = os.open("/dev/full", os.O_WRONLY)
    script = PRINTS.format(print=PRINTED[what])
    for stdout, code, said in ((full, 6, FULL), (unread, 141, "")):
        ended = subprocess.run(
            [sys.executable, "-c", script, "doctor"],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        os.close(stdout)
        assert (ended.returncode, ended.stderr) == (code, said)


def test_files_that_are_opened_take_no_number_of_a_closed_stream(tmp_path: Path) -> None:
    script = (
        "import os, sys; from tcompress.standard_streams import open_streams; open_streams();"
        "assert os.open('/dev/zero', os.O_RDONLY) > 2;"
        "print('lost'); print('lost', file=sys.stderr);"
        "os.system('echo lost; echo lost >&2') and sys.exit(1)"
    )
    ended = _in_shell(f'python -c "{script}" <&- >&- 2>&-', tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.parametrize("command", ["score", "inspect --json nothing", "doctor"])
def test_a_current_directory_that_was_deleted_is_named(tmp_path: Path, command: str) -> None:
    (tmp_path / "gone").mkdir()
    ended = _in_shell(f"cd gone; rmdir ../gone; python -m tcompress {command}", tmp_path)
    assert ended.returncode == 6
    assert ended.stderr == (
        "error: the current directory cannot be used: No such file or directory;"
        " change to another\n"
    )


def test_what_was_written_last_is_the_newest_even_if_the_clock_jumped_back(
    text_workspace: Path, tcompress: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        year_now = 2040

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(cls.year_now, 1, 1, tzinfo=UTC)

    monkeypatch.setattr(stages, "datetime", Clock)
    for ratio, year in (("0.3", 2040), ("0.5", 2001)):
        Clock.year_now = year
        output = text_workspace / "artifacts" / f"prune-{ratio}"
        words = ("prune", "--heads", ratio, "--criterion", "magnitude", "--output", output)
        assert tcompress(*words, "--workspace", text_workspace).exit_code == 0
    newest = Workspace.open(text_workspace).newest_encoder(("prune",))
    assert newest.name == "prune-0.5"


def test_a_workspace_that_cannot_be_written_can_be_read(
    chain: Chain, zygote: Zygote, tmp_path: Path
) -> None:
    workspace, mounted = tmp_path / "w", tmp_path / "read-only"
    chain(workspace)
    mounted.mkdir()
    bound = subprocess.run(
        ["mount", "--bind", workspace, mounted], capture_output=True, text=True, check=False
    )
    if bound.returncode:
        pytest.skip(f"only with a mount of its own, which is refused here: {bound.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", mounted], check=True)
        assert zygote.run("inspect", mounted / "artifacts/prune").code == 0
        assert (
            zygote.run(*COMMANDS[1], "--workspace", mounted).stderr.strip().endswith("up to date")
        )
        refused = zygote.run("prune", "--heads", "0.6", "--force", "--workspace", mounted)
        assert refused.code == 6
        assert "Read-only file system" in refused.stderr
        assert "Traceback" not in refused.stderr
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_names_that_the_locale_does_not_know_reach_native_libraries(
    text_workspace: Path, tmp_path: Path
) -> None:
    place = text_workspace.rename(tmp_path / "ünï 🎉")
    # without Python's own remedies
    env = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    script = "from tcompress.cli import main; main()"
    for words in (("quantize",), ("inspect", place / "artifacts/quantize", "--json")):
        ended = subprocess.run(
            [sys.executable, "-c", script, *words],
            env=os.environ | env | {"TCOMPRESS_WORKSPACE": str(place)},
            capture_output=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["verified"]
