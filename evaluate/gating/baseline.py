"""A baseline that was recorded: its answers in one small file, so that it need not be there.

The file is JSON, to be committed beside the code that the gate guards: one line per example, no
times and no paths in it, the same bytes for the same model, data and machine. Logits are rounded
to five digits; a candidate's classes are compared with the recorded classes, not with rounded ones.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from tcompress.console import Console
from tcompress.data import Examples
from tcompress.digests import document_digest
from tcompress.encoder import label_indices
from tcompress.errors import DataError, InputError, ModelError, RequestError
from tcompress.machine import cpu_features, cpu_name, library_versions, usable_cpus
from tcompress.preprocessing import TOKENIZER_FILES
from tcompress.staging import write_text_atomically
from tcompress.workspace import reference_to, source_of

from ..accuracy import Predictions, Watch, predict
from ..engine_info import EngineInfo
from ..engine_process import EngineProcess
from ..label_order import check_label_order
from ..latency import race
from ..metrics import CLASSIFICATION, confusion
from ..subjects import named_subjects
from .baseline_file import SCHEMA_VERSION, Record, Row, compose, file_digests, parse
from .guards import check_ids
from .task_gate import check_of_classes

TOKENS = 128
"""Longest input that `--latency` times unless it is told otherwise."""


@dataclass(frozen=True)
class RecordedLatency:
    """How long the baseline took, and how well that can be known on its machine.

    Attributes:
        median_ms: Median duration of a call.
        n: Number of measured calls.
        batch: Examples per call.
        tokens: Tokens per example.
        device: `cpu` or `cuda`.
        threads: Threads of the engine.
        noise_low: Lower bound of its speed-up over itself.
        noise_high: Upper bound of the same.
        noise_confidence: Confidence that the two have; few rounds give little.
    """

    median_ms: float
    n: int
    batch: int
    tokens: int
    device: str
    threads: int
    noise_low: float
    noise_high: float
    noise_confidence: float


@dataclass(frozen=True, eq=False)
class Baseline:
    """A baseline that was recorded.

    Attributes:
        path: Its file.
        record: What the file says.
    """

    path: Path
    record: Record

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file of `tcompress gate record`.

        Args:
            path: The file.

        Raises:
            InputError: If there is none, or it is damaged, changed or of another form.
        """
        return cls(path, parse(path))

    def write(self) -> None:
        """Write the file, all or nothing.

        Raises:
            DataError: If it would be too large to be read again.
            StorageError: If the file system refuses.
        """
        write_text_atomically(self.path, compose(self.record))

    def summary(self) -> dict[str, Any]:
        """Return what `gate record --json` shows: everything but the answers."""
        document = asdict(replace(self.record, rows=()))
        del document["rows"]
        head = {"schema_version": SCHEMA_VERSION, "path": str(self.path)}
        return head | document | {"examples": len(self.record.rows)}

    @property
    def source(self) -> str:
        """Digest of the unpruned model that the baseline was made from."""
        return self.record.source

    @cached_property
    def answers(self) -> Predictions:
        """The recorded answers, in the order of the recorded examples."""
        labels = self.record.labels
        logits = np.asarray([row.logits for row in self.record.rows], dtype=np.float32)
        chosen = np.asarray([labels.index(row.predicted) for row in self.record.rows])
        each = np.arange(len(logits))
        # Rounding can make two logits equal; the recorded class stays the answer.
        logits[each, chosen] = np.nextafter(logits[each, chosen], np.float32(np.inf))
        return Predictions(logits, labels, self.record.truncated)

    def answers_to(self, examples: Examples) -> Predictions:
        """Return the recorded answers if they answer exactly these examples.

        Args:
            examples: Labelled examples.

        Raises:
            DataError: If an example, a label or the order is not as it was recorded.
        """
        check_ids(examples)
        same_ids = tuple(row.id for row in self.record.rows) == examples.ids
        if examples.digest == self.record.data and same_ids:
            return self.answers
        msg = (
            f"{examples.origin}: {self._difference(examples)}, so {self.path} does not answer it; "
            "gate on the data it was recorded on, or record it again with `tcompress gate record`"
        )
        raise DataError(msg)

    def _difference(self, examples: Examples) -> str:
        recorded = {row.id: row.input for row in self.record.rows}
        if len(examples) != len(recorded):
            return f"it has {len(examples):,} examples, {len(recorded):,} were recorded"
        if strange := [name for name in examples.ids if name not in recorded]:
            return f"example {strange[0]!r} was not recorded"
        found = dict(zip(examples.ids, examples.content_digests, strict=True))
        if changed := [name for name in recorded if not found[name].startswith(recorded[name])]:
            return f"example {changed[0]!r} has another input than was recorded"
        if list(recorded) != list(found):
            return "its examples stand in another order than was recorded"
        return "it has other labels than were recorded"

    def ask_beside(
        self, candidate: Path, examples: Examples, *, device: str, console: Console
    ) -> tuple[Predictions, Predictions]:
        """Ask a candidate what the baseline was asked, on the candidate's own engine.

        Args:
            candidate: A model directory or an artifact.
            examples: Labelled examples.
            device: `cpu` or `cuda`.
            console: Where to show the progress.

        Returns:
            The baseline's answers and the candidate's.

        Raises:
            DataError: If the examples are not those that were recorded.
            ModelError: If the candidate reads other tokens or names other classes.
            MeasurementError: If the engine fails.
        """
        expected = self.answers_to(examples)
        label_indices(expected.labels, examples)
        with EngineProcess(candidate, device=device) as engine:
            check_of_classes(engine.info.task, "a recorded baseline")
            self.check_candidate(candidate, engine.info)
            console.say(f"gate: the baseline's answers are those in {self.path}")
            watch = partial(console.track, what="asking the candidate")
            return expected, predict(engine, examples, watch=watch, require_finite=False)

    def check_candidate(self, directory: Path, info: EngineInfo) -> None:
        """Raise unless a candidate reads and answers as the recorded baseline did.

        Args:
            directory: A model directory or an artifact.
            info: What its engine says.

        Raises:
            ModelError: If labels, tokenizer or longest input differ.
        """
        record = self.record
        found, expected = file_digests(directory, TOKENIZER_FILES), record.tokenizer
        others = sorted(n for n in found | expected if found.get(n) != expected.get(n))
        if info.labels != record.labels:
            what = f"the labels are ({', '.join(info.labels)}), not ({', '.join(record.labels)})"
        elif others:
            what = f"{others[0]} differs"
        elif info.max_tokens != record.max_tokens:
            what = f"inputs are cut at {info.max_tokens} tokens, not at {record.max_tokens}"
        else:
            return
        msg = (
            f"{directory}: {what} from what {self.path} was recorded with; judge a candidate that "
            "was made from that model, or record the baseline again with `tcompress gate record`"
        )
        raise ModelError(msg)

    def latency_here(self) -> RecordedLatency:
        """Return the recorded latency if it was measured on a CPU like this one.

        Raises:
            InputError: If there is none, or it was measured elsewhere.
        """
        again = "record it again here with `tcompress gate record --latency`, or drop the limit"
        if self.record.latency is None:
            msg = f"{self.path}: no latency in it, and a limit on it is asked for; {again}"
            raise InputError(msg)
        there, here = self.record.cpu, this_cpu()
        if there != here:
            msg = (
                f"{self.path}: its latency was measured on {_cpu_words(there)}, this is "
                f"{_cpu_words(here, beside=there)}; {again}"
            )
            raise InputError(msg)
        return RecordedLatency(**self.record.latency)

    def notes(self) -> tuple[str, ...]:
        """Say what a reader of a verdict that rests on this file should know."""
        there, here = self.record.cpu, this_cpu()
        if there == here:
            return ()
        words = f"{_cpu_words(there)}, this is {_cpu_words(here, beside=there)}"
        return (f"the baseline was recorded on {words}; answers can differ a little",)


