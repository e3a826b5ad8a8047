import importlib
from pathlib import Path
from types import ModuleType

import pytest

from .fixtures import FAMILIES

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "support.md"
REPORT = """<testsuites><testsuite>
  <properties><property name="transformers" value="{version}"/></properties>
  <testcase name="holds"><properties>
    <property name="family" value="bert"/><property name="limitations" value=""/>
    <property name="cell" value="score"/></properties></testcase>
  <testcase name="depends"><properties>
    <property name="family" value="bert"/><property name="limitations" value=""/>
    <property name="cell" value="reload"/></properties>{reload}</testcase>
</testsuite></testsuites>"""


def rows() -> list[list[str]]:
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[1:]]


def test_the_support_table_lists_the_families_that_are_tested() -> None:
    assert [row[0] for row in rows()] == list(FAMILIES), "run make support"


def test_every_cell_of_the_support_table_holds() -> None:
    assert {cell for row in rows() for cell in row[1:]} <= {"yes", "-"}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("support_table")


@pytest.mark.parametrize(
    ("outcomes", "text"),
    [
        pytest.param(("", ""), "yes", id="holds-in-both-lines"),
        pytest.param(("", "<failure/>"), "5.23.0", id="holds-in-one-line"),
        pytest.param(("", "<skipped/>"), "5.23.0", id="untried-in-one-line"),
        pytest.param(("<failure/>", "<error/>"), "no", id="holds-in-none"),
        pytest.param(("<skipped/>", "<skipped/>"), "-", id="untried"),
    ],
)
def test_a_cell_says_where_its_tests_passed(
    script: ModuleType, outcomes: tuple[str, str], text: str, tmp_path: Path
) -> None:
    runs = []
    for version, outcome in zip(("5.23.0", "4.57.6"), outcomes, strict=True):
        path = tmp_path / f"{version}.xml"
        path.write_text(REPORT.format(version=version, reload=outcome))
        runs.append(script.Run.read(path))
    assert script.cell_text(runs, ("bert", "reload")) == text
    assert script.cell_text(runs, ("bert", "score")) == "yes"
