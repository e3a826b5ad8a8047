"""The `evaluate` command."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tcompress.options import (
    CONTEXT,
    DIRECTORY,
    Common,
    DataOptions,
    common_options,
    judged_data_options,
)

if TYPE_CHECKING:
    from tcompress.console import Console
    from tcompress.workspace import Workspace

    from .measurement import Subject

_CONFIDENCE = 0.95


@click.command(context_settings=CONTEXT, short_help="Measure accuracy against latency; report.")
@click.argument("paths", nargs=-1, type=DIRECTORY, metavar="[PATH]...")
@click.option(
    "--model",
    type=DIRECTORY,
    help="Baseline for the PATHs alone; else the workspace's model, with all artifacts.",
)
@click.option("--output", type=DIRECTORY, help="Where to write the report; else the workspace.")
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
    default=12.0,
    help="Seconds for all latencies together.",
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
    output: Path | None,
    split: str,
    batches: tuple[int, ...],
    tokens: tuple[int, ...],
    budget_s: float,
    device: str,
    threads: int | None,
    data: DataOptions,
    common: Common,
) -> None:
    """Measure accuracy against latency for everything in the workspace.

    Every artifact, and every PATH besides, answers the test split and is timed, each on its own
    engine in a process of its own. The source model in PyTorch fp32 is the baseline. Writes
    report.html, report.md and report.json.

    \b
    Example:
      tcompress evaluate
      tcompress evaluate --batch 1 --batch 8 --tokens 128 --budget-s 60
      tcompress evaluate --model ./source --data test.csv --output report artifacts/export/onnx
    """
    from tcompress.stages import DataSource, optional_workspace, seed_of
    from tcompress.workspace import ANSWERS_DIRECTORY

    from .document import measure_document
    from .reporting.report import write_report
    from .tradeoff import Settings

    console = common.console
    workspace = optional_workspace(common, needed=model is None or data.data is None)
    target = _report_directory(workspace, output)
    devices, gpu = _devices(device)
    if gpu is not None:
        console.say(gpu)
    baseline, candidates, notes = _subjects(workspace, model, paths)
    for note in notes:
        console.warn(note)
    document = measure_document(
        baseline,
        candidates,
        DataSource(workspace, data).examples(split),
        Settings(
            devices=devices,
            batches=batches,
            tokens=tokens or None,
            budget_s=budget_s,
            threads=threads,
            seed=seed_of(common, workspace),
            answers=target / ANSWERS_DIRECTORY,
        ),
        console,
        split=split if data.data is None else None,
        gpu=gpu,
        scores_file=None if workspace is None else workspace.scores_file,
        notes=notes,
    )
    write_report(document, target)
    _show(console, document)
    console.say(f"evaluate: wrote {target / 'report.html'}, report.md and report.json")


def _report_directory(workspace: "Workspace | None", output: Path | None) -> Path:
    from tcompress.errors import RequestError

    if output is not None:
        return output
    if workspace is not None:
        return workspace.report_directory
    msg = "without a workspace, name where to write the report with --output"
    raise RequestError(msg)


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


def _devices(choice: str) -> tuple[tuple[str, ...], str | None]:
    """Return the devices to measure on, and why there is no GPU among them."""
    import torch

    from tcompress.errors import DeviceError

    available = torch.cuda.is_available()
    if choice == "cpu":
        return ("cpu",), "GPU: not measured, as --device cpu says"
    if choice == "cuda":
        if not available:
            msg = "--device cuda: torch finds no GPU here"
            raise DeviceError(msg)
        return ("cuda",), None
    if available:
        return ("cpu", "cuda"), None
    return ("cpu",), "GPU: none here; measured on the CPU only"


def _show(console: "Console", document: dict[str, Any]) -> None:
    if console.as_json:
        console.show_json(document)
        return
    shapes: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for entry in document["measurements"]:
        shape = (entry["device"], entry["batch"], entry["tokens"])
        shapes.setdefault(shape, []).append(entry)
    for (device, batch, tokens), entries in shapes.items():
        threads = f", {entries[0]['latency_ms']['threads']} threads" if device == "cpu" else ""
        metric = next(iter(entries[0]["metrics"]))
        console.show(f"{device}, batch {batch}, {tokens} tokens{threads}")
        console.table(
            ("artifact", "format", "ms", "speed-up", metric, "drop", "MB"),
            [_row(entry, metric) for entry in entries],
        )
    console.show(_noise_text(document["environment"]["noise_floor"]))
    for note in document["notes"]:
        console.show(f"Note: {note}.")


def _noise_text(noise: dict[str, Any]) -> str:
    if noise["confidence"] < _CONFIDENCE:
        return "Noise: not known; there were too few rounds."
    low, high = noise["low"] - 1, noise["high"] - 1
    return f"Noise: the source, measured against itself, seems {low:+.1%} to {high:+.1%} faster."


def _row(entry: dict[str, Any], metric: str) -> tuple[str, ...]:
    drop, latency = entry["accuracy_drop"], entry["latency_ms"]["median"]
    is_baseline = entry["speedup"]["blocks"] == 0
    return (
        entry["artifact"] + (" (stale)" if entry["stale"] else ""),
        entry["precision"],
        f"{latency:.3g}" if latency < 100 else f"{latency:.0f}",
        "1" if is_baseline else _speedup_text(entry["speedup"]),
        f"{entry['metrics'][metric]:.4f}",
        "" if is_baseline or drop is None else f"{drop:+.4f}",
        f"{entry['size_bytes'] / 1e6:.1f}",
    )


def _speedup_text(speedup: dict[str, Any]) -> str:
    """Show a speed-up with half of its interval; `?` where there is no 95 % interval."""
    if speedup["confidence"] < _CONFIDENCE:
        return f"{speedup['value']:.2f} ?"
    return f"{speedup['value']:.2f} ±{(speedup['high'] - speedup['low']) / 2:.2f}"
