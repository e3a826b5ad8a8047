"""From the rows of the ablation to its table, its plot and the raw numbers in docs/."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import click
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- ablation: begin -->", "<!-- ablation: end -->"
_TITLES = {"heads": "Heads only", "all": "Heads and neurons"}
_SHARES = {"heads": "heads removed", "all": "MACs removed"}
_TICKS = (0, 0.5, 1, 2, 5, 10, 20, 40)
# color, line, width: published baselines dashed, ours thick, the rest thin
_STYLES = {
    "random": ("#bbbbbb", "-", 1.2),
    "magnitude": ("#8c564b", "-", 1.2),
    "activation": ("#e377c2", "-", 1.2),
    "gate-gradient": ("#ff7f0e", "-", 1.2),
    "fisher": ("#bcbd22", "-", 1.2),
    "curvature": ("#17becf", "-", 1.2),
    "entropy": ("#7f7f7f", ":", 1.2),
    "confidence": ("#444444", ":", 1.2),
    "hies": ("#9467bd", ":", 1.2),
    "leave-one-out": ("#2ca02c", ":", 1.6),
    "obs": ("#1f77b4", "-", 1.6),
    "Kwon": ("#9467bd", "--", 2.0),
    "K-prune": ("#2ca02c", "--", 2.0),
    "gate-gradient + reconstruction": ("#ff7f0e", "-.", 2.0),
    "fisher + reconstruction": ("#bcbd22", "-.", 2.0),
    "obs + reconstruction": ("#d62728", "-", 2.6),
}
Row = dict[str, Any]


def read_rows(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Read a file of rows; a last line that was cut is left out.

    Args:
        path: The file.

    Returns:
        Its first line, and the rows.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return whole[0], whole[1:]


def write_docs(directory: Path) -> None:
    """Write docs/ablation.json, docs/ablation.svg and the tables in docs/pruning.md.

    Args:
        directory: Where the rows are.
    """
    paths = [directory / f"{part}.jsonl" for part in _TITLES]
    if absent := [str(path) for path in paths if not path.is_file()]:
        msg = f"no rows in {' and '.join(absent)}; run without --write-docs first"
        raise click.UsageError(msg)
    parts = [read_rows(path) for path in paths]
    document = {
        "schema_version": 1,
        "parts": [{**header, "rows": rows} for header, rows in parts],
    }
    (DOCS / "ablation.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    figure = draw([rows for _, rows in parts])
    # without a date and with ids of a fixed salt, equal rows give equal bytes
    with rc_context({"svg.hashsalt": "tcompress"}):
        figure.savefig(DOCS / "ablation.svg", metadata={"Date": None})
    page = DOCS / "pruning.md"
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    middle = "\n\n".join(_section(header, rows) for header, rows in parts)
    page.write_text(f"{before}{BEGIN}\n\n{middle}\n\n{END}{after}", encoding="utf-8")


def _section(header: dict[str, Any], rows: Sequence[Row]) -> str:
    part, settings = header["part"], header["settings"]
    draws = Counter((row["method"], row["ratio"]) for row in rows)
    most = max(draws.values())
    fewer = sorted({method for (method, _), count in draws.items() if count < most})
    versions = header["versions"]
    made = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers"))
    caption = (
        f"**{_TITLES[part]}**: accuracy drop in points against the fraction of {_SHARES[part]}; "
        f"mean over {most} draw(s) of {settings['calibration']:,} calibration examples"
        f"{f' (fewer, down to {min(draws.values())}: ' + ', '.join(fewer) + ')' if fewer else ''}, "
        f"lowest and highest in brackets. Unpruned: {100 * header['accuracy']:.2f} % of "
        f"{settings['test']:,} test examples. Made with {made}."
    )
    second = "The same encoders' divergence from the unpruned one, in thousandths of a nat:"
    drops, divergences = (table(rows, key) for key in ("drop_points", "divergence"))
    return f"{caption}\n\n{drops}\n\n{second}\n\n{divergences}"


def table(rows: Sequence[Row], key: str) -> str:
    """Return a Markdown table: methods down, ratios across.

    Args:
        rows: The rows of one part.
        key: What to show: `drop_points`, or `divergence` in thousandths.
    """
    ratios = sorted({row["ratio"] for row in rows})
    lines = [
        "| method | " + " | ".join(f"{ratio:.0%}" for ratio in ratios) + " |",
        "|---|" + "---:|" * len(ratios),
    ]
    show = {"drop_points": "{:.1f}".format, "divergence": lambda nats: f"{1000 * nats:.0f}"}[key]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = [_cell(_values(rows, method, ratio, key), show) for ratio in ratios]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _values(
    rows: Iterable[Row], method: str, ratio: float, key: str = "drop_points"
) -> list[float]:
    return [row[key] for row in rows if (row["method"], row["ratio"]) == (method, ratio)]


def _cell(values: Sequence[float], show: Callable[[float], str]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return show(values[0])
    return f"{show(fmean(values))} [{show(min(values))}, {show(max(values))}]"


def draw(parts: Sequence[Sequence[Row]]) -> Figure:
    """Draw one panel per part: drop against the share removed, a band over the seeds.

    Args:
        parts: The rows of each part.
    """
    figure = Figure(figsize=(12, 6.8), layout="constrained")
    for axes, part, rows in zip(figure.subplots(1, len(parts)), _TITLES, parts, strict=True):
        _panel(axes, part, rows)
    return figure


def _panel(axes: Axes, part: str, rows: Sequence[Row]) -> None:
    for method in dict.fromkeys(row["method"] for row in rows):
        ratios = sorted({row["ratio"] for row in rows if row["method"] == method})
        drops = [_values(rows, method, ratio) for ratio in ratios]
        color, line, width = _STYLES[method]
        percent = [100 * ratio for ratio in ratios]
        axes.fill_between(percent, [*map(min, drops)], [*map(max, drops)], color=color, alpha=0.12)
        means = [fmean(drop) for drop in drops]
        axes.plot(
            percent,
            means,
            line,
            marker="o",
            markersize=3,
            color=color,
            linewidth=width,
            label=method,
        )
    axes.set_title(_TITLES[part])
    axes.set_xlabel(f"% of the {_SHARES[part]}")
    axes.set_ylabel("accuracy drop, points")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_yticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False)
