import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from tcompress.artifact import Artifact
from tcompress.cli import cli
from tcompress.evaluate.accuracy import run_predictions
from tcompress.evaluate.answers import AnswerBook, Question
from tcompress.evaluate.gating.planning import make_plan
from tcompress.workspace import Workspace


def plan(*words: object) -> dict:
    found = CliRunner().invoke(cli, ["gate", "plan", "--json", *map(str, words)])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def test_plan_agrees_with_the_closed_form_where_there_are_many_flips():
    # (z_0.95 + z_0.8)**2 = 6.18
    for row in make_plan(0.01).rows:
        assert row.required_examples == pytest.approx(6.18 * row.flip_rate / 0.01**2, rel=0.12)
        assert row.reach is None


def test_the_planned_number_reaches_the_planned_power():
    [row] = make_plan(0.02, flip_rates=(0.05,)).rows
    [reached] = make_plan(0.02, flip_rates=(0.05,), examples=row.required_examples).rows
    assert reached.reach.power >= 0.8
    assert reached.reach.provable_margin == pytest.approx(0.02, rel=0.05)
    assert reached.reach.best_margin < reached.reach.provable_margin


def test_without_a_workspace_a_plan_is_made_over_usual_flip_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    found = plan("--max-drop", 0.01, "--examples", 872)
    assert (found["schema_version"], found["max_drop"], found["examples"]) == (1, 0.01, 872)
    assert [row["flip_rate"] for row in found["rows"]] == [0.02, 0.05, 0.1]
    chances = [row["reach"]["power"] for row in found["rows"]]
    assert chances == sorted(chances, reverse=True)
    refused = CliRunner().invoke(cli, ["gate", "plan"])
    assert refused.exit_code == 2
    assert "no workspace" in refused.stderr


def test_in_a_workspace_the_kept_answers_tell_the_flip_rate(
    workspace: Workspace, source: Path, write_encoder: Callable[..., Artifact]
):
    made = write_encoder(source, workspace.artifacts_directory / "prune", "prune")
    test = workspace.splits().test
    assert len(plan("--workspace", workspace.directory)["rows"]) == 3
    book = AnswerBook(workspace.answers_directory)
    answers = run_predictions(source, test)
    for side in (source, made.directory):
        book.keep(Question.about(side, test), test, answers)
    found = plan("--workspace", workspace.directory)
    assert (found["examples"], found["max_drop"]) == (len(test), workspace.config.max_drop)
    [row] = found["rows"]
    assert (row["flip_rate"], row["required_examples"]) == (0.0, 299)
    assert row["reach"]["power"] == 0
