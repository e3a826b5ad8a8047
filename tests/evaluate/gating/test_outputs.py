import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from tcompress.console import printable
from tcompress.errors import StorageError
from tcompress.evaluate.gating.gate import judge
from tcompress.evaluate.gating.github import MOST_ANNOTATIONS, SUMMARY_BYTES, annotations
from tcompress.evaluate.gating.junit import render_junit
from tcompress.evaluate.gating.markdown import LONGEST_BYTES, MARKER, render_markdown
from tcompress.evaluate.gating.outputs import clear_outputs, write_outputs
from tcompress.evaluate.gating.policy import make_policy
from tcompress.evaluate.gating.sides import Sides
from tcompress.evaluate.gating.verdict import Check, GateReport, OnInconclusive, Unit
from tcompress.evaluate.noninferiority import Verdict

HOSTILE = (
    "a|b`c`\r\n::error::x ##[error]y %0A @team <img src=x> ]]> ``` \x00\x1b[2J\ud800\uffff\u202e"
)
# The elements of the schema that Jenkins publishes (junit-10.xsd), with what may stand in them and
# the attributes that must and may.
SCHEMA = {
    "testsuites": ({"testsuite"}, set(), {"name", "tests", "failures", "errors"}),
    "testsuite": (
        {"properties", "testcase", "system-out"},
        {"name", "tests", "failures", "errors"},
        {"skipped"},
    ),
    "properties": ({"property"}, set(), set()),
    "property": (set(), {"name", "value"}, set()),
    "testcase": (
        {"skipped", "error", "failure", "system-out"},
        {"name"},
        {"classname"},
    ),
    "skipped": (set(), set(), {"message"}),
    "error": (set(), set(), {"type", "message"}),
    "failure": (set(), set(), {"type", "message"}),
    "system-out": (set(), set(), set()),
}


def check(name: str, verdict: Verdict, words: str = "") -> Check:
    return Check(name, verdict, 0.031, 0.042, 0.01, 1234, Unit.FRACTION, words)


@pytest.fixture
def passing() -> GateReport:
    """What the gate says of a candidate that answers as its baseline does."""
    truth = np.arange(600) % 3
    logits = np.eye(3, dtype=np.float32)[truth]
    report = judge(
        Sides(logits, logits, truth, ("cat", "dog", "owl")), make_policy({"max_drop": 0.01})
    )
    assert report.exit_code == 0
    return replace(report, baseline="models/source", candidate="artifacts/export/onnx")


@pytest.fixture
def hostile(passing: GateReport) -> GateReport:
    """A regression of a label and a path that were named to do harm, and an open question."""
    checks = (
        check(
            f"recall_drop[{HOSTILE}]", Verdict.REGRESSION, f"recall of {HOSTILE} dropped 3.1 points"
        ),
        check(f"accuracy_drop[lang={HOSTILE}]", Verdict.INCONCLUSIVE, HOSTILE),
        *passing.checks,
    )
    return replace(passing, checks=checks, candidate=HOSTILE, notes=(HOSTILE,), advice=(HOSTILE,))


def structure_errors(element: ET.Element) -> list[str]:
    children, required, optional = SCHEMA[element.tag]
    names = set(element.attrib)
    found = [f"{element.tag} lacks {name}" for name in required - names]
    found += [f"{element.tag} has {name}" for name in names - required - optional]
    found += [f"{c.tag} in {element.tag}" for c in element if c.tag not in children]
    return found + [error for child in element for error in structure_errors(child)]


