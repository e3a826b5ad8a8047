"""tcompress beside its peers: same weights, same inputs, same threads, each in its own process.

Every contender is made from one fine-tuned model, by its own tools, and served by its own engine.
Peers run in their own environment (`requirements-peers.txt`), as some need older libraries.
Results are written after every step, so that a run that was cut goes on with --resume.
"""

import re
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click
import numpy as np
import peers_report
from peers_contenders import (
    BASELINE,
    CONTENDERS,
    CONTROL,
    Contender,
    Workshop,
    check_parentage,
    pruned_contender,
    size_bytes,
)

from tcompress.compress.demo import prepare_demo
from tcompress.console import Console
from tcompress.errors import MeasurementError, TcompressError
from tcompress.evaluate.accuracy import BATCH_SIZE, Predictions
from tcompress.evaluate.latency import Race, race
from tcompress.evaluate.measurement import Latency
from tcompress.evaluate.quality import judge
from tcompress.intake.configs import CONFIG_FILE
from tcompress.machine import describe_machine, usable_cpus
from tcompress.preprocessing import Batch, Encoded
from tcompress.storage import write_json
from tcompress.worker_process import WorkerProcess
from tcompress.workspace import DataConfig, Workspace, WorkspaceConfig

SCHEMA_VERSION = 1
MIX = "mix"
_SETTINGS = ("1x32", "1x128", "8x128", "32x64", MIX)
_MIX_TEXTS, _MIX_BATCH = 256, 8
_WORKER = Path(__file__).resolve().with_name("peer_worker.py")
_QUIET_S = 0.05  # between turns: threads of the last one may still spin
_BLOCK = 4  # candidates that share the baseline's turns
Row = dict[str, Any]


class Answers(NamedTuple):
    """What a contender answered in its first process.

    Attributes:
        predictions: Answers to the test examples.
        opened: What its worker said about itself.
        load_s: From the start of the process to the first answer.
        memory_bytes: The most that the process held.
    """

    predictions: Predictions
    opened: dict[str, Any]
    load_s: float
    memory_bytes: int


