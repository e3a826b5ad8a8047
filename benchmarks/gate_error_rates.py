"""How often the gate errs, by simulation: false passes, false regressions and power.

Baseline and candidate answer n examples that flip independently; gates are drawn as tables of
(lost, gained), whose verdicts are computed once each. Beside the gate stand two rules that are in
use: to compare the observed drop with the limit, and to pass what McNemar's test does not call
worse.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from tcompress.evaluate import metrics
from tcompress.evaluate.gating.quality import check_metric
from tcompress.evaluate.gating.sides import Sides
from tcompress.evaluate.noninferiority import (
    PairedCounts,
    Verdict,
    damage_bounds,
    pass_probability,
    required_examples,
)
from tcompress.evaluate.relative_drop import retained_accuracy

ALPHA = 0.05
SIZES = (300, 872, 2000, 10_000)
FLIP_RATES = (0.02, 0.05, 0.1)
MARGINS = (0.01, 0.02)
RETAINED = (0.99, 0.999)
ACCURACY = 0.9
"""Of the baseline, where a part of it is to be kept and where macro F1 is judged."""
SHARES = {"even": (0.5, 0.5), "rare": (0.9, 0.1)}
"""How frequent two classes are."""
DOCS = Path(__file__).parents[1] / "docs"

Tables = NDArray[np.int64]


@dataclass(frozen=True)
class Rates:
    """How often simulated gates came to what.

    Attributes:
        metric: What was judged.
        case: What distinguishes the cell beside the numbers here.
        n: Examples per gate.
        flip_rate: Fraction of the examples that flip.
        limit: Margin, or part to be kept.
        damage: True drop, in multiples of what the limit allows.
        gates: Number of gates.
        passes: Fraction that passed.
        regressions: Fraction that showed a regression.
        exact: Fraction that passes, summed over all tables; None where that is not computed.
        naive: Fraction that passes if the observed drop has to be below the limit.
        mcnemar: Fraction that passes if McNemar's exact test must not show a loss.
    """

    metric: str
    case: str
    n: int
    flip_rate: float
    limit: float
    damage: float
    gates: int
    passes: float
    regressions: float
    exact: float | None = None
    naive: float | None = None
    mcnemar: float | None = None


@cache
def bounds_of(lost: int, gained: int, n: int) -> tuple[float, float]:
    """Return the bounds of the damage in a table."""
    found = damage_bounds(PairedCounts(n - lost - gained, lost, gained, 0), ALPHA)
    return found.low, found.high


def accuracy_rates(
    rng: np.random.Generator, gates: int, n: int, flip_rate: float, margin: float, damage: float
) -> Rates:
    """Simulate gates on the accuracy.

    Args:
        rng: Source of the tables.
        gates: Number of gates.
        n: Examples per gate.
        flip_rate: Fraction that flips.
        margin: Limit on the drop.
        damage: True drop, a fraction, at most `flip_rate`.
    """
    cells = [(flip_rate + damage) / 2, (flip_rate - damage) / 2, 1 - flip_rate]
    # tables: (tables, 2) of lost and gained
    drawn = rng.multinomial(n, cells, size=gates)[:, :2]
    tables, times = np.unique(drawn, axis=0, return_counts=True)
    bounds = np.array([bounds_of(int(lost), int(gained), n) for lost, gained in tables])
    lost, gained = tables.T
    worse = stats.binom.sf(lost - 1, lost + gained, 0.5) < ALPHA

    def rate(chosen: NDArray[np.bool_]) -> float:
        return float(times[chosen].sum() / gates)

    return Rates(
        "accuracy",
        "",
        n,
        flip_rate,
        margin,
        damage / margin,
        gates,
        rate(bounds[:, 1] < margin),
        rate(bounds[:, 0] >= margin),
        pass_probability(n, margin, flip_rate, ALPHA, damage),
        rate((lost - gained) / n < margin),
        rate(~worse),
    )


def retained_rates(
    rng: np.random.Generator, gates: int, n: int, flip_rate: float, retained: float, damage: float
) -> Rates:
    """Simulate gates on the part of the accuracy that is kept.

    Args:
        rng: Source of the tables.
        gates: Number of gates.
        n: Examples per gate.
        flip_rate: Fraction that flips.
        retained: Part that is to be kept.
        damage: True drop, in multiples of what the limit allows.
    """
    drop = damage * (1 - retained) * ACCURACY
    lost, gained = (flip_rate + drop) / 2, (flip_rate - drop) / 2
    cells = [ACCURACY - lost, lost, gained, 1 - ACCURACY - gained]
    tables = rng.multinomial(n, cells, size=gates)
    verdicts = [
        retained_accuracy(PairedCounts(*map(int, row)), retained, ALPHA).verdict for row in tables
    ]
    return _counted("accuracy retained", "", n, flip_rate, retained, damage, verdicts)


def f1_rates(
    rng: np.random.Generator,
    gates: int,
    n: int,
    flip_rate: float,
    margin: float,
    damage: float,
    case: str,
) -> Rates:
    """Simulate gates on macro F1, of two classes that lose alike.

    Args:
        rng: Source of the answers.
        gates: Number of gates.
        n: Examples per gate.
        flip_rate: Fraction that flips.
        margin: Limit on the drop in macro F1.
        damage: True drop of it, in multiples of the margin.
        case: Key of `SHARES`.
    """
    joint = _joint(np.array(SHARES[case]), flip_rate, damage * margin)
    verdicts = []
    for counts in rng.multinomial(n, joint.ravel(), size=gates):
        truth, expected, found = np.unravel_index(np.repeat(np.arange(8), counts), joint.shape)
        eye = np.eye(2)
        sides = Sides(eye[expected], eye[found], truth, ("a", "b"))
        verdicts.append(check_metric(sides, "macro_f1", max_drop=margin, alpha=ALPHA).verdict)
    return _counted("macro_f1", case, n, flip_rate, margin, damage, verdicts)


def _joint(shares: NDArray[np.float64], flip_rate: float, drop: float) -> NDArray[np.float64]:
    """Return P(truth, baseline's answer, candidate's answer) with a given drop in macro F1."""

    def joint(damage: float) -> NDArray[np.float64]:
        lost, gained = (flip_rate + damage) / 2, (flip_rate - damage) / 2
        found = np.empty((2, 2, 2))
        for truth, share in enumerate(shares):
            other = 1 - truth
            found[truth, truth, truth] = share * (ACCURACY - lost)
            found[truth, truth, other] = share * lost
            found[truth, other, truth] = share * gained
            found[truth, other, other] = share * (1 - ACCURACY - gained)
        return found

    def excess(damage: float) -> float:
        cells = joint(damage)
        return float(metrics.macro_f1(cells.sum(2)) - metrics.macro_f1(cells.sum(1))) - drop

    return joint(float(optimize.brentq(excess, -flip_rate, flip_rate)))


def _counted(
    metric: str,
    case: str,
    n: int,
    flip_rate: float,
    limit: float,
    damage: float,
    verdicts: list[Verdict],
) -> Rates:
    passes, regressions = (
        verdicts.count(verdict) / len(verdicts) for verdict in (Verdict.PASS, Verdict.REGRESSION)
    )
    return Rates(metric, case, n, flip_rate, limit, damage, len(verdicts), passes, regressions)


def simulate(gates: int, seed: int) -> Iterator[Rates]:
    """Simulate all cells.

    Args:
        gates: Gates per cell of the accuracy; a tenth of them where a part is to be kept, and 1.5 %
            for macro F1, whose gates take longer.
        seed: Seed; the same gives the same rates.
    """
    rng = np.random.default_rng(seed)
    for margin in MARGINS:
        for flip_rate in FLIP_RATES:
            planned = required_examples(margin, flip_rate, ALPHA)
            for n in SIZES:
                for multiple in (0, 1, 2):
                    if multiple * margin <= flip_rate:
                        damage = multiple * margin
                        yield accuracy_rates(rng, gates, n, flip_rate, margin, damage)
            yield accuracy_rates(rng, gates, planned, flip_rate, margin, 0.0)
    for retained in RETAINED:
        for n, flip_rate in ((872, 0.05), (10_000, 0.05), (10_000, 0.02)):
            for multiple in (0, 1, 2):
                yield retained_rates(rng, gates // 10, n, flip_rate, retained, multiple)
    for case in SHARES:
        for n in (872, 2000):
            for multiple in (0, 1, 2):
                yield f1_rates(rng, gates * 15 // 1000, n, 0.05, 0.02, multiple, case)


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.1f}"


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _table(head: tuple[str, ...], rows: list[str]) -> str:
    return "\n".join([_row(*head), _row(*("--:" for _ in head)), *rows])


def _error_table(found: list[Rates], metric: str) -> str:
    head = ("limit", "classes", "flips, %", "n", "true drop", "passes, %", "shows a regression, %")
    rows = [
        _row(
            f"{r.limit:g}", r.case, f"{100 * r.flip_rate:g}", f"{r.n:,}", f"{r.damage:g} x",
            _percent(r.passes), _percent(r.regressions),
        )
        for r in found
        if r.metric == metric
    ]  # fmt: skip
    return _table(head, rows)


def _accuracy_table(found: list[Rates], damage: float) -> str:
    head = (
        "limit, points", "flips, %", "n", "passes, %", "exact, %", "shows a regression, %",
        "observed drop below the limit, %", "McNemar shows no loss, %",
    )  # fmt: skip
    rows = [
        _row(
            f"{100 * r.limit:g}", f"{100 * r.flip_rate:g}", f"{r.n:,}", _percent(r.passes),
            _percent(r.exact), _percent(r.regressions), _percent(r.naive), _percent(r.mcnemar),
        )
        for r in found
        if r.metric == "accuracy" and r.damage == damage and (damage or r.n in SIZES)
    ]  # fmt: skip
    return _table(head, rows)


def _plan_table(found: list[Rates]) -> str:
    head = ("limit, points", "flips, %", "n that is planned", "passes, %", "exact, %")
    rows = [
        _row(
            f"{100 * r.limit:g}", f"{100 * r.flip_rate:g}", f"{r.n:,}", _percent(r.passes),
            _percent(r.exact),
        )
        for r in found
        if r.metric == "accuracy" and r.n not in SIZES
    ]  # fmt: skip
    return _table(head, rows)


def _markdown(found: list[Rates], gates: int, seed: int) -> str:
    few = {r.metric: r.gates for r in found}
    return f"""# Error rates of the gate

