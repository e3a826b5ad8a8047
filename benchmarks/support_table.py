"""Write docs/support.md: every cell is a test of tests/families that ran.

    python benchmarks/support_table.py [PYTHON ...]

Each PYTHON is the interpreter of an environment with tcompress and its tests; this one by default.
"""

import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "support.md"
COLUMNS = (
    "score",
    "prune heads",
    "prune neurons",
    "reload",
    "finetune",
    "fp32 ONNX",
    "int8 ONNX",
    "TorchScript",
    "program",
)
YES, NO, UNTRIED = "yes", "no", "-"
Cell = tuple[str, str]


@dataclass
class Run:
    """What one environment's tests gave.

    Attributes:
        version: Of transformers.
        cells: By family and column, whether each test of the cell passed.
        limitations: By family, what its fixture says beside the cells.
    """

    version: str
    cells: defaultdict[Cell, list[bool]] = field(default_factory=lambda: defaultdict(list))
    limitations: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Read pytest's JUnit report.

        Args:
            path: The file.
        """
        root = ElementTree.parse(path).getroot()
        run = cls(_properties(root)["transformers"])
        for case in root.iter("testcase"):
            found = _properties(case)
            if "family" in found:
                run.limitations[found["family"]] = found["limitations"]
                skipped = case.find("skipped") is not None
                if "cell" in found and not skipped:
                    passed = case.find("failure") is None and case.find("error") is None
                    run.cells[found["family"], found["cell"]].append(passed)
        return run


def _properties(element: ElementTree.Element) -> dict[str, str]:
    """Return the properties of a test, or of the whole run's suite."""
    suite = element.find("testsuite")
    found = (element if suite is None else suite).findall("properties/property")
    return {entry.get("name", ""): entry.get("value", "") for entry in found}


def run_tests(python: str) -> Run:
    """Run the claims of every family.

    Args:
        python: The interpreter.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        words = ("-m", "pytest", "-q", "tests/families/test_claims.py", f"--junitxml={report}")
        # a test that fails is a cell of the table, too
        subprocess.run([python, *words], cwd=ROOT, check=False)
        return Run.read(report)


def cell_text(runs: Sequence[Run], cell: Cell) -> str:
    """Return what stands in a cell: a version of transformers, where it holds with that only.

    Args:
        runs: One per environment.
        cell: Family and column.
    """
    tried = [run for run in runs if run.cells[cell]]
    holds = [run.version for run in tried if all(run.cells[cell])]
    if not tried:
        return UNTRIED
    if len(holds) == len(runs):
        return YES
    return ", ".join(holds) or NO


def document(runs: Sequence[Run]) -> str:
    """Return the text of docs/support.md.

    Args:
        runs: One per environment.
    """
    limitations: Mapping[str, str] = {
        f: text for run in runs for f, text in run.limitations.items()
    }
    rows = [
        f"| {' | '.join([family, *(cell_text(runs, (family, name)) for name in COLUMNS)])} |"
        for family in limitations
    ]
    notes = [f"- {family}: {text}" for family, text in limitations.items() if text]
    versions = " and ".join(run.version for run in runs)
    head = f"| family | {' | '.join(COLUMNS)} |"
    table = [head, "|---" * (len(COLUMNS) + 1) + "|", *rows]
    return "\n".join([*_PREAMBLE, f"Tried with transformers {versions}.", "", *table, ""]) + (
        "\n".join(["", *notes, ""]) if notes else ""
    )


_PREAMBLE = (
    "# Supported families",
    "",
    "Every `yes` is a test of [tests/families](../tests/families/test_claims.py) that ran on a",
    "tiny model of the family's own class, with seeded weights. `no` is a test that failed, `-`",
    "one that does not apply; a version says with which transformers alone it holds.",
    "",
    "- score: every head and neuron gets a finite score from real gradients.",
    "- prune heads, prune neurons: the smaller model answers as the masked one does, to 1e-5, with",
    "  uneven counts and with a whole sublayer gone, alone and in padded batches.",
    "- reload: an opened model answers as its own library's does; saved and opened again, pruned",
    "  or not, it answers the same to 1e-6.",
    "- finetune: the training loss of a model without half of its heads falls.",
    "- fp32 ONNX, int8 ONNX, TorchScript, program: the file of an unevenly pruned model answers as",
    "  the model does, at eight shapes and with padding (int8: within the limits of the export).",
    "",
    "Written by",
    "",
    "    python benchmarks/support_table.py [PYTHON ...]",
    "",
)


def main() -> None:
    """Run the tests in each environment and write the table."""
    runs = [run_tests(python) for python in sys.argv[1:] or [sys.executable]]
    DOCUMENT.write_text(document(runs), encoding="utf-8")
    print(f"wrote {DOCUMENT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
