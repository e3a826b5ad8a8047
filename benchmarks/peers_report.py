"""From the results of a race with peers to its table, its chart and the raw numbers in docs/."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from matplotlib import rc_context
from matplotlib.figure import Figure

from tcompress.evaluate.latency import FEWEST_ROUNDS

DOCS = Path(__file__).resolve().parent.parent / "docs"
_COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2")
Row = dict[str, Any]


def read(path: Path) -> dict[str, Any]:
    """Read the results.

    Args:
        path: The file.

    Raises:
        UsageError: If there is none.
    """
    if not path.is_file():
        msg = f"{path}: no results there; run without --write-docs first"
        raise click.UsageError(msg)
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def write_docs(path: Path) -> None:
    """Write docs/benchmarks.md, .json and .svg.

    Args:
        path: The results.
    """
    document = read(path)
    (DOCS / "benchmarks.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    # without a date and with ids of a fixed salt, equal rows give equal bytes
    with rc_context({"svg.hashsalt": "tcompress"}):
        draw(document["rows"]).savefig(DOCS / "benchmarks.svg", metadata={"Date": None})
    (DOCS / "benchmarks.md").write_text(page(document), encoding="utf-8")


def page(document: dict[str, Any]) -> str:
    """Return the page.

    Args:
        document: The results.
    """
    rows, settings = document["rows"], document["settings"]
    parts = [
        "# tcompress beside its peers",
        _introduction(document),
        latency_table(rows),
        "![speed-up over PyTorch](benchmarks.svg)",
        quality_table(rows),
        *_not_run(rows.values()),
        _HOW_TO_READ.format(test=settings["test"]),
        "## Versions",
        _versions(document),
    ]
    return "\n\n".join(parts) + "\n"


_HOW_TO_READ = """\
## How to read it

- Every contender is made from the same fine-tuned weights and answers the same inputs, each in a
  process of its own that sleeps while another one is timed. PyTorch and tcompress run in
  tcompress's environment, the others in theirs.
- `BxT` is a batch of B examples of T tokens, none of them padding. `mix` is the time for the first
  256 test texts in their order, in batches of 8, padded to the longest of the batch.
- A cell is the median duration of a call, and in brackets how many times as fast as PyTorch that
  is: the median over rounds of the ratio within the round, ± half of its 95 % bootstrap interval.
  Ratios come from the same rounds, medians from all samples: trust ratios more. `?`: too few rounds
  for an interval.
- *PyTorch fp32, again* is the baseline raced against itself: how far its ratio is from 1 is how
  far others may be off.
- Accuracy is on all {test:,} test examples. The drop is in points, against PyTorch fp32 on the same
  examples, in pairs; each bound in brackets holds with 95 % confidence. KL is the mean divergence
  from PyTorch's answers, in thousandths of a nat.
- Size is what the engine reads, without tokenizer. Peak is the most memory that the process held
  after all test examples in batches of 32. Load is from the start of a process to its first answer,
  libraries and compilation included (`torch.compile` finds its caches filled from the second time).

```
python -m venv venv/peers && venv/peers/bin/pip install -r benchmarks/requirements-peers.txt
python benchmarks/peers.py --budget-s 150 --pruned macs80-dynamic --pruned macs80-static \\
    --pruned macs80-openvino
python benchmarks/peers.py --write-docs
```

The pruned ones were made in a folder of their own:

```
tcompress init --demo && tcompress prune --macs 0.8 && tcompress finetune
tcompress export --precision int8 --output macs80-dynamic
tcompress export --precision int8 --activations static --output macs80-static
tcompress export --precision int8 --format openvino --output macs80-openvino
```"""


def latency_table(rows: dict[str, Row]) -> str:
    """Return a Markdown table: contenders down, settings across.

    Args:
        rows: The rows.
    """
    ran = _ran(rows)
    settings = list(dict.fromkeys(name for row in ran for name in row["latency"]))
    lines = [
        "| contender | " + " | ".join(f"{name}, ms" for name in settings) + " |",
        "|---|" + "---:|" * len(settings),
    ]
    for row in ran:
        cells = [_cell(row["latency"].get(name)) for name in settings]
        lines.append(f"| {row['title']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def quality_table(rows: dict[str, Row]) -> str:
    """Return a Markdown table: contenders down; accuracy, size, memory and loading across.

    Args:
        rows: The rows.
    """
    lines = [
        "| contender | accuracy, % | drop, points | KL, mnat | size, MB | peak, MB | load, s |",
        "|---|" + "---:|" * 6,
    ]
    for row in _ran(rows):
        cells = [
            *_accuracy(row),
            f"{1000 * row['divergence']:.2f}",
            f"{row['size_bytes'] / 1e6:.1f}",
            f"{row['memory_peak_bytes'] / 1e6:.0f}",
            f"{row['load_s']['median']:.2f}",
        ]
        lines.append(f"| {row['title']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: dict[str, Row]) -> Figure:
    """Draw the speed-ups, a line per contender and a dot per setting.

    Args:
        rows: The rows.
    """
    ran = [row for row in _ran(rows) if not row["control"]]
    settings = list(dict.fromkeys(name for row in ran for name in row["latency"]))
    figure = Figure(figsize=(9, 1 + 0.4 * len(ran)), layout="constrained")
    axes = figure.subplots()
    for color, setting in zip(_COLORS, settings, strict=False):
        dots = [(_ratio(row, setting), place) for place, row in enumerate(ran)]
        known = [(ratio, place) for ratio, place in dots if ratio is not None]
        axes.plot(*zip(*known, strict=True), "o", color=color, label=setting)
    axes.set_yticks(range(len(ran)), [row["title"].partition(":")[0] for row in ran])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("times as fast as PyTorch fp32")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _introduction(document: dict[str, Any]) -> str:
    settings, machine = document["settings"], document["environment"]
    return (
        f"One run on {settings['threads']} thread(s) of {machine['cpu']}, "
        f"model {settings['model_digest'][:12]}. Raw numbers: [benchmarks.json](benchmarks.json)."
    )


def _versions(document: dict[str, Any]) -> str:
    lines = ["| contender | engine | environment | threads |", "|---|---|---|---:|"]
    for row in _ran(document["rows"]):
        made = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        home = "peers" if row["peer"] else "tcompress"
        lines.append(f"| {row['title']} | {made} | {home} | {row['threads']} |")
    return "\n".join(lines)


def _not_run(rows: Iterable[Row]) -> list[str]:
    """List what did not run, whole contenders and single settings, each with its reason."""
    lines = []
    for row in rows:
        if "not_run" in row:
            lines.append(f"- {row['title']}: {row['not_run']}")
        for setting, cell in row.get("latency", {}).items():
            if "not_run" in cell:
                lines.append(f"- {row['title']} at {setting}: {cell['not_run']}")
    return ["Not run:\n\n" + "\n".join(lines)] if lines else []


def _ran(rows: dict[str, Row]) -> list[Row]:
    return [row for row in rows.values() if "not_run" not in row]


def _cell(found: Row | None) -> str:
    if found is None or "not_run" in found:
        return ""
    if found["speedup"] is None:
        return f"{found['median_ms']:.2f}"
    known = found["speedup"]["blocks"] >= FEWEST_ROUNDS  # fewer cannot give a 95 % interval
    width = f"{found['half_width']:.2f}" if known else "?"
    return f"{found['median_ms']:.2f} ({found['speedup']['value']:.2f} ± {width})"


def _accuracy(row: Row) -> tuple[str, str]:
    accuracy, bounds = row["metrics"].get("accuracy"), row["accuracy_drop_interval"]
    if accuracy is None or bounds is None:
        return "", ""
    low, high = (f"{100 * bounds[side]:+.2f}" for side in ("low", "high"))
    return f"{100 * accuracy:.2f}", f"{100 * row['accuracy_drop']:+.2f} [{low}, {high}]"


def _ratio(row: Row, setting: str) -> float | None:
    found = row["latency"].get(setting, {"not_run": ""})
    if "not_run" in found:
        return None
    return 1.0 if found["speedup"] is None else float(found["speedup"]["value"])