Simulated by `python benchmarks/gate_error_rates.py` (seed {seed}), at alpha 5 %. Each row holds
{gates:,} gates, of {few["accuracy retained"]:,} where a part is to be kept and {few["macro_f1"]:,}
for macro F1: a true rate of 5 % then comes out within 0.3, 1.0 and 2.5 points in 95 % of the runs.
`exact` is the sum over all tables. The last two columns are what two simpler rules would pass.

## Accuracy, candidate at the limit

A pass is wrong here, and should be one in at most 5 %; so is a regression shown, as the limit is
only just reached.

{_accuracy_table(found, 1)}

## Accuracy, candidate at twice the limit

{_accuracy_table(found, 2)}

## Accuracy, candidate without damage

What does not pass is inconclusive, but for the regressions shown.

{_accuracy_table(found, 0)}

With as many examples as `tcompress gate plan` asks for, at a power of 80 %:

{_plan_table(found)}

## Accuracy, part to be kept

The baseline has {100 * ACCURACY:g} %. The true drop is in multiples of what the limit allows.

{_error_table(found, "accuracy retained")}

## Macro F1

Two classes, as frequent as each other or 90 % and 10 %. The baseline has {100 * ACCURACY:g} %.

{_error_table(found, "macro_f1")}
"""


def _headline(found: list[Rates]) -> dict[str, Any]:
    accuracy = [r for r in found if r.metric == "accuracy"]
    planned = [r for r in accuracy if r.n not in SIZES]
    return {
        "most_false_passes_at_the_margin": max(r.passes for r in accuracy if r.damage == 1),
        "most_false_passes_at_twice_the_margin": max(
            r.passes for r in accuracy if r.damage == 2 and r.n >= 872
        ),
        "most_false_regressions_at_the_margin": max(
            r.regressions for r in accuracy if r.damage == 1
        ),
        "least_power_at_the_planned_size": min(r.passes for r in planned),
        "least_power_at_the_planned_size_exact": min(r.exact or 0.0 for r in planned),
    }


@click.command()
@click.option("--gates", default=20_000, show_default=True, help="Gates per cell.")
@click.option("--seed", default=0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=DOCS, help="Directory.")
def main(gates: int, seed: int, output: Path) -> None:
    """Simulate the gate; writes gate-error-rates.json and .md."""
    found = list(simulate(gates, seed))
    document = {"gates": gates, "seed": seed, "alpha": ALPHA, **_headline(found)}
    document["cells"] = [asdict(rates) for rates in found]
    text = _markdown(found, gates, seed)
    (output / "gate-error-rates.json").write_text(json.dumps(document, indent=1) + "\n")
    (output / "gate-error-rates.md").write_text(text)
    print(text)
    for name, rate in _headline(found).items():
        print(f"{name}: {rate:.4f}")


if __name__ == "__main__":
    main()