def is_recorded(baseline: Path) -> bool:
    """Tell whether a baseline is named by a recorded file, and not by a directory.

    Args:
        baseline: What `--baseline` says.
    """
    return baseline.is_file() or (baseline.suffix == ".json" and not baseline.is_dir())


def record_baseline(
    path: Path,
    directory: Path,
    examples: Examples,
    *,
    device: str = "cpu",
    latency: Callable[[], RecordedLatency] | None = None,
    watch: Watch = iter,
) -> Baseline:
    """Ask a model about labelled examples and put its answers into a `Baseline`.

    Args:
        path: Where it is to be written.
        directory: A model directory or an artifact.
        examples: Labelled examples.
        device: `cpu` or `cuda`.
        latency: Measures the latency; None leaves it out.
        watch: Shows the progress over the batches.

    Raises:
        DataError: If the examples have no labels, unknown ones, or ids that are not unique.
        ArtifactError: If the artifact is damaged.
        ModelError: If the model cannot be opened.
        MeasurementError: If the engine fails.
        ModelError: If it answers with a value that is not finite.
    """
    check_ids(examples)
    [subject], _ = named_subjects([directory], directory)
    with EngineProcess(directory, device=device) as engine:
        check_of_classes(engine.info.task, "`gate record`")
        truth = label_indices(engine.info.labels, examples).numpy()
        answers, info = predict(engine, examples, watch=watch), engine.info
    check_label_order(answers, examples)
    counts = confusion(truth, answers.classes, len(info.labels))
    measured = None if latency is None else asdict(latency())
    record = Record(
        model=reference_to(directory).digest,
        source=source_of(directory).digest,
        size_bytes=subject.size_bytes,
        data=examples.digest,
        ids=document_digest(examples.ids),
        labels=info.labels,
        tokenizer=file_digests(directory, TOKENIZER_FILES),
        max_tokens=info.max_tokens,
        truncated=answers.truncated,
        device=device,
        metrics={name: float(metric(counts)) for name, metric in CLASSIFICATION.items()},
        cpu=this_cpu(),
        versions=library_versions(),
        latency=measured,
        rows=_rows(answers, examples),
    )
    return Baseline(path, record)


