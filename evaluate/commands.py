"""The `evaluate` command."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from tcompress.options import (
    CONTEXT,
    DIRECTORY,
    MODEL,
    Common,
    DataOptions,
    common_options,
    judged_data_options,
    refuse_typed,
)

if TYPE_CHECKING:
    from tcompress.console import Console
    from tcompress.workspace import Workspace

    from .measurement import Subject


_MOST_PROCESSES, _SECONDS_PER_PROCESS = 5, 30


@click.command(context_settings=CONTEXT, short_help="Measure accuracy against latency; report.")
@click.argument("paths", nargs=-1, type=DIRECTORY, metavar="[PATH]...")
@click.option(
    "--model",
    type=MODEL,
    help="Baseline for the PATHs alone; else the workspace's model, with all artifacts.",
)
@click.option(
    "--compare",
    nargs=2,
    type=DIRECTORY,
    metavar="A B",
    help="Two artifacts or model directories of any kind, side by side; A is the baseline. "
    "Writes a report only with --output.",
)
@click.option("--output", type=DIRECTORY, help="Where to write the report; else the workspace.")
@click.option(
    "--margin",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Smallest drop in accuracy that is not acceptable, a fraction; else the workspace's "
    "max_drop, else 0.01.",
)
@click.option(
    "--split",
    type=click.Choice(("train", "validation", "test")),
    default="test",
    help="Split of the workspace's data to measure accuracy on.",
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1,),
    help="Examples per call; may be given several times.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    multiple=True,
    help="Tokens per example, likewise; else 128, or the longest example of tensor data.",
)
@click.option(
    "--budget-s",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    help="Seconds for all latencies together; up to twice as many where six rounds of turns, the "
    "fewest that tell anything, take longer.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="Times that every engine is started anew, as two starts differ; else one for each 30 s "
    "of the budget, five at most.",
)
@click.option(
    "--mix/--no-mix",
    default=True,
    help="Whether to time the data's own lengths too, in a third of the budget, and operators.",
)
@click.option(
    "--device",
    type=click.Choice(("auto", "cpu", "cuda")),
    default="auto",
    help="auto is the CPU, and the GPU where there is one.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads on the CPU; else all CPUs usable."
)
@judged_data_options
@common_options
def evaluate(
    paths: tuple[Path, ...],
    model: Path | None,
    compare: tuple[Path, Path] | None,
    output: Path | None,
    margin: float | None,
    split: str,
    batches: tuple[int, ...],
    tokens: tuple[int, ...],
    budget_s: float,
    processes: int | None,
    mix: bool,
    device: str,
    threads: int | None,
    data: DataOptions,
    common: Common,
) -> None:
    """Measure accuracy against latency for everything in the workspace.

    Every artifact, and every PATH besides, answers the test split and is timed, each on its own
    engine in a process of its own. The source model in PyTorch fp32 is the baseline. Writes
    report.html, report.md and report.json, and remembers the numbers in history.jsonl.

    \b
    Example:
      tcompress evaluate
      tcompress evaluate --batch 1 --batch 8 --tokens 128 --budget-s 60
      tcompress evaluate --model ./source --data test.csv --output report artifacts/export/onnx
      tcompress evaluate --compare artifacts/export/onnx artifacts/export/onnx-int8
    """
    from tcompress.stages import DataSource, hold_output, optional_workspace, seed_of

    from .comparison import show_comparison
    from .document import measure_document
    from .showing import show_document
    from .tradeoff import Settings

    if compare is not None:
        refuse_typed(("paths", "model"), "does not go with --compare, which names both models")
    console = common.console
    named = data.data is not None and (model is not None or compare is not None)
    workspace = optional_workspace(common, needed=not named)
    target = output if compare is not None else _report_directory(workspace, output)
    if target is not None:
        hold_output(common, workspace, output)
    if compare is None:
        baseline, candidates, notes = _subjects(workspace, model, paths)
    else:
        baseline, candidates, notes = _compared(compare)
    devices, gpu = _devices(device, baseline)
    if gpu is not None:
        console.say(gpu)
    for note in notes:
        console.warn(note)
    with _answers_directory(workspace, target) as answers:
        document = measure_document(
            baseline,
            candidates,
            DataSource(workspace, data).examples(split),
            Settings(
                devices=devices,
                batches=batches,
                tokens=tokens or None,
                budget_s=budget_s,
                processes=processes or _processes(budget_s),
                mix=mix,
                threads=threads,
                seed=seed_of(common, workspace),
                answers=answers,
            ),
            console,
            margin=_margin(workspace, margin),
            split=split if data.data is None else None,
            gpu=gpu,
            scores_file=None if workspace is None or compare else workspace.scores_file,
            notes=notes,
        )
    if target is not None:
        _keep(document, target, console)
    show = show_document if compare is None else show_comparison
    show(console, document)


def _processes(budget_s: float) -> int:
    """Return how often to start every engine: often enough to matter, rarely enough to pay."""
    return int(min(_MOST_PROCESSES, max(1, budget_s // _SECONDS_PER_PROCESS)))


def _keep(document: dict[str, Any], target: Path, console: "Console") -> None:
    """Write the report, with what former runs measured, and remember this one."""
    from .history import HISTORY_FILE, remember
    from .reporting.report import write_report

    document["earlier"] = remember(document, target / HISTORY_FILE, console)
    write_report(document, target)
    console.say(f"evaluate: wrote {target / 'report.html'}, report.md and report.json")


def _report_directory(workspace: "Workspace | None", output: Path | None) -> Path:
    from tcompress.errors import RequestError

    if output is not None:
        return output
    if workspace is not None:
        return workspace.report_directory
    msg = "without a workspace, name where to write the report with --output"
    raise RequestError(msg)


@contextmanager
def _answers_directory(workspace: "Workspace | None", target: Path | None) -> Iterator[Path]:
    """Give the directory to keep answers in; one that goes away where nothing is written."""
    from tcompress import storage
    from tcompress.errors import InputError
    from tcompress.workspace import ANSWERS_DIRECTORY

    if target is not None:
        was_there = target.exists()
        try:
            yield target / ANSWERS_DIRECTORY
        except InputError:
            if not was_there:
                storage.remove_tree(target)
            raise
    elif workspace is not None:
        yield workspace.answers_directory
    else:
        with TemporaryDirectory(prefix="tcompress-") as directory:
            yield Path(directory)


def _margin(workspace: "Workspace | None", margin: float | None) -> float:
    from tcompress.workspace import WorkspaceConfig

    if margin is not None:
        return margin
    return WorkspaceConfig.max_drop if workspace is None else workspace.config.max_drop


def _compared(pair: tuple[Path, Path]) -> tuple["Subject", list["Subject"], list[str]]:
    """Describe two models, and what there is to say about them."""
    from .subjects import compared_subjects, saturation_notes

    first, second = compared_subjects(*pair)
    return first, [second], list(saturation_notes(pair))


def _subjects(
    workspace: "Workspace | None", model: Path | None, paths: tuple[Path, ...]
) -> tuple["Subject", list["Subject"], list[str]]:
    """Find the baseline, what is compared with it, and what there is to say about that."""
    from tcompress.errors import WorkspaceError

    from .subjects import named_subjects, saturation_notes, source_subject, workspace_subjects

    if model is None and workspace is not None:
        found, notes = workspace_subjects(workspace)
        model = workspace.model_directory
    else:
        found, notes = [], []
    if model is None:
        msg = "no workspace and no --model"
        raise WorkspaceError(msg)
    baseline = source_subject(model)
    known = {subject.directory.resolve() for subject in (baseline, *found)}
    named, more = named_subjects([p for p in paths if p.resolve() not in known], model)
    subjects = [*found, *named]
    doubts = saturation_notes([subject.directory for subject in subjects])
    return baseline, subjects, [*notes, *more, *doubts]


def _devices(choice: str, baseline: "Subject") -> tuple[tuple[str, ...], str | None]:
    """Return the devices to measure on, and why there is no GPU among them."""
    import torch

    from tcompress.errors import DeviceError

    from .entrants import runs_on_gpu

    if choice == "cpu":
        return ("cpu",), "GPU: not measured, as --device cpu says"
    missing = None if torch.cuda.is_available() else "none here"
    if missing is None and not runs_on_gpu(baseline):
        missing = f"the baseline {baseline.name} runs on the CPU only"
    if choice == "cuda":
        if missing is not None:
            msg = f"--device cuda: {missing}; choose --device cpu"
            raise DeviceError(msg)
        return ("cuda",), None
    return (
        (("cpu",), f"GPU: {missing}; measured on the CPU only")
        if missing
        else (("cpu", "cuda"), None)
    )
