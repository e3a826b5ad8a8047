"""What a test suite asks of tcompress: that a compressed model is still good enough.

Like the command line it stands in front of the stages, and imports them when it is called.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from .console import Console, one_line
from .data import Columns, Examples, read_examples
from .errors import RequestError

_LIMITS_ON_ANSWERS = {
    "max_drop",
    "min_retained",
    "max_class_drop",
    "max_flip_rate",
    "max_divergence",
    "min_agreement",
}


def assert_not_inferior(
    candidate: Any,
    baseline: Any,
    data: Any,
    *,
    max_drop: float | None = None,
    metric: str = "accuracy",
    columns: Columns | None = None,
    device: str = "cpu",
    **limits: Any,
) -> None:
    """Fail a test unless the examples prove that a candidate is good enough, as `gate` does.

    Candidate and baseline are paths, and `data` a file or `Examples`; or all three are arrays:
    logits, `(examples, classes)`, twice, and the right classes, `(examples,)`.

    Args:
        candidate: What is judged: a model directory, an artifact, or logits.
        baseline: What it is compared with: a directory, a file of `gate record`, or logits.
        data: Labelled examples that neither was made on, or right classes.
        max_drop: Smallest drop of the metric that is not acceptable, a fraction.
        metric: The task's metric.
        columns: Columns of the data file, where they are not `text` and `label`.
        device: `cpu` or `cuda`.
        limits: Other keys of a policy, such as `min_speedup=1.5`.

    Raises:
        AssertionError: On a regression, and where the evidence is not enough; it shows the checks.
        TcompressError: If the two cannot be compared.
    """
    __tracebackhide__ = True  # pytest then shows the line of the test
    from tcompress.evaluate.gating.markdown import checks_table
    from tcompress.evaluate.gating.policy import make_policy

    policy = make_policy({"max_drop": max_drop, "metric": metric, **limits})
    if isinstance(data, str | Path | Examples):
        report = _judge_paths(candidate, baseline, data, policy, columns, device)
    else:
        report = _judge_arrays(candidate, baseline, data, policy)
    notes = map(one_line, (*report.advice, *(f"Note: {note}." for note in report.notes)))
    told = "\n".join((one_line(report.headline()), checks_table(report.checks), *notes))
    if report.exit_code:
        raise AssertionError(told)
    if report.verdict != "pass":
        warnings.warn(told, stacklevel=2)


def _judge_paths(
    candidate: Any,
    baseline: Any,
    data: str | Path | Examples,
    policy: Any,
    columns: Columns | None,
    device: str,
) -> Any:
    from tcompress.evaluate.gating.gate import gate

    if not isinstance(data, Examples):
        columns = columns or Columns()
        slices = policy.slice_columns or columns.slices
        data = read_examples(Path(data), replace(columns, slices=slices))
    console = Console(quiet=True)
    paths = Path(baseline), Path(candidate)
    return gate(*paths, data, policy=policy, console=console, device=device)


def _judge_arrays(candidate: Any, baseline: Any, truth: Any, policy: Any) -> Any:
    import numpy as np

    from tcompress.evaluate.gating.gate import judge
    from tcompress.evaluate.gating.sides import Sides

    if unfit := policy.limits.keys() - _LIMITS_ON_ANSWERS:
        msg = f"arrays of logits do not tell {', '.join(sorted(unfit))}; pass paths and a data file"
        raise RequestError(msg)
    before, now = (np.asarray(side, dtype=np.float32) for side in (baseline, candidate))
    labels = tuple(str(index) for index in range(before.shape[-1]))
    return judge(Sides(before, now, np.asarray(truth), labels), policy)
