"""The gate's report on GitHub: the job's summary, and annotations.

A runner reads commands from the lines of a step's log. What stands in a command is put on one line
and escaped, so that no name of a label or a file becomes a command of its own.
"""

from collections.abc import Mapping
from pathlib import Path

from tcompress.console import one_line
from tcompress.storage import append_text

from ..noninferiority import Verdict
from .verdict import Check, GateReport

MOST_ANNOTATIONS = 10
"""More of one kind in a step are dropped in silence."""
SUMMARY_BYTES = 900 * 1024
"""A summary of more than 1,024 KiB is dropped as a whole."""
_LONGEST_TEXT = 1_000


def on_github(environ: Mapping[str, str]) -> bool:
    """Tell whether this is a step of a GitHub workflow.

    Args:
        environ: The environment variables.
    """
    return environ.get("GITHUB_ACTIONS") == "true"


def annotations(report: GateReport) -> list[str]:
    """Return the lines that a runner turns into annotations.

    Args:
        report: The report.

    Returns:
        At most as many of one kind as a step may have, the last of which counts the rest; a
        report that passes gets one.
    """
    if report.verdict is Verdict.PASS:
        return [_command("notice", "tcompress gate", report.headline())]
    regressions = [check for check in report.checks if check.verdict is Verdict.REGRESSION]
    unsettled = [check for check in report.checks if check.verdict is Verdict.INCONCLUSIVE]
    # Beside a regression, what is not settled is not what fails the job.
    kind = "error" if report.exit_code and not regressions else "warning"
    return [*_of_kind("error", regressions), *_of_kind(kind, unsettled)]


def append_summary(path: Path, text: str) -> str | None:
    """Add to the summary of the job.

    Args:
        path: The file that the runner reads.
        text: Markdown.

    Returns:
        An annotation that says so if there is no room left for it.
    """
    written = path.stat().st_size if path.exists() else 0
    if written + len(text.encode()) > SUMMARY_BYTES:
        words = f"the step's summary is full ({written:,} bytes); the gate's report is left out"
        return _command("notice", "tcompress gate", words)
    append_text(path, f"{text}\n")
    return None


def _of_kind(kind: str, checks: list[Check]) -> list[str]:
    lines = [
        _command(kind, f"tcompress gate: {check.name}", f"{check.verdict}: {_words(check)}")
        for check in checks
    ]
    if len(lines) <= MOST_ANNOTATIONS:
        return lines
    shown = MOST_ANNOTATIONS - 1
    rest = f"{len(lines) - shown} more checks did not pass; see the summary"
    return [*lines[:shown], _command(kind, "tcompress gate", rest)]


def _words(check: Check) -> str:
    return check.words or (
        f"{check.unit.text(check.bound)} against a limit of {check.unit.text(check.limit)}"
    )


def _command(name: str, title: str, message: str) -> str:
    text, heading = (one_line(part, _LONGEST_TEXT).replace("%", "%25") for part in (message, title))
    # In a property these two would end the value.
    heading = heading.replace(":", "%3A").replace(",", "%2C")
    return f"::{name} title={heading}::{text}"
