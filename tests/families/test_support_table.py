from pathlib import Path

from .fixtures import FAMILIES

DOCUMENT = Path(__file__).parents[2] / "docs" / "support.md"


def test_the_support_table_lists_the_families_that_are_tested() -> None:
    """If not: python benchmarks/support_table.py."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert rows[1:] == list(FAMILIES)


def test_every_cell_of_the_support_table_holds() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert {cell.strip() for row in rows for cell in row.split("|")[2:-1]} <= {"yes", "-"}