def measure_latency(
    directory: Path,
    *,
    batch: int = 1,
    tokens: int | None = None,
    device: str = "cpu",
    budget_s: float = 12.0,
    seed: int = 0,
) -> RecordedLatency:
    """Time a model against itself.

    Args:
        directory: A model directory or an artifact.
        batch: Examples per call.
        tokens: Tokens per example; else 128, or the model's longest input.
        device: `cpu` or `cuda`.
        budget_s: How long.
        seed: Seed of the order and of the inputs.

    Raises:
        MeasurementError: If an engine fails.
        RequestError: If the model takes no input of that length.
    """
    first = EngineProcess(directory, device=device)
    again = EngineProcess(directory, name=f"{directory} again", device=device)
    with first, again:
        length = first.info.tokens_for(tokens, TOKENS)
        if tokens is not None and tokens > length:
            msg = f"--tokens {tokens}: the model's longest input is {first.info.max_tokens}"
            raise RequestError(msg)
        for engine in (first, again):
            engine.fix(batch, length, seed=seed)
        timed = race({"first": first, "again": again}, "first", budget_s=budget_s, seed=seed)
        samples, noise = timed.samples_ns["first"], timed.speedups["again"].interval
        return RecordedLatency(
            median_ms=round(float(np.median(samples)) / 1e6, 5),
            n=len(samples),
            batch=batch,
            tokens=length,
            device=device,
            threads=first.info.threads,
            noise_low=noise.low,
            noise_high=noise.high,
            noise_confidence=noise.confidence,
        )


def this_cpu() -> dict[str, Any]:
    """Return what latencies depend on: the processor, its instruction sets, CPUs to use."""
    return {"name": cpu_name(), "features": cpu_features(), "usable": usable_cpus()}


def _rows(answers: Predictions, examples: Examples) -> tuple[Row, ...]:
    return tuple(
        Row.of(name, content, str(predicted), logits)
        for name, content, predicted, logits in zip(
            examples.ids, examples.content_digests, answers.names, answers.logits, strict=True
        )
    )


def _cpu_words(cpu: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> str:
    """Name a processor, with the features that tell it from another one."""
    words = f"{cpu['name']} with {cpu['usable']} CPUs"
    if beside is None or cpu["name"] != beside["name"]:
        return words
    names = sorted(cpu["features"].keys() | beside["features"].keys())
    other = [n for n in names if cpu["features"].get(n) != beside["features"].get(n)]
    return f"{words} and another {', '.join(other)}" if other else words
