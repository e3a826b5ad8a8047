"""Whether the latencies of `tcompress evaluate` can be believed.

`python benchmarks/noise.py control DIRECTORY --runs 20` times an artifact against itself again and
again, each time in new processes, through what `evaluate` itself uses. An interval should hold 1 in
at least 95 of 100 runs, and the median deviation from 1 should be small.

`python benchmarks/noise.py agreement FP32 INT8` holds our ratio of two ONNX artifacts against the
one that pyperf finds with plain ONNX Runtime, in processes of its own.

`python benchmarks/noise.py repeats REPORT REPORT` holds two runs of `evaluate` on the same
artifacts against each other: whether their intervals meet.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import click

from tcompress.console import Console
from tcompress.evaluate.entrants import Entrant
from tcompress.evaluate.latency import Race, race
from tcompress.evaluate.measurement import Speedup
from tcompress.evaluate.sessions import open_session
from tcompress.evaluate.statistics import ratio_interval
from tcompress.evaluate.subjects import compared_subjects, model_subject
from tcompress.machine import usable_cpus

DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)
SHAPE = (1, 128)


def control_run(directory: Path, budget_s: float, processes: int, seed: int) -> Speedup:
    """Time an artifact against itself, as `evaluate` times its control."""
    subject = model_subject(directory.name, directory)
    entrant = Entrant(subject, subject.precision, "cpu")
    joined: Race | None = None
    for number in range(processes):
        with open_session(
            [entrant], lambda _: SHAPE, Console(quiet=True), threads=None, seed=seed + number
        ) as seats:
            for seat in seats:
                seat.engine.fix(*SHAPE, seed=seed)
            contenders = {"baseline": seats[0].engine, "control": seats[1].engine}
            found = race(contenders, "baseline", budget_s=budget_s / processes, seed=seed + number)
        joined = found if joined is None else joined.then(found)
    assert joined is not None, "at least one process"
    return joined.speedups["control"]


def our_ratio(fp32: Path, int8: Path, budget_s: float, seed: int) -> Speedup:
    """Return how many times as fast the second artifact is as the first, as `evaluate` finds it."""
    entrants = [Entrant(s, s.precision, "cpu") for s in compared_subjects(fp32, int8)]
    with open_session(
        entrants, lambda _: SHAPE, Console(quiet=True), threads=None, seed=seed
    ) as seats:
        contenders = {"fp32": seats[0].engine, "int8": seats[1].engine}
        for engine in contenders.values():
            engine.fix(*SHAPE, seed=0)
        return race(contenders, "fp32", budget_s=budget_s, seed=seed).speedups["int8"]


def _pyperf_values_ms(model: Path) -> list[float]:
    import pyperf

    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "out.json"
        script = Path(__file__).with_name("noise_pyperf.py")
        command = [sys.executable, str(script), "--model", str(model), "-o", str(output), "--quiet"]
        command += ["--processes", "1", "--values", "5", "--warmups", "2"]
        command += ["--threads", str(usable_cpus()), "--inherit-environ", ",".join(os.environ)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return [1e3 * value for value in pyperf.Benchmark.load(str(output)).get_values()]


@click.group()
def main() -> None:
    """Whether the latencies of `tcompress evaluate` can be believed."""


@main.command()
@click.argument("directory", type=DIRECTORY)
@click.option("--runs", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--budget-s", type=float, default=20.0, show_default=True)
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("artifacts/noise.jsonl"),
    show_default=True,
    help="One line per run; runs that are there are not done again.",
)
def control(directory: Path, runs: int, budget_s: float, processes: int, output: Path) -> None:
    """Time an artifact against itself, again and again."""
    output.parent.mkdir(parents=True, exist_ok=True)
    key = {"directory": str(directory), "budget_s": budget_s, "processes": processes}
    done = _read(output, key)
    for seed in range(len(done), runs):
        found = control_run(directory, budget_s, processes, 1000 * seed)
        row = key | {"load": os.getloadavg()[0]} | found.to_json()
        with output.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        done.append(row)
        print(
            f"run {seed + 1}: {found.value:.4f} [{found.interval.low:.4f}, "
            f"{found.interval.high:.4f}] from {found.blocks} blocks, {found.verdict}",
            flush=True,
        )
    held = [row["low"] <= 1 <= row["high"] for row in done]
    off = [abs(row["value"] - 1) for row in done]
    wide = [(row["high"] - row["low"]) / 2 for row in done]
    print(
        f"{sum(held)} of {len(held)} intervals hold 1; median deviation {median(off):.2%}, largest "
        f"{max(off):.2%}; median half-width {median(wide):.2%}"
    )


@main.command()
@click.argument("fp32", type=DIRECTORY)
@click.argument("int8", type=DIRECTORY)
@click.option("--budget-s", type=float, default=10.0, show_default=True, help="Of ours, a round.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Of pyperf: half as many per file and round.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=6, show_default=True)
def agreement(fp32: Path, int8: Path, budget_s: float, processes: int, rounds: int) -> None:
    """Hold our ratio of two ONNX artifacts against pyperf's, in turns.

    A virtual machine changes its speed for minutes, and int8 and fp32 do not change alike; so what
    is compared are the two ratios of one round, in which half of pyperf's processes run before
    ours, and half behind.
    """
    found, apart = [], []
    for seed in range(rounds):
        values: dict[Path, list[float]] = {fp32: [], int8: []}
        for path in (fp32, int8) * processes:
            values[path] += _pyperf_values_ms(path / "model.onnx")
        ours = our_ratio(fp32, int8, budget_s, seed).value
        for path in (int8, fp32) * processes:
            values[path] += _pyperf_values_ms(path / "model.onnx")
        found.append(ours)
        slow, fast = (median(values[path]) for path in (fp32, int8))
        apart.append(slow / fast / ours)
        print(
            f"round {seed + 1}: tcompress {ours:.3f}, pyperf {slow / fast:.3f} "
            f"({slow:.2f} ms over {fast:.2f} ms), apart by {apart[-1] - 1:+.1%}",
            flush=True,
        )
    middle, interval = ratio_interval(apart)
    print(
        f"{rounds} rounds: tcompress {median(found):.3f}; pyperf over it {middle:.3f} "
        f"[{interval.low:.3f}, {interval.high:.3f}] with {interval.confidence:.0%} confidence; "
        f"largest difference of a round {max(apart, key=lambda r: abs(r - 1)) - 1:+.1%}"
    )


@main.command()
@click.argument("first", type=click.Path(exists=True, path_type=Path, dir_okay=False))
@click.argument("second", type=click.Path(exists=True, path_type=Path, dir_okay=False))
def repeats(first: Path, second: Path) -> None:
    """Hold the speed-ups of two report.json of one workspace against each other."""
    before, after = (_speedups(path) for path in (first, second))
    assert before.keys() == after.keys(), "the reports are not of the same artifacts"
    met = 0
    for name, (a, b) in {name: (before[name], after[name]) for name in before}.items():
        meet = a["low"] <= b["high"] and b["low"] <= a["high"]
        met += meet
        told = (f"{s['value']:.3f} [{s['low']:.3f}, {s['high']:.3f}]" for s in (a, b))
        print(f"{name}: {' and '.join(told)}: {'meet' if meet else 'do NOT meet'}")
    print(f"{met} of {len(before)} intervals meet")


def _speedups(report: Path) -> dict[str, dict[str, float]]:
    """Return the speed-ups of all but the baseline, which is 1 by definition."""
    measured = json.loads(report.read_text())["measurements"]
    return {
        f"{m['artifact']}, {m['device']}, {m['batch']}x{m['tokens']}": m["speedup"]
        for m in measured
        if m["speedup"]["verdict"] is not None
    }


def _read(path: Path, key: dict[str, Any]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if {name: row[name] for name in key} == key]


if __name__ == "__main__":
    main()
