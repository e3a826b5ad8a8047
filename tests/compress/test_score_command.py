import json
from pathlib import Path

from tcompress.compress.criteria import Criterion
from tcompress.compress.score_command import CRITERIA
from tcompress.compress.scores import HeadScores


def test_every_criterion_can_be_asked_for() -> None:
    assert set(CRITERIA) == {criterion.value for criterion in Criterion} - {"obs"}


def test_the_default_compares_every_criterion_that_needs_no_pass_of_its_own(
    text_workspace: Path, tcompress
) -> None:
    result = tcompress("score", "--json", "--workspace", text_workspace)
    document = json.loads(result.stdout)
    assert document["criterion"] == "curvature"
    assert set(document["criteria"]) == set(CRITERIA) - {"leave-one-out"}
    primary = document["criteria"]["curvature"]
    assert (primary["heads"], primary["neurons"]) == (document["heads"], document["neurons"])
    assert primary["agreement"] == 1
    assert document["criteria"]["hies"]["neurons"] == []
    for ranking in document["criteria"].values():
        assert -1 <= ranking["agreement"] <= 1
    assert document["criteria"]["magnitude"]["stability"] is None
    assert [len(row) for row in document["curvature"]] == [12] * 12


def test_the_tables_fit_a_terminal_of_80_columns(text_workspace: Path, tcompress) -> None:
    result = tcompress(
        *("score", "--criterion", "leave-one-out", "--criterion", "random"),
        *("--max-examples", "20", "--workspace", text_workspace),
    )
    assert result.exit_code == 0, result.output
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert lines[0].startswith("heads by leave-one-out, 20 examples")
    row = next(line.split() for line in lines if line.startswith("leave-one-out"))
    assert row[1] == "1.00"
    assert row[3:] == ["12", "-"]
    assert next(line.split() for line in lines if line.startswith("random"))[2:] == [
        "-",
        "12",
        "144",
    ]


def test_pruning_uses_what_score_wrote_and_scores_again_when_it_does_not_fit(
    text_workspace: Path, tcompress
) -> None:
    def prune(*words: str) -> str:
        result = tcompress(
            *("prune", "--heads", "0.3", "--force", "--workspace", text_workspace),
            *("--criterion", "curvature", *words),
        )
        assert result.exit_code == 0, result.output
        return result.stderr

    tcompress("score", "--workspace", text_workspace)
    assert "by the scores in" in prune()
    assert "by the scores in" not in prune("--seed", "5")
    assert "by the scores in" not in prune("--criterion", "fisher")
    document = json.loads((text_workspace / "scores.json").read_text())
    assert HeadScores.from_json(document).criterion is Criterion.CURVATURE


def test_random_scores_of_another_seed_are_not_reused(text_workspace: Path, tcompress) -> None:
    tcompress("score", "--criterion", "random", "--seed", "1", "--workspace", text_workspace)
    words = ("prune", "--heads", "0.3", "--criterion", "random", "--workspace", text_workspace)
    assert "by the scores in" not in tcompress(*words, "--seed", "2").stderr
    assert "by the scores in" in tcompress(*words, "--seed", "1", "--force").stderr


def test_neurons_by_a_criterion_of_heads_are_refused(text_workspace: Path, tcompress) -> None:
    words = ("prune", "--neurons", "0.3", "--criterion", "hies", "--workspace", text_workspace)
    result = tcompress(*words)
    assert result.exit_code == 2
    assert "--criterion hies scores heads only" in result.stderr
