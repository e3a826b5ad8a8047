"""What the parts of pruning are worth, on the reviews demo, beside published baselines.

Part `heads` removes heads only; part `all` removes heads and neurons by multiply-accumulates.
Rows go to OUTPUT/PART.jsonl one by one, so that a run that was cut goes on with --resume.
"""

import copy
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import ablation_report
import baselines
import click
import numpy as np
from torch import Tensor

from tcompress.compress.criteria import Criterion, Settings
from tcompress.compress.demo import prepare_demo
from tcompress.compress.judging import mean_divergence, predict_all
from tcompress.compress.planning import MacCosts, Planner
from tcompress.compress.pruner import MAC_TOKENS
from tcompress.compress.pruning import prune_
from tcompress.compress.reconstruction import reconstruct_
from tcompress.compress.scores import HeadScores
from tcompress.compress.scoring import rank_units
from tcompress.compress.selection import select_units
from tcompress.compress.surgeon import Surgeon
from tcompress.console import Console
from tcompress.data import Examples
from tcompress.encoder import Encoder, label_indices, open_encoder
from tcompress.machine import library_versions
from tcompress.plan import CompressionPlan
from tcompress.workspace import Splits, Workspace

_BATCH_SIZE = 32
_RATIOS = {"heads": (0.1, 0.3, 0.5, 0.7), "all": (0.1, 0.3, 0.5, 0.6, 0.7)}
_HEADS_ONLY = (Criterion.ENTROPY, Criterion.CONFIDENCE, Criterion.HIES, Criterion.LEAVE_ONE_OUT)


@dataclass(frozen=True)
class Method:
    """A way to prune.

    Attributes:
        name: As it stands in tables.
        criterion: How units are scored; None: one of the published methods.
        reconstruct: Whether what is left is refitted by least squares.
    """

    name: str
    criterion: Criterion | None
    reconstruct: bool = False


@dataclass(frozen=True)
class Row:
    """One pruned encoder on the test examples.

    Attributes:
        part: `heads` or `all`.
        method: Name of the method.
        ratio: Fraction of the heads, or of the multiply-accumulates, that was to go.
        seed: Seed of the draw of calibration examples.
        macs_removed: Fraction of the multiply-accumulates that went, at 128 tokens.
        accuracy: Fraction right.
        drop_points: Accuracy of the unpruned encoder minus that, in percentage points.
        divergence: Mean KL(unpruned || pruned) in nats.
        agreement: Fraction of examples with the unpruned encoder's answer.
        seconds: To choose, cut and repair; the scores are shared and not in it.
    """

    part: str
    method: str
    ratio: float
    seed: int
    macs_removed: float
    accuracy: float
    drop_points: float
    divergence: float
    agreement: float
    seconds: float


def methods(part: str) -> list[Method]:
    """Return what a part compares.

    Args:
        part: `heads` or `all`.
    """
    alone = [
        Criterion.RANDOM,
        Criterion.MAGNITUDE,
        Criterion.ACTIVATION,
        Criterion.GATE_GRADIENT,
        Criterion.FISHER,
        Criterion.CURVATURE,
        *(_HEADS_ONLY if part == "heads" else ()),
        Criterion.OBS,
    ]
    repaired = [Criterion.GATE_GRADIENT if part == "heads" else Criterion.FISHER, Criterion.OBS]
    published = [] if part == "heads" else [Method("Kwon", None), Method("K-prune", None)]
    return [
        *(Method(criterion.value, criterion) for criterion in alone),
        *published,
        *(Method(f"{c.value} + reconstruction", c, reconstruct=True) for c in repaired),
    ]


class Judge:
    """The unpruned encoder and the test examples.

    Args:
        encoder: The encoder.
        test: Examples to judge by.
    """

    def __init__(self, encoder: Encoder, test: Examples) -> None:
        self.encoder = encoder
        self._encoded = encoder.preprocessor.encode(test)
        self._truth = label_indices(encoder.labels, test)
        self._answers = predict_all(encoder, self._encoded)
        self.accuracy = _share(self._answers.argmax(-1) == self._truth)

    def judge(self, student: Encoder) -> dict[str, float]:
        """Return what a row holds about a pruned encoder.

        Args:
            student: The pruned encoder.
        """
        logits = predict_all(student, self._encoded)
        accuracy = _share(logits.argmax(-1) == self._truth)
        before, after = (e.anatomy.macs(MAC_TOKENS) for e in (self.encoder, student))
        return {
            "macs_removed": 1 - after / before,
            "accuracy": accuracy,
            "drop_points": 100 * (self.accuracy - accuracy),
            "divergence": mean_divergence(self._answers, logits),
            "agreement": _share(logits.argmax(-1) == self._answers.argmax(-1)),
        }