class Bench:
    """The model, its data, and the workers that are asked about them.

    Args:
        workshop: Makes the contenders' files.
        threads: Threads of every contender.
    """

    def __init__(self, workshop: Workshop, threads: int) -> None:
        self.workshop = workshop
        self.threads = threads
        self.test = workshop.workspace.splits().test

    @cached_property
    def encoded(self) -> Encoded:
        """The test examples as model inputs."""
        return self.workshop.encoder.preprocessor.encode(self.test)

    def batches(self, setting: str) -> list[Batch]:
        """Return the inputs of one call.

        Args:
            setting: `BATCHxTOKENS`: random tokens without padding; or `mix`.

        Raises:
            UsageError: If the model cannot read so many tokens.
        """
        if setting == MIX:
            count = min(_MIX_TEXTS, len(self.test))
            starts = range(0, count, _MIX_BATCH)
            return [self.encoded.collate(range(s, min(s + _MIX_BATCH, count))) for s in starts]
        size, tokens = map(int, setting.split("x"))
        preprocessor = self.workshop.encoder.preprocessor
        if tokens > preprocessor.max_tokens:
            msg = f"--settings {setting}: the model reads at most {preprocessor.max_tokens} tokens"
            raise click.UsageError(msg)
        return [preprocessor.random_batch(size, tokens)]

    def start(self, contender: Contender) -> WorkerProcess:
        """Start a contender's process.

        Args:
            contender: The contender.

        Raises:
            TcompressError: If its files cannot be made.
        """
        python = self.workshop.python(contender) or Path(sys.executable)
        directory = self.workshop.files(contender)
        return WorkerProcess(
            [str(python), "-P", str(_WORKER)],
            name=contender.title,
            threads=self.threads,
            opening={"engine": contender.engine, "directory": directory},
        )

    def load_s(self, contender: Contender) -> float:
        """Time a fresh process up to its first answer.

        Args:
            contender: The contender.
        """
        start = time.perf_counter()
        with self.start(contender) as process:
            process.ask("predict", batches=[self.encoded.collate([0])])
            return time.perf_counter() - start

    def ask(self, contender: Contender) -> Answers:
        """Ask a contender, in a fresh process, about all test examples.

        Args:
            contender: The contender.

        Raises:
            TcompressError: If it cannot be made, or fails.
        """
        check_parentage(contender, self.workshop.source)
        self.workshop.files(contender)
        parts = list(self.encoded.batches(BATCH_SIZE))
        start = time.perf_counter()
        with self.start(contender) as process:
            process.ask("predict", batches=[self.encoded.collate([0])])
            load_s = time.perf_counter() - start
            answers = process.ask("predict", batches=[batch for _, batch in parts])
            opened, memory = process.opened(), int(process.ask("memory"))
        rows = np.concatenate([positions for positions, _ in parts])
        logits = np.empty((len(self.test), len(self.workshop.encoder.labels)), dtype=np.float32)
        logits[rows] = np.concatenate(answers)
        if not np.isfinite(logits).all():
            msg = f"{contender.title}: answers are not finite"
            raise MeasurementError(msg)
        predictions = Predictions(logits, self.workshop.encoder.labels, self.encoded.truncated)
        return Answers(predictions, opened, load_s, memory)

    @cached_property
    def baseline(self) -> Answers:
        """What the baseline answered; its logits are kept for a run that goes on."""
        answers = self.ask(next(c for c in CONTENDERS if c.name == BASELINE))
        self._logits_file.parent.mkdir(parents=True, exist_ok=True)
        np.save(self._logits_file, answers.predictions.logits)
        return answers

    @cached_property
    def reference(self) -> Predictions:
        """The baseline's answers to the test examples, as they are kept."""
        if not self._logits_file.is_file():
            return self.baseline.predictions
        logits = np.load(self._logits_file)
        return Predictions(logits, self.workshop.encoder.labels, self.encoded.truncated)

    @property
    def _logits_file(self) -> Path:
        return self.workshop.directory / f"{BASELINE}.npy"

    def row(self, contender: Contender, loads: int) -> Row:
        """Return everything about a contender but its latencies.

        Args:
            contender: The contender.
            loads: Processes to time the loading of.

        Raises:
            TcompressError: If it cannot be made, or fails.
        """
        answers = self.baseline if contender.name == BASELINE else self.ask(contender)
        load_s = [answers.load_s, *(self.load_s(contender) for _ in range(loads - 1))]
        return {
            **_described(contender),
            **answers.opened,
            "size_bytes": size_bytes(contender, self.workshop.files(contender)),
            "memory_peak_bytes": answers.memory_bytes,
            "load_s": {"median": median(load_s), "samples": load_s},
            **judge(answers.predictions, self.reference, self.test).to_json(),
            "latency": {},
        }


@dataclass(frozen=True)
class Seat:
    """A contender's process at one setting, as a race knows it.

    Attributes:
        process: The process.
        setting: What it holds.
    """

    process: WorkerProcess
    setting: str

    def turn(self, calls: int, warmup: int) -> list[int]:
        """Measure calls, after a moment of silence; see `latency.Timed`.

        Args:
            calls: Measured calls.
            warmup: Calls before them.
        """
        time.sleep(_QUIET_S)
        return list(self.process.ask("time", name=self.setting, calls=calls, warmup=warmup))


