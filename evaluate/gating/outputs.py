"""Where the gate's report goes besides the terminal."""

import sys
from collections.abc import Mapping
from pathlib import Path

from tcompress.staging import write_text_atomically
from tcompress.storage import is_special, remove

from .github import annotations, append_summary, on_github
from .junit import render_junit
from .markdown import render_markdown
from .verdict import GateReport


def clear_outputs(*paths: Path | None) -> None:
    """Remove files of an earlier run, which must not pass for this one's if it fails.

    Args:
        paths: The files that are to be written; None for one that is not.

    Raises:
        StorageError: If one cannot be removed.
    """
    for path in paths:
        if path is not None and not is_special(path):
            remove(path)


def write_outputs(
    report: GateReport,
    junit: Path | None,
    markdown: Path | None,
    github: bool | None,
    environ: Mapping[str, str],
    command: str = "",
) -> None:
    """Write the report to files, and to GitHub in a step of a workflow.

    Args:
        report: The report.
        junit: File for JUnit XML, or None.
        markdown: File for Markdown, or None.
        github: Whether to write annotations on stderr and the step's summary; None does it in a
            workflow.
        environ: The environment variables.
        command: Command line that gives this verdict again, or nothing.

    Raises:
        StorageError: If a file cannot be written.
    """
    if junit is not None:
        write_text_atomically(junit, render_junit(report, command))
    text = render_markdown(report, command)
    if markdown is not None:
        write_text_atomically(markdown, text)
    if on_github(environ) if github is None else github:
        _tell_github(report, text, environ.get("GITHUB_STEP_SUMMARY"))


def _tell_github(report: GateReport, text: str, summary: str | None) -> None:
    lines = annotations(report)
    if summary:
        full = append_summary(Path(summary), text)
        lines += [] if full is None else [full]
    # The runner reads both streams; stdout is the product, one document with --json.
    sys.stderr.write("".join(f"{line}\n" for line in lines))
