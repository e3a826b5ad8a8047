"""The gate's report as JUnit XML, which every CI server shows: a check is a test case."""

from collections.abc import Iterable
from xml.etree import ElementTree as ET

from tcompress.console import printable

from ..noninferiority import Verdict
from .verdict import Check, GateReport, OnInconclusive

_SUITE = "tcompress gate"


def render_junit(report: GateReport, command: str = "") -> str:
    """Return the report as JUnit XML.

    A regression is a failure. A check that the evidence does not settle is an error, as a test that
    could not be held; it is skipped where the policy lets that through.

    Args:
        report: The report.
        command: Command line that gives this verdict again, or nothing.
    """
    kinds = [_kind(check, report.on_inconclusive) for check in report.checks]
    counts = {
        "tests": str(len(kinds)),
        "failures": str(kinds.count("failure")),
        "errors": str(kinds.count("error")),
    }
    root = ET.Element("testsuites", {"name": _SUITE, **counts})
    skipped = str(kinds.count("skipped"))
    suite = ET.SubElement(root, "testsuite", {"name": _SUITE, **counts, "skipped": skipped})
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(report, command):
        ET.SubElement(properties, "property", {"name": name, "value": printable(value)})
    for check, kind in zip(report.checks, kinds, strict=True):
        suite.append(_case(check, kind))
    told = ET.SubElement(suite, "system-out")
    told.text = printable("\n".join((report.headline(), *report.advice, *report.notes)))
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _kind(check: Check, on_inconclusive: OnInconclusive) -> str | None:
    """Name the element that says why a check did not pass; None where it did."""
    if check.verdict is Verdict.PASS:
        return None
    if check.verdict is Verdict.REGRESSION:
        return "failure"
    return "skipped" if on_inconclusive is OnInconclusive.WARN else "error"


def _properties(report: GateReport, command: str) -> Iterable[tuple[str, str]]:
    return [
        ("verdict", report.verdict.value),
        ("exit_code", str(report.exit_code)),
        ("baseline", report.baseline),
        ("candidate", report.candidate),
        ("examples", str(report.examples)),
        ("alpha", str(report.alpha)),
        ("command", command),
    ]


def _case(check: Check, kind: str | None) -> ET.Element:
    case = ET.Element("testcase", {"classname": "tcompress.gate", "name": printable(check.name)})
    if kind is not None:
        message = printable(check.words or check.name)
        why = ET.SubElement(case, kind, {"message": message})
        if kind != "skipped":
            why.set("type", check.verdict.value)
    told = ET.SubElement(case, "system-out")
    estimate, bound, limit = map(check.unit.text, (check.estimate, check.bound, check.limit))
    told.text = printable(
        f"{check.words or check.name}\n"
        f"estimate {estimate}, bound {bound}, limit {limit}, n = {check.n:,}"
    )
    return case