class Draw:
    """One draw of calibration examples and what is measured on it, each once.

    Args:
        encoder: The encoder; not changed.
        train: The training split.
        count: Calibration examples.
        seed: Seed of the draw.
        console: Shows progress.
    """

    def __init__(
        self, encoder: Encoder, train: Examples, count: int, seed: int, console: Console
    ) -> None:
        self._encoder = encoder
        examples = train.sample(count, seed)
        self._labels = label_indices(encoder.labels, examples)
        self._encoded = encoder.preprocessor.encode(examples)
        self._seed = seed
        self._console = console
        self._plan = cache(self._make_plan)
        self._ranked = cache(self._rank)

    def prune(self, part: str, method: Method, ratio: float) -> Encoder:
        """Return the encoder pruned by a method.

        Args:
            part: `heads` or `all`.
            method: The method.
            ratio: Fraction of heads or of multiply-accumulates to remove.
        """
        if method.name == "Kwon":
            return baselines.prune_by_fisher(
                self._encoder, self.gradients, self._encoded, removed=ratio, tokens=MAC_TOKENS
            )
        if method.criterion is None:
            return baselines.prune_by_knowledge(
                self._encoder, self._encoded, removed=ratio, tokens=MAC_TOKENS
            )
        student = replace(self._encoder, model=copy.deepcopy(self._encoder.model))
        prune_(student, self._plan(part, method.criterion, ratio))
        if method.reconstruct:
            reconstruct_(student, self._encoder, self._encoded)
        return student

    def measure(self, part: str) -> None:
        """Measure what the methods of a part need, ahead of timing them.

        Args:
            part: `heads` or `all`.
        """
        for method in methods(part):
            if method.criterion is not None:
                self._scores(part, method.criterion)
        if part == "all":
            self.gradients.sum()

    @cached_property
    def gradients(self) -> Tensor:
        """Gradients of mini-batches in random order, for Kwon."""
        order = np.random.default_rng(self._seed).permutation(len(self._labels))
        rows = [list(map(int, part)) for part in _parts(order)]
        batches = ((self._encoded.collate(part), self._labels[part]) for part in rows)
        return baselines.batch_gradients(self._encoder, batches)

    @cached_property
    def surgeon(self) -> Surgeon:
        """Scores by elimination."""
        batches = (batch for _, batch in self._encoded.batches(_BATCH_SIZE))
        return Surgeon.of(self._encoder, batches, {}, self._console.track)

    def _rank(self, part: str) -> dict[Criterion, HeadScores]:
        """Return the scores by every criterion of a part but `obs`, from one pass."""
        found = [m.criterion for m in methods(part) if m.criterion not in (None, Criterion.OBS)]
        criteria = [criterion for criterion in dict.fromkeys(found) if criterion is not None]
        total = -(-len(self._labels) // _BATCH_SIZE)
        batches = self._console.track(self._encoded.batches(_BATCH_SIZE), "scoring", total)
        labelled = ((batch, self._labels[rows]) for rows, batch in batches)
        ranked = rank_units(self._encoder, criteria, labelled, settings=Settings(seed=self._seed))
        return {ranking.scores.criterion: ranking.scores for ranking in ranked}

    def _scores(self, part: str, criterion: Criterion) -> HeadScores:
        return self.surgeon.scores if criterion is Criterion.OBS else self._ranked(part)[criterion]

    def _make_plan(self, part: str, criterion: Criterion, ratio: float) -> CompressionPlan:
        dense = self._encoder.plan
        scores = self._scores(part, criterion)
        if part == "heads":
            plan = select_units(scores, dense, heads=ratio, drop_sublayers=True)
        else:
            planner = Planner(scores, dense, MacCosts.of(self._encoder.anatomy, MAC_TOKENS))
            plan = planner.within((1 - ratio) * planner.total(dense))
        return self.surgeon.refined(plan) if criterion is Criterion.OBS else plan


class Rows:
    """The rows of a part in their file, below a line that says how they were made.

    Args:
        path: The file.
        header: How rows are made.
        resume: Whether there may be rows already.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, resume: bool) -> None:
        self._path = path
        self._done: set[tuple[str, float, int]] = set()
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(header) + "\n", encoding="utf-8")
            return
        if not resume:
            msg = f"{path} has rows already; go on with --resume, or name another --output"
            raise click.UsageError(msg)
        found, rows = ablation_report.read_rows(path)
        if found["settings"] != header["settings"]:
            msg = f"{path} was made with {found['settings']}, not with {header['settings']}"
            raise click.UsageError(msg)
        lines = [json.dumps(line) + "\n" for line in (found, *rows)]
        path.write_text("".join(lines), encoding="utf-8")  # without a last line that was cut
        self._done = {(row["method"], row["ratio"], row["seed"]) for row in rows}

    def missing(
        self, part: str, ratios: tuple[float, ...], seed: int
    ) -> list[tuple[Method, float]]:
        """Return what is not done yet.

        Args:
            part: `heads` or `all`.
            ratios: Fractions to remove.
            seed: Seed of the draw.
        """
        wanted = [(method, ratio) for method in methods(part) for ratio in ratios]
        return [(m, ratio) for m, ratio in wanted if (m.name, ratio, seed) not in self._done]

    def add(self, row: Row) -> None:
        """Append a row.

        Args:
            row: The row.
        """
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--part", type=click.Choice(["heads", "all", "both"]), default="both")
@click.option("--seeds", type=click.IntRange(min=1), default=3, help="Draws of the calibration.")
@click.option("--examples", default=1066, help="Test examples to judge by; 0: all.")
@click.option("--calibration", default=1024, help="Calibration examples.")
@click.option("--ratios", type=click.FloatRange(0, 1), multiple=True, help="Instead of the usual.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("artifacts/ablation"), help="Rows."
)
@click.option("--resume", is_flag=True, help="Go on where rows are already.")
@click.option("--write-docs", is_flag=True, help="Only turn the rows there are into docs.")
def main(
    part: str,
    seeds: int,
    examples: int,
    calibration: int,
    ratios: tuple[float, ...],
    output: Path,
    resume: bool,
    write_docs: bool,
) -> None:
    """Compare ways to prune on the reviews demo."""
    if write_docs:
        ablation_report.write_docs(output)
        return
    console = Console()
    splits, encoder = _demo(console)
    # sentences stand film by film: a draw spreads over the films, the first ones would not
    test = splits.test.sample(examples or len(splits.test), 0)
    judge = Judge(encoder, test)
    for name in ("heads", "all") if part == "both" else (part,):
        settings = {"calibration": calibration, "test": len(test), "test_digest": test.digest}
        header = {
            "part": name,
            "settings": settings,
            "accuracy": judge.accuracy,
            "versions": library_versions(),
        }
        rows = Rows(output / f"{name}.jsonl", header, resume=resume)
        for seed in range(seeds):
            missing = rows.missing(name, ratios or _RATIOS[name], seed)
            if missing:
                draw = Draw(encoder, splits.train, calibration, seed, console)
                _run(name, draw, missing, judge, rows, seed, console)


def _run(
    part: str,
    draw: Draw,
    missing: list[tuple[Method, float]],
    judge: Judge,
    rows: Rows,
    seed: int,
    console: Console,
) -> None:
    with console.step(f"{part}, seed {seed}: scoring"):
        draw.measure(part)
    for method, ratio in missing:
        start = time.perf_counter()
        student = draw.prune(part, method, ratio)
        seconds = time.perf_counter() - start
        row = Row(part, method.name, ratio, seed, seconds=seconds, **judge.judge(student))
        rows.add(row)
        console.say(
            f"{part}, seed {seed}: {method.name} at {ratio:.0%}: {row.drop_points:+.2f} points, "
            f"KL {row.divergence:.4f}, {row.macs_removed:.1%} of the MACs removed, {seconds:.0f} s"
        )


def _demo(console: Console) -> tuple[Splits, Encoder]:
    demo = prepare_demo("reviews", console)
    workspace = Workspace(demo.directory, demo.config)
    return workspace.splits(), open_encoder(workspace.model_directory)


def _parts(order: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    for start in range(0, len(order), _BATCH_SIZE):
        yield order[start : start + _BATCH_SIZE]


def _share(right: Tensor) -> float:
    return float(right.double().mean())


if __name__ == "__main__":
    main()
