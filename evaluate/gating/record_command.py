"""The `gate record` command."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tcompress.options import (
    CONTEXT,
    FILE,
    MODEL,
    Common,
    DataOptions,
    common_options,
    data_options,
    refuse_typed,
)

if TYPE_CHECKING:
    from tcompress.console import Console
    from tcompress.workspace import Workspace

    from .baseline import Baseline


@click.command(context_settings=CONTEXT, short_help="Keep a baseline's answers in a small file.")
@click.option(
    "--model",
    "--baseline",
    "model",
    type=MODEL,
    help="Model directory or artifact to record; else the workspace's model.",
)
@click.option("--output", type=FILE, default=Path("baseline.json"), help="File to write.")
@click.option("--force", is_flag=True, help="Replace a file in the way.")
@click.option("--device", type=click.Choice(("cpu", "cuda")), default="cpu", help="Where to ask.")
@click.option("--latency", is_flag=True, help="Time it too; holds on this CPU only.")
@click.option("--batch", type=click.IntRange(min=1), default=1, help="Examples per timed call.")
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    help="Tokens per timed example; else 128, or the model's longest input.",
)
@click.option(
    "--budget-s",
    type=click.FloatRange(0, min_open=True),
    default=12.0,
    help="Seconds for the timing.",
)
@data_options
@common_options
def record(
    model: Path | None,
    output: Path,
    force: bool,
    device: str,
    latency: bool,
    batch: int,
    tokens: int | None,
    budget_s: float,
    data: DataOptions,
    common: Common,
) -> None:
    """Keep a baseline's answers in a small file, to be committed.

    `tcompress gate --baseline FILE` then judges a candidate without the baseline's model. The
    candidate must read the same tokens and the gate the same examples as were recorded.

    \b
    Example:
      tcompress gate record --output baseline.json
      tcompress gate record --model ./source --data held-out.csv --output baseline.json
      tcompress gate --baseline baseline.json --max-drop 0.01
    """
    from functools import partial

    from tcompress.stages import DataSource, optional_workspace, seed_of

    from .baseline import measure_latency, record_baseline

    console = common.console
    if not latency:
        refuse_typed(("batch", "tokens", "budget_s"), "goes with --latency")
    workspace = optional_workspace(common, needed=model is None or data.data is None)
    examples = DataSource(workspace, data).held_out_examples()
    directory = _model(workspace, model)
    _check_free(output, force=force)
    timing = partial(
        measure_latency,
        directory,
        batch=batch,
        tokens=tokens,
        device=device,
        budget_s=budget_s,
        seed=seed_of(common, workspace),
    )
    baseline = record_baseline(
        output,
        directory,
        examples,
        device=device,
        latency=timing if latency else None,
        watch=partial(console.track, what="asking the baseline"),
    )
    baseline.write()
    _show(console, baseline)


def _model(workspace: "Workspace | None", model: Path | None) -> Path:
    from tcompress.errors import RequestError

    if model is not None:
        return model
    if workspace is None:
        msg = "without a workspace, name what to record by --model"
        raise RequestError(msg)
    return workspace.model_directory


def _check_free(output: Path, *, force: bool) -> None:
    from tcompress.errors import OutputExistsError

    if output.exists() and not (force and output.is_file()):
        msg = f"{output}: exists already; pass --force to replace it, or another --output"
        raise OutputExistsError(msg)


def _show(console: "Console", baseline: "Baseline") -> None:
    record = baseline.record
    if console.as_json:
        console.show_json(baseline.summary())
        return
    size_kb = baseline.path.stat().st_size / 1e3
    console.show(
        f"Recorded {len(record.rows):,} answers in {baseline.path} ({size_kb:,.0f} kB), "
        f"accuracy {record.metrics['accuracy']:.4f}."
    )
    if record.latency is not None:
        console.show(_latency_words(record.latency))


def _latency_words(latency: dict[str, Any]) -> str:
    from ..measurement import CONFIDENCE

    shape = f"batch {latency['batch']}, {latency['tokens']} tokens"
    low, high = latency["noise_low"] - 1, latency["noise_high"] - 1
    noise = (
        "its noise is not known, there were too few rounds"
        if latency["noise_confidence"] < CONFIDENCE
        else f"against itself it seems {low:+.1%} to {high:+.1%} faster"
    )
    return f"Latency {latency['median_ms']:.3g} ms at {shape}; {noise}."