class Record:
    """What is known so far, in its file.

    Args:
        path: The file.
        settings: What rows depend on.
        resume: Whether there may be rows already.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, resume: bool) -> None:
        self._path = path
        self._document: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "settings": settings,
            "environment": describe_machine(),
            "rows": {},
        }
        if path.exists():
            self._go_on(settings, resume=resume)

    @property
    def rows(self) -> dict[str, Row]:
        """Rows by the contender's name."""
        rows: dict[str, Row] = self._document["rows"]
        return rows

    def finished(self, name: str) -> bool:
        """Tell whether a contender was judged; one that was not run gets another chance.

        Args:
            name: The contender.
        """
        return name in self.rows and "not_run" not in self.rows[name]

    def put(self, name: str, row: Row) -> None:
        """Keep a row, or replace it.

        Args:
            name: The contender.
            row: The row.
        """
        self.rows[name] = row
        self.save()

    def save(self) -> None:
        """Write the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        staging = self._path.with_suffix(".partial")
        write_json(staging, self._document)
        staging.replace(self._path)

    def _go_on(self, settings: dict[str, Any], *, resume: bool) -> None:
        if not resume:
            msg = f"{self._path} is there already; go on with --resume, or name another --output"
            raise click.UsageError(msg)
        found = peers_report.read(self._path)
        if found["settings"] != settings:
            msg = f"{self._path} was made with {found['settings']}, not with {settings}"
            raise click.UsageError(msg)
        self._document = found


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="Else the demo's.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="Goes with --model.")
@click.option("--settings", multiple=True, default=_SETTINGS, help="BATCHxTOKENS, or mix.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("artifacts/peers.json"),
    help="Results; the contenders' files go into a folder beside it.",
)
@click.option("--resume", is_flag=True, help="Go on where results are already.")
@click.option("--write-docs", is_flag=True, help="Only turn the results there are into docs.")
@click.option(
    "--pruned",
    type=click.Path(path_type=Path, exists=True),
    multiple=True,
    help="Pruned artifact; an encoder is exported in int8.",
)
@click.option("--budget-s", type=click.FloatRange(min=0), default=300.0, help="Per setting.")
@click.option("--loads", type=click.IntRange(min=1), default=3, help="Fresh processes to load in.")
@click.option("--threads", type=click.IntRange(min=1), help="Else all CPUs.")
@click.option("--only", multiple=True, help="Contender; the baseline always takes part.")
@click.option(
    "--peer-python",
    type=click.Path(path_type=Path),
    default=Path("venv/peers/bin/python"),
    help="Python of the environment with requirements-peers.txt.",
)
def main(
    model: Path | None,
    data: Path | None,
    settings: tuple[str, ...],
    output: Path,
    resume: bool,
    write_docs: bool,
    pruned: tuple[Path, ...],
    budget_s: float,
    loads: int,
    threads: int | None,
    only: tuple[str, ...],
    peer_python: Path,
) -> None:
    """Race tcompress against its peers, and judge what they answer."""
    if write_docs:
        peers_report.write_docs(output)
        return
    console = Console()
    _check_settings(settings)
    contenders = _chosen(only, [pruned_contender(path) for path in pruned])
    folder = output.with_suffix("")
    workspace = _workspace(model, data, folder / "workspace", console)
    bench = Bench(Workshop(workspace, folder / "files", peer_python), threads or usable_cpus())
    record = Record(output, _identity(bench), resume=resume)
    if not resume:
        bench.workshop.clear()
    _judge_all(bench, contenders, record, loads, console)
    _race_all(bench, contenders, record, settings, budget_s, console)


def _judge_all(
    bench: Bench, contenders: Sequence[Contender], record: Record, loads: int, console: Console
) -> None:
    for contender in contenders:
        if record.finished(contender.name):
            continue
        try:
            with console.step(contender.title):
                row = bench.row(contender, loads)
        except TcompressError as error:
            if contender.name == BASELINE:
                raise
            console.warn(f"{contender.title} is not run: {error}")
            row = {**_described(contender), "not_run": str(error)}
        record.put(contender.name, row)


def _race_all(
    bench: Bench,
    contenders: Sequence[Contender],
    record: Record,
    settings: Sequence[str],
    budget_s: float,
    console: Console,
) -> None:
    running = [contender for contender in contenders if record.finished(contender.name)]
    with ExitStack() as stack:
        processes: dict[str, WorkerProcess] = {}
        for setting in settings:
            late = [c for c in running if setting not in record.rows[c.name]["latency"]]
            if not late:
                continue
            seats = {}
            for contender in dict.fromkeys((running[0], *late)):
                if contender.name not in processes:
                    process = stack.enter_context(bench.start(contender))
                    process.opened()
                    processes[contender.name] = process
                seats[contender.name] = Seat(processes[contender.name], setting)
            with console.step(f"race at {setting}"):
                _race(bench.batches(setting), seats, record, budget_s, console)


def _race(
    batches: list[Batch], seats: dict[str, Seat], record: Record, budget_s: float, console: Console
) -> None:
    """Race at one setting; who cannot answer its inputs stays out, with the reason."""
    setting = seats[BASELINE].setting
    racing = {}
    for name, seat in seats.items():
        try:
            seat.process.ask("hold", name=setting, batches=batches)
            racing[name] = seat
        except MeasurementError as error:
            if name == BASELINE:
                raise
            console.warn(str(error))
            record.rows[name]["latency"][setting] = {"not_run": str(error)}
    outcome = race(racing, BASELINE, budget_s=budget_s, block=_BLOCK)
    for name in racing:
        record.rows[name]["latency"].setdefault(setting, _latency(record.rows[name], outcome, name))
    record.save()


def _latency(row: Row, outcome: Race, name: str) -> Row:
    latency = Latency(
        outcome.samples_ns[name],
        outcome.paces[name].warmup,
        row["threads"],
        "cpu",
        row["versions"],
    )
    speedup = outcome.speedups.get(name)
    return {
        "median_ms": latency.median_ms,
        **{f"{key}_ms": value for key, value in latency.percentiles_ms().items()},
        "n": latency.n,
        "warmup": latency.warmup,
        "speedup": None if speedup is None else speedup.to_json(),
        "half_width": None if speedup is None else speedup.half_width * speedup.value,
    }


def _described(contender: Contender) -> Row:
    return {
        "title": contender.title,
        "engine": contender.engine,
        "peer": contender.peer,
        "control": contender.name == CONTROL,
    }


def _identity(bench: Bench) -> dict[str, Any]:
    return {
        "model_digest": bench.workshop.workspace.source().digest,
        "test": len(bench.test),
        "test_digest": bench.test.digest,
        "threads": bench.threads,
    }


def _workspace(
    model: Path | None, data: Path | None, directory: Path, console: Console
) -> Workspace:
    """Make the workspace that all contenders are made in."""
    if (model is None) != (data is None):
        msg = "--model and --data go together; without both, the reviews demo is raced"
        raise click.UsageError(msg)
    if model is None or data is None:
        config = prepare_demo("reviews", console).config
    elif not (model / CONFIG_FILE).is_file():
        msg = f"--model {model}: no {CONFIG_FILE} in it; peers read Hugging Face models only"
        raise click.UsageError(msg)
    else:
        config = WorkspaceConfig(str(model.resolve()), DataConfig(file=str(data.resolve())))
    return Workspace.create(directory, config, replace=True)


def _chosen(only: Sequence[str], pruned: list[Contender]) -> list[Contender]:
    known = {contender.name: contender for contender in (*CONTENDERS, *pruned)}
    if unknown := [name for name in only if name not in known]:
        msg = f"--only {unknown[0]}: no such contender; there are {', '.join(known)}"
        raise click.UsageError(msg)
    names = {BASELINE, *only, *(c.name for c in pruned)} if only else known
    return [contender for name, contender in known.items() if name in names]


def _check_settings(settings: Sequence[str]) -> None:
    for setting in settings:
        if setting != MIX and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", setting):
            msg = f"--settings {setting}: neither BATCHxTOKENS, as 8x128, nor {MIX}"
            raise click.UsageError(msg)


if __name__ == "__main__":
    main()
