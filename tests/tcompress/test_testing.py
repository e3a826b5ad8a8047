import re
from pathlib import Path

import numpy as np
import pytest

from tcompress.errors import RequestError
from tcompress.testing import assert_not_inferior

CLASSES = 3
TRUTH = np.arange(600) % CLASSES


def logits(classes: np.ndarray) -> np.ndarray:
    return np.eye(CLASSES, dtype=np.float32)[classes]


def lost(count: int) -> np.ndarray:
    """Logits that are right but for the first examples."""
    classes = TRUTH.copy()
    classes[:count] = (classes[:count] + 1 + np.arange(count) % 2) % CLASSES
    return logits(classes)


def test_equal_answers_pass():
    assert_not_inferior(logits(TRUTH), logits(TRUTH), TRUTH, max_drop=0.01)


def test_regression_fails_with_the_headline_and_the_checks():
    with pytest.raises(
        AssertionError, match=r"REGRESSION: accuracy dropped 10\.00 points"
    ) as found:
        assert_not_inferior(lost(60), logits(TRUTH), TRUTH, max_drop=0.02)
    assert "| `accuracy_drop` | **regression** | 10.00 % |" in str(found.value)
    assert found.traceback[-1].name == "assert_not_inferior"


def test_too_few_examples_fail_unless_they_are_let_through():
    few = (logits(TRUTH[:20]), logits(TRUTH[:20]), TRUTH[:20])
    with pytest.raises(AssertionError, match=r"(?s)INCONCLUSIVE: .*about 299 examples"):
        assert_not_inferior(*few, max_drop=0.01)
    with pytest.warns(UserWarning, match="INCONCLUSIVE: "):
        assert_not_inferior(*few, max_drop=0.01, on_inconclusive="warn")


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        pytest.param(
            {"min_speedup": 1.5}, "do not tell min_speedup; pass paths", id="needs-models"
        ),
        pytest.param({"max_slice_drop": 0.1}, "do not tell max_slice_drop", id="needs-slices"),
        pytest.param({"max_drop": None}, "nothing is limited", id="no-limit"),
        pytest.param({"max_drop": 2}, "max_drop must be a number above 0 and below 1", id="range"),
    ],
)
def test_limits_that_cannot_be_judged_are_refused(limits: dict, match: str):
    with pytest.raises(RequestError, match=match):
        assert_not_inferior(logits(TRUTH), logits(TRUTH), TRUTH, **({"max_drop": 0.01} | limits))


def test_example_of_the_documentation_runs(
    tmp_path: Path, model_directories, reviews_file: Path, monkeypatch: pytest.MonkeyPatch
):
    page = (Path(__file__).parents[2] / "docs" / "ci.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "models").mkdir()
    (tmp_path / "artifacts" / "export").mkdir(parents=True)
    source = model_directories("bert")
    (tmp_path / "models" / "reviews").symlink_to(source)
    (tmp_path / "artifacts" / "export" / "onnx").symlink_to(source)
    (tmp_path / "held-out.csv").symlink_to(reviews_file)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(example, names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()
