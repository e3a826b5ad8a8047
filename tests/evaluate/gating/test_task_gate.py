from dataclasses import replace

import numpy as np
import pytest

from tcompress.data import Answer, Examples
from tcompress.errors import DataError, RequestError
from tcompress.evaluate.accuracy import Predictions
from tcompress.evaluate.engine_info import Layout
from tcompress.evaluate.gating.policy import Policy
from tcompress.evaluate.gating.task_gate import check_answerable, check_policy, judge_task
from tcompress.evaluate.noninferiority import Verdict
from tcompress.tasks import Task

LABELS = ("O", "B-X")


def examples_of(count: int, **fields: object) -> Examples:
    ids = tuple(map(str, range(count)))
    return Examples(origin="test", ids=ids, texts=ids, **fields)  # type: ignore[arg-type]


def numbers(noise: float, n: int = 500, seed: int = 0) -> tuple[Predictions, Predictions, Examples]:
    """A baseline that is nearly right, and a candidate with more noise."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=n)
    sides = [truth + size * rng.normal(size=n) for size in (0.1, noise)]
    before, after = (
        Predictions(side[:, None].astype(np.float32), ("score",), 0, None, Task.REGRESSION)
        for side in sides
    )
    return before, after, examples_of(n, labels=tuple(map(str, truth)))


def words(wrong: float, n: int = 600, seed: int = 0) -> tuple[Predictions, Predictions, Examples]:
    """Four words each, of which a candidate misnames a part."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, (n, 4))
    found = truth ^ (rng.random((n, 4)) < wrong)
    owners = np.repeat(np.arange(n), 4)
    places = np.tile(np.arange(4), n)
    layout = Layout(owners, owners, np.stack([places, places + 1], 1))
    before, after = (
        Predictions(
            np.eye(2, dtype=np.float32)[side.ravel()],
            LABELS,
            0,
            None,
            Task.TOKEN_CLASSIFICATION,
            layout,
        )
        for side in (truth, found)
    )
    tags = tuple(tuple(LABELS[i] for i in row) for row in truth)
    return before, after, examples_of(n, words=(("w",) * 4,) * n, tags=tags)


@pytest.mark.parametrize(
    ("made", "margin", "verdict"),
    [
        pytest.param(numbers(0.1), 0.02, Verdict.PASS, id="numbers-as-good"),
        pytest.param(numbers(1.0), 0.02, Verdict.REGRESSION, id="numbers-worse"),
        pytest.param(numbers(0.3), 0.04, Verdict.INCONCLUSIVE, id="numbers-near-the-margin"),
        pytest.param(words(0.0), 0.02, Verdict.PASS, id="words-as-good"),
        pytest.param(words(0.2), 0.02, Verdict.REGRESSION, id="words-worse"),
        pytest.param(words(0.0, n=60), 0.02, Verdict.INCONCLUSIVE, id="words-too-few"),
    ],
)
def test_a_pass_takes_a_bound_below_the_margin(
    made: tuple[Predictions, Predictions, Examples], margin: float, verdict: Verdict
) -> None:
    report = judge_task(*made, Policy(max_drop=margin))
    assert report.checks[0].name in ("pearson_drop", "entity_f1_drop")
    assert report.verdict is verdict, report.headline()


def test_vectors_are_held_against_the_baselines_own() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 16)).astype(np.float32)

    def judged(noise: float) -> Verdict:
        moved = vectors + noise * rng.normal(size=vectors.shape).astype(np.float32)
        sides = (Predictions(v, (), 0, None, Task.EMBEDDING) for v in (vectors, moved))
        return judge_task(*sides, examples_of(400), Policy(max_drop=0.03)).verdict

    assert judged(0.05) is Verdict.PASS
    assert judged(0.5) is Verdict.REGRESSION


def test_one_answer_that_is_not_finite_is_a_regression() -> None:
    before, after, examples = numbers(0.1)
    after.logits[3] = np.nan
    report = judge_task(before, after, examples, Policy(max_drop=0.5))
    assert {c.name: c.verdict for c in report.checks}["finite"] is Verdict.REGRESSION


def test_answers_to_questions_are_read_off_the_likeliest_span_of_all_windows() -> None:
    context = "the film was very good"
    spans = np.array([[-1, -1], [0, 3], [4, 8], [-1, -1], [9, 12], [13, 17], [18, 22]])
    layout = Layout(np.zeros(7, int), np.array([0, 0, 0, 1, 1, 1, 1]), spans)
    logits = np.zeros((7, 2), np.float32)
    logits[5, 0] = logits[6, 1] = 5
    side = Predictions(logits, ("start", "end"), 0, None, Task.QUESTION_ANSWERING, layout)
    examples = Examples("test", ("0",), texts=("how?",), text_pairs=(context,))
    right = replace(examples, answers=((Answer("very good", 13),),))
    report = judge_task(side, side, right, Policy(max_drop=0.1, metric="exact_match"))
    assert report.facts["metrics"]["exact_match"] == {"baseline": 1.0, "candidate": 1.0}
    nowhere = logits.copy()
    nowhere[0] = 9
    lost = replace(side, logits=nowhere)
    report = judge_task(side, lost, right, Policy(max_drop=0.1))
    assert report.facts["metrics"]["f1"] == {"baseline": 1.0, "candidate": 0.0}


def test_what_a_task_does_not_have_is_refused() -> None:
    with pytest.raises(RequestError, match="max_flip_rate is about classes, and regression has"):
        check_policy(Task.REGRESSION, Policy(max_drop=0.1, max_flip_rate=0.1))
    with pytest.raises(RequestError, match="unknown metric 'cosine'; of this task known are: pear"):
        judge_task(*numbers(0.1), Policy(max_drop=0.1, metric="cosine"))
    with pytest.raises(DataError, match="no right answers for token-classification"):
        check_answerable(Task.TOKEN_CLASSIFICATION, LABELS, examples_of(2))
