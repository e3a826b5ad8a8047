import os
import subprocess
import sys

import pytest

from tcompress.console import Console

PROGRAM = """
from tcompress.console import Console
console = Console()
console.show("1.5 \N{PLUS-MINUS SIGN}0.1")
console.table(("name", "ms", ""), [("a", 1, console.bar(0.5)), ("b", 2, console.shade(1.0))])
"""


@pytest.mark.parametrize(("fraction", "halves"), [(-1, 0), (0, 0), (0.5, 12), (1, 24), (7, 24)])
def test_bar_is_as_long_as_the_fraction(fraction: float, halves: int) -> None:
    bar = Console().bar(fraction)
    assert 2 * bar.count("█") + bar.count("▌") == halves


def test_shade_gets_darker() -> None:
    assert [Console().shade(f) for f in (0, 0.3, 0.5, 0.7, 1)] == list(" ░▒▓█")


def test_a_log_that_knows_only_ascii_gets_tables_and_bars_in_ascii() -> None:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    text = found.stdout.decode("ascii")
    assert "1.5 +-0.1" in text
    assert "######" in text


def test_a_hostile_name_begins_no_line_of_a_log(capfd: pytest.CaptureFixture[str]) -> None:
    Console().say("reading a\n::error::b")
    Console().warn("c\r\n::error::d")
    lines = capfd.readouterr().err.splitlines()
    assert lines == ["reading a ::error::b", "warning: c ::error::d"]


def test_nothing_that_is_shown_is_a_command_of_a_ci_service(
    capfd: pytest.CaptureFixture[str],
) -> None:
    console = Console()
    console.say("::error::a")
    console.show("note\n::error::b ##[stop-commands]c")
    console.table(("[/red]\n::error::c",), [("::error::d",), ("e\n::error::f",)])
    console.show_json({"##vso[task]": "##[group]"})
    written = capfd.readouterr()
    lines = (written.err + written.out).splitlines()
    assert [line for line in lines if line.strip().startswith("::") or "##" in line] == []
    assert "b # #[stop-commands]c" in written.out


def test_a_wrapped_cell_begins_no_line_with_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for length in range(20, 90):
        Console().table(("class", "n"), [(f"{'a' * length} ::error file=x,line=1::injected", 1)])
    shown = capsys.readouterr().out
    assert "injected" in shown
    assert not [line for line in shown.splitlines() if line.lstrip().startswith("::")]
