import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from tcompress.cli import cli
from tcompress.workspace import Workspace

Document = dict[str, Any]
SCHEMA = Path(__file__).parents[3] / "docs" / "schema" / "report.schema.json"


def test_published_schema_is_a_schema():
    Draft202012Validator.check_schema(json.loads(SCHEMA.read_text("utf-8")))


def test_what_evaluate_writes_keeps_the_schema(
    workspace: Workspace, faults: Callable[[Document], list[str]]
):
    shared = [
        "--workspace",
        str(workspace.directory),
        "--budget-s",
        "0.5",
        "--device",
        "cpu",
        "--quiet",
    ]
    result = CliRunner().invoke(cli, ["evaluate", *shared])
    assert result.exit_code == 0, result.output
    written = json.loads((workspace.report_directory / "report.json").read_text())
    assert faults(written) == []


def test_a_full_and_a_short_document_keep_the_schema(
    document: Document, full: Document, faults: Callable[[Document], list[str]]
):
    assert faults(full) == []
    assert faults(document) == []


@pytest.mark.parametrize(
    ("where", "wrong"),
    [
        pytest.param((), {"measurments": []}, id="unknown-key"),
        pytest.param(("measurements", 1), {"accuracy_dorp": 0.1}, id="unknown-measurement-key"),
        pytest.param(("measurements", 1), {"accuracy_drop": 12.5}, id="points-for-a-fraction"),
        pytest.param(("measurements", 1), {"not_inferior": "yes"}, id="word-for-a-truth"),
        pytest.param(("measurements", 1, "speedup"), {"verdict": "fast"}, id="unknown-verdict"),
        pytest.param(("measurements", 1, "latency_ms"), {"median": None}, id="no-latency"),
        pytest.param(("flipped", 0), {"direction": "up"}, id="unknown-direction"),
        pytest.param(("mixes", 0), {"scenario": "server"}, id="unknown-scenario"),
    ],
)
def test_a_typo_or_a_wrong_unit_is_found(
    full: Document,
    faults: Callable[[Document], list[str]],
    where: tuple[str | int, ...],
    wrong: Document,
):
    document = json.loads(json.dumps(full))  # in which no two parts are one object
    part: Any = document
    for key in where:
        part = part[key]
    part |= wrong
    assert len(faults(document)) == 1