def test_junit_keeps_to_the_schema_whatever_the_names_are(hostile: GateReport):
    text = render_junit(hostile, f"tcompress gate --candidate '{HOSTILE}'")
    root = ET.fromstring(text.encode("utf-8"))
    assert structure_errors(root) == []
    (suite,) = root
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [printable(c.name) for c in hostile.checks]
    counts = {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": len(cases), "failures": 1, "errors": 1, "skipped": 0}
    assert cases[0].find("failure").get("type") == "regression"
    assert cases[1].find("error").get("type") == "inconclusive"
    assert all(len(case) == 1 for case in cases[2:])


def test_inconclusive_check_is_skipped_only_where_the_policy_lets_it_through(passing: GateReport):
    report = replace(passing, checks=(check("accuracy_drop", Verdict.INCONCLUSIVE, "open"),))
    for policy, kind, annotation in (
        (OnInconclusive.FAIL, "error", "::error "),
        (OnInconclusive.WARN, "skipped", "::warning "),
    ):
        judged = replace(report, on_inconclusive=policy)
        assert [e.tag for e in ET.fromstring(render_junit(judged)).iter(kind)] == [kind]
        assert [line[: len(annotation)] for line in annotations(judged)] == [annotation]
    assert "### tcompress gate: inconclusive (let through)\n" in render_markdown(judged)


def test_markdown_of_hostile_names_stays_in_its_cells(hostile: GateReport):
    text = render_markdown(hostile, f"tcompress gate --candidate '{HOSTILE}'")
    assert text.startswith(f"{MARKER}\n### tcompress gate: regression\n")
    prose, fence, command = text.partition("````sh\n")
    assert fence
    assert re.search(r"^`{3,4}$", command, re.MULTILINE)[0] == "````"
    rows = [line for line in prose.splitlines() if line.startswith("| ")]
    assert len(rows) == len(hostile.checks) + 2
    assert {row.count("|") for row in rows} == {7}
    # Outside of code nothing of the name is left.
    bare = re.sub("`[^`\n]*`", "", prose)
    assert not re.search("@|<img|::|##\\[|x1b", bare)
    assert set(text) - {"\n"} == {c for c in text if c.isprintable()}
    assert "3.10 % | 4.20 % | 1.00 % | 1,234 |" in prose


def test_markdown_shows_what_failed_first_and_is_cut_before_it_cannot_be_posted(
    passing: GateReport,
):
    many = tuple(check(f"recall_drop[{i}]", Verdict.PASS, "kept") for i in range(3_000))
    failed = check("recall_drop[owl]", Verdict.REGRESSION, "recall of owl dropped")
    text = render_markdown(replace(passing, checks=(*many, failed)))
    assert LONGEST_BYTES - 200 < len(text.encode()) <= LONGEST_BYTES
    assert text.index("`recall_drop[owl]` | **regression**") < text.index("`recall_drop[0]` | pass")
    assert text.endswith("`tcompress gate --json` prints all of it._\n")


def test_annotations_are_one_escaped_line_each(hostile: GateReport):
    lines = annotations(hostile)
    assert len(lines) == 2
    for line, kind in zip(lines, ("error", "warning"), strict=True):
        head, properties, message = re.fullmatch(r"::(\w+) title=([^:,]*)::(.*)", line).groups()
        assert head == kind
        assert "%250A" in properties
        assert "%250A" in message
        assert line.isprintable()


def test_annotations_are_not_more_than_a_step_may_have(passing: GateReport):
    checks = [check(f"recall_drop[{i}]", Verdict.REGRESSION, "dropped") for i in range(25)]
    lines = annotations(replace(passing, checks=(*checks, *checks)))
    assert len(lines) == MOST_ANNOTATIONS
    assert lines[-1].endswith("::41 more checks did not pass; see the summary")


def test_outputs_are_written_where_they_are_asked_for(
    passing: GateReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    junit, markdown, summary = (tmp_path / name for name in ("a/gate.xml", "a/gate.md", "sum"))
    here = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    write_outputs(passing, junit, markdown, None, here, "tcompress gate")
    assert junit.read_text() == render_junit(passing, "tcompress gate")
    assert markdown.read_text() == render_markdown(passing, "tcompress gate")
    assert summary.read_text().strip() == markdown.read_text().strip()
    streams = capsys.readouterr()
    assert streams.out == ""
    assert (
        streams.err == f"::notice title=tcompress gate::{passing.headline().replace('%', '%25')}\n"
    )

    write_outputs(passing, None, None, False, here)
    write_outputs(passing, None, None, None, {})
    assert capsys.readouterr().err == ""
    write_outputs(passing, None, None, True, {})
    assert capsys.readouterr().err.startswith("::notice ")


def test_a_full_summary_is_left_as_it_is_and_told_about(
    passing: GateReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    summary = tmp_path / "summary"
    summary.write_bytes(b"x" * SUMMARY_BYTES)
    write_outputs(passing, None, None, True, {"GITHUB_STEP_SUMMARY": str(summary)})
    assert summary.stat().st_size == SUMMARY_BYTES
    assert "the step's summary is full (921,600 bytes)" in capsys.readouterr().err


def test_files_of_an_earlier_run_do_not_outlive_it(tmp_path: Path):
    old = tmp_path / "gate.xml"
    old.write_text("<testsuites/>")
    clear_outputs(old, None, tmp_path / "none.md")
    assert not old.exists()
    with pytest.raises(StorageError, match="cannot be removed: Is a directory"):
        clear_outputs(tmp_path)
