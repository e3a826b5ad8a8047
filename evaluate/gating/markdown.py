"""The gate's report as Markdown, for a job's summary or a comment on a pull request.

Names of labels, slices and paths are anyone's: what holds one stands as code, where it neither
links, nor mentions, nor ends a cell.
"""

import re
from collections.abc import Iterator, Sequence

from tcompress.console import one_line, printable

from ..noninferiority import Verdict
from ..reporting.markdown import LONGEST_BYTES, code, table
from .verdict import Check, GateReport

MARKER = "<!-- tcompress-gate -->"
"""First line, by which a job finds the comment that it wrote before."""

_COLUMNS = ("check", "verdict", "estimate", "bound", "limit", "n")
_LONGEST_TEXT = 1_000
_CUT = "\n_Cut here, or it could not be posted: `tcompress gate --json` prints all of it._\n"


def render_markdown(report: GateReport, command: str = "") -> str:
    """Return the report as Markdown.

    Args:
        report: The report.
        command: Command line that gives this verdict again, or nothing.

    Returns:
        The text; parts at its end are left out where it could not be posted as a comment.
    """
    text = ""
    size = len(_CUT.encode())
    for part in _parts(report, command):
        size += len(part.encode())
        if size > LONGEST_BYTES:
            return text + _CUT
        text += part
    return text


def checks_table(checks: Sequence[Check]) -> str:
    """Return the checks as a table, those that did not pass first.

    Args:
        checks: The checks.
    """
    ordered = sorted(checks, key=lambda check: check.verdict is Verdict.PASS)
    return table(_COLUMNS, [_cells(check) for check in ordered], texts=2)


def _parts(report: GateReport, command: str) -> Iterator[str]:
    """Yield the text in parts that may be left out, but not be cut open."""
    allowed = report.verdict is not Verdict.PASS and report.exit_code == 0
    yield f"{MARKER}\n### tcompress gate: {report.verdict}{' (let through)' if allowed else ''}\n\n"
    yield f"{_quoted(report.headline())}\n\n"
    yield from checks_table(report.checks).splitlines(keepends=True)
    yield "\n"
    yield (
        f"Candidate {_quoted(report.candidate)}, baseline {_quoted(report.baseline)}, "
        f"{report.examples:,} examples; each bound is wrong with a probability of at most "
        f"{100 * report.alpha:g} %.\n\n"
    )
    for line in (*report.advice, *report.notes):
        yield f"- {_quoted(line)}\n"
    if command:
        yield f"\nTo get this again:\n\n{_fenced(command)}"


def _cells(check: Check) -> list[str]:
    numbers = (check.estimate, check.bound, check.limit)
    texts = (check.unit.text(number) for number in numbers)
    mark = str(check.verdict)
    verdict = mark if check.verdict is Verdict.PASS else f"**{mark}**"
    return [_quoted(check.name), verdict, *texts, f"{check.n:,}"]


def _quoted(text: str) -> str:
    return code(one_line(" ".join(text.split()), _LONGEST_TEXT) or "–")


def _fenced(command: str) -> str:
    """Return a command to copy, in a fence that it cannot close."""
    longest = max((len(run) for run in re.findall("`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{printable(command)}\n{fence}\n"
