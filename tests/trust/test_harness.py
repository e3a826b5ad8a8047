"""The harness can fail: a command with a seeded defect of each kind is found out."""

from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest

from . import harness as under_test
from .case import Case, Opens, Seeds
from .harness import Harness, Outcome

WORDS = ("{input}", "{output}", "{canary}")
SEEN = {
    "unpickles": ("executions", "canary"),
    "imports": ("executions", "module_of_the_case"),
    "evaluates": ("executions", "code"),
    "starts_a_process": ("executions", "process"),
    "runs_a_shell": ("executions", "os.system"),
    "forks": ("executions", "os.fork"),
    "connects": ("executions", "socket.connect"),
    "sends": ("executions", "socket.sendto"),
    "asks_for_an_address": ("executions", "socket.gethostbyname"),
    "reads_outside": ("outside", "read"),
    "reads_through_a_link": ("outside", "read"),
    "writes_outside": ("outside", "write"),
    "removes_outside": ("outside", "os.rmdir"),
    "leaves_a_part": ("partial", "model.safetensors"),
    "leaves_a_staging_directory": ("partial", ".tcompress-x.tmp"),
    "leaves_a_temporary_file": ("partial", "tcompress-x"),
    "prints_a_traceback": ("tracebacks", ""),
    "says_it_twice": ("wrong", "2 lines"),
    "colours": ("wrong", "control characters"),
    "says_nothing": ("wrong", "0 lines"),
    "accepts": ("wrong", "exit code 0"),
}
"""Defects of one kind alone: the heading that they stand under, and words of the finding."""
ALSO_SEEN = {
    "child_reads": {"executions": "process", "outside": "read /etc/passwd"},
    "changes_its_input": {"outside": "write", "partial": "model.bin"},
    "raises": {"tracebacks": "LookupError", "wrong": "exit code 1"},
    "takes_memory": {"tracebacks": "MemoryError", "wrong": "exit code 1"},
    "crashes": {"deaths": "signal 11", "wrong": "exit code -11"},
}
SLOW = {"hangs": "took more than", "computes_for_ever": "signal"}


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    root = tmp_path_factory.mktemp("defects").resolve()
    places = {f.name: root / "seeds" / f.name for f in fields(Seeds)}
    places["bert"].mkdir(parents=True)
    root.joinpath("foreign").mkdir()
    root.joinpath("runs").mkdir()
    running = Harness(root / "runs", Seeds(**places | {"canary": root / "canary"}))
    yield running
    running.close()


def _build(seeds: Seeds, directory: Path) -> Path:
    directory.joinpath("module_of_the_case.py").write_text("")
    directory.joinpath("model.bin").write_bytes(b"bad")
    return directory


def _outcome(harness: Harness, defect: str, patch: pytest.MonkeyPatch) -> Outcome:
    zygote = harness._zygote
    patch.setattr(zygote, "start", partial(zygote.start, instead=("defects", defect)))
    patch.setattr(under_test, "COMMANDS", {Opens.MODEL: (WORDS,)})
    (found,) = harness.outcomes(Case(defect, "F0", Opens.MODEL, _build, says="damaged"))
    return found


def _headings(outcome: Outcome) -> dict[str, str]:
    found: dict[str, str] = {}
    for fault in outcome.faults:
        heading, line = fault.split(": ", 1)
        found[heading] = f"{found.get(heading, '')}\n{line}"
    return found


def test_no_fault_where_there_is_no_defect(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = _outcome(harness, "nothing", monkeypatch)

    assert not outcome.faults
    assert outcome.ended.code == 5


@pytest.mark.parametrize("defect", SEEN)
def test_defect_is_found_under_its_heading_alone(
    defect: str, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    heading, words = SEEN[defect]

    found = _headings(_outcome(harness, defect, monkeypatch))

    assert found.keys() == {heading}
    assert words in found[heading]


@pytest.mark.parametrize("defect", ALSO_SEEN)
def test_defect_that_breaks_two_promises_is_found_under_both(
    defect: str, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _headings(_outcome(harness, defect, monkeypatch))

    assert found.keys() == ALSO_SEEN[defect].keys()
    assert all(words in found[heading] for heading, words in ALSO_SEEN[defect].items())


@pytest.mark.parametrize("defect", SLOW)
def test_command_that_does_not_end_is_killed_and_found(
    defect: str, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "SECONDS", 1.0)

    found = _headings(_outcome(harness, defect, monkeypatch))

    assert SLOW[defect] in found["deaths"]


def test_canary_is_seen_once(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _outcome(harness, "unpickles", monkeypatch).executions
    monkeypatch.undo()

    assert not _outcome(harness, "nothing", monkeypatch).faults
