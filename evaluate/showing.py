"""What `evaluate` shows on a terminal or in a log: tables of 80 columns, and a legend."""

import sys
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Any

from tcompress.console import Console

from . import speedups
from .entry import (
    Entry,
    drop_interval_of,
    drop_of,
    is_proved_by_examples,
    metric_of,
    value_of,
    words_of,
)

WIDTH = 80
"""Columns of a line that is read in a log."""
_LONGEST_NAME = 18
_SHORTEST_NAME = 8
_BAR = "bar"
_SCENARIOS = {"single_stream": "one by one", "offline": "in batches"}

Setting = tuple[str, int, int]


def show_document(console: Console, document: dict[str, Any]) -> None:
    """Show what was measured: times per device and shape, then quality per device.

    Args:
        console: Where to show it.
        document: The document of `evaluate`.
    """
    if console.as_json:
        console.show_json(document)
        return
    baseline, margin = document["baseline"], document["margin"]
    settings = _settings(document)
    for setting, entries in settings.items():
        console.show(_heading(setting, entries))
        _show_times(console, entries, baseline)
    for device in dict.fromkeys(device for device, _, _ in settings):
        first = next(entries for setting, entries in settings.items() if setting[0] == device)
        console.show(f"{device}, {document['data']['examples']} examples")
        _show_quality(console, first, baseline, margin)
    for line in _legend(document["measurements"], margin):
        _show_wrapped(console, line)
    show_mixes(console, document)
    show_notes(console, document)


def show_mixes(console: Console, document: dict[str, Any]) -> None:
    """Show the times on the data's own lengths, padded per batch, where they were measured.

    Args:
        console: Where to show it.
        document: The document of `evaluate`.
    """
    mixes = document.get("mixes")
    if not mixes:
        return
    longest, mean = mixes[0]["tokens_max"], mixes[0]["tokens_mean"]
    console.show(f"The data's own lengths: {mean:.0f} tokens on average, {longest} at most")
    _show_table(
        console,
        ("artifact", "format", "calls", "ms", "per s", "speed-up", "verdict"),
        [
            (
                _name(mix),
                mix["precision"],
                _SCENARIOS.get(mix["scenario"], mix["scenario"]),
                milliseconds(mix["latency_ms"]["median"]),
                _rate(mix["examples_per_s"]),
                speedup_text(mix["speedup"]),
                mix["speedup"].get("verdict")
                or ("baseline" if speedups.is_of_baseline(mix["speedup"]) else ""),
            )
            for mix in mixes
        ],
        spare=("ms", "format"),
    )
    _show_wrapped(console, "Per s: examples over a whole pass, slow calls included.")


def show_notes(console: Console, document: dict[str, Any]) -> None:
    """Show how sure the times are, and the notes.

    Args:
        console: Where to show it.
        document: The document of `evaluate`.
    """
    _show_wrapped(console, _noise_text(document["environment"]["noise_floor"]))
    if earlier := document.get("earlier"):
        told = f"Former runs: the report greys {len(earlier)} points of artifacts now gone."
        _show_wrapped(console, told)
    for note in document["notes"]:
        _show_wrapped(console, f"Note: {note}.")


def milliseconds(value: float) -> str:
    """Return a latency with three digits.

    Args:
        value: In ms.
    """
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def speedup_text(speedup: dict[str, Any]) -> str:
    """Return a speed-up and half of its interval, in three digits.

    Args:
        speedup: The entry's `speedup`.

    Returns:
        `1` for the baseline, `?` behind the value for no 95 % interval, and the ends of one that
        is so wide or skewed that half of it would say nothing.
    """
    if speedups.is_of_baseline(speedup):
        return "1"
    value = speedup["value"]
    if not speedups.is_sure(speedup):
        return f"{speedups.estimate(value)} ?"
    if speedups.is_wide(speedup):
        return speedups.bounds(speedup, "-")
    half = (speedup["high"] - speedup["low"]) / 2
    return f"{speedups.estimate(value)} ±{half:.{speedups.places(value)}f}"


def quality_word(entry: Entry, margin: float) -> str:
    """Return what the examples prove about an artifact's quality, in a word of the legend.

    Args:
        entry: One of the `measurements`.
        margin: Smallest drop that is not acceptable, a fraction.
    """
    interval = drop_interval_of(entry)
    if interval is None:
        return "unlabelled"
    if entry["not_inferior"]:
        return "holds"
    return "worse" if interval["low"] >= margin else "unproved"


def _settings(document: dict[str, Any]) -> dict[Setting, list[Entry]]:
    found: dict[Setting, list[Entry]] = {}
    for entry in document["measurements"]:
        setting = (entry["device"], entry["batch"], entry["tokens"])
        found.setdefault(setting, []).append(entry)
    return found


def _heading(setting: Setting, entries: list[Entry]) -> str:
    device, batch, tokens = setting
    threads = f", {entries[0]['latency_ms']['threads']} threads" if device == "cpu" else ""
    return f"{device}, batch {batch}, {tokens} tokens{threads}"


def _show_times(console: Console, entries: list[Entry], baseline: str) -> None:
    """Show how fast each artifact is; a bar is as long as its part of the largest speed-up."""
    most = max(entry["speedup"]["value"] for entry in entries)
    _show_table(
        console,
        ("artifact", "", "format", "ms", _BAR, "speed-up", "verdict"),
        [
            (
                _name(entry),
                _sign(entry),
                entry["precision"],
                milliseconds(entry["latency_ms"]["median"]),
                console.bar(entry["speedup"]["value"] / most),
                "1" if is_base else speedup_text(entry["speedup"]),
                "baseline" if is_base else entry["speedup"].get("verdict") or "",
            )
            for entry, is_base in _marked(entries, baseline)
        ],
        spare=(_BAR, "format" if entries[0]["device"] == "cpu" else "ms"),
    )


def _show_quality(console: Console, entries: list[Entry], baseline: str, margin: float) -> None:
    metric = words_of(metric_of(entries[0])).short
    _show_table(
        console,
        ("artifact", metric, "drop", "at most", "lost", "gained", "MB", "quality"),
        [
            (
                _name(entry, "" if entry["device"] == "cpu" else f" {entry['precision']}"),
                f"{value_of(entry):.4f}",
                *(("", "", "", "") if is_base else _drop_cells(entry)),
                f"{entry['size_bytes'] / 1e6:.1f}",
                "baseline" if is_base else quality_word(entry, margin),
            )
            for entry, is_base in _marked(entries, baseline)
        ],
        spare=("MB", "gained", "lost", "at most"),
    )


def _show_table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    spare: Sequence[str],
) -> None:
    """Show a table; where it is too wide, what can be spared goes, for no number is cut.

    First the spare columns, in their order, then the front of long names.
    """
    kept, left = list(range(len(columns))), list(spare)
    while left and _width_of(columns, rows, kept) > _terminal_width():
        kept = [place for place in kept if columns[place] != left[0]]
        left = left[1:]
    over = max(0, _width_of(columns, rows, kept) - _terminal_width())
    room = max(_SHORTEST_NAME, max(len(row[0]) for row in rows) - over)
    console.table(
        ["" if columns[place] == _BAR else columns[place] for place in kept],
        [[_end(row[0], room), *(row[place] for place in kept[1:])] for row in rows],
        dense=True,
    )


def _width_of(columns: Sequence[str], rows: Sequence[Sequence[str]], kept: Sequence[int]) -> int:
    """Return the columns of a terminal that `Console.table` takes for a dense table."""
    from rich.cells import cell_len

    cells = [columns, *rows]
    return sum(2 + max(cell_len(row[place]) for row in cells) for place in kept)


def _terminal_width() -> int:
    from rich.console import Console as RichConsole

    return RichConsole(file=sys.stdout).width


def _show_wrapped(console: Console, line: str) -> None:
    """Show a line in as many as it takes; names and paths in it stay whole."""
    width = min(WIDTH, _terminal_width())
    lines = wrap(
        line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    console.show(*lines)


def _rate(per_s: float) -> str:
    return f"{per_s:.4g}" if per_s < 1000 else f"{per_s:,.0f}"


def _drop_cells(entry: Entry) -> tuple[str, str, str, str]:
    """Return the drop, its upper bound, and the answers that were lost and gained."""
    interval, drop, flips = drop_interval_of(entry), drop_of(entry), entry["flips"]
    if interval is None or drop is None:
        return "", "", "", ""
    lost, gained = (str(flips[way]) if flips else "" for way in ("lost", "gained"))
    return f"{drop:+.4f}", f"{interval['high']:+.4f}", lost, gained


def _legend(entries: list[Entry], margin: float) -> Iterator[str]:
    """Explain the words of the tables."""
    entry = entries[0]
    words = words_of(metric_of(entry))
    if not is_proved_by_examples(entry):
        yield f"Quality: nothing is proved without labels; {words.short} is with the baseline."
        return
    flips = "Lost, gained: answers that were right before, or are now." if entry["flips"] else ""
    right = f" {words.right.capitalize()}." if words.right else ""
    yield (
        f"Quality: a drop below {margin:g} is proved (holds), one of at least that is proved "
        "(worse), or neither (unproved; more examples tell). At most: upper bound of the drop, "
        f"95 %. {flips}{right}".rstrip()
    )
    yield (
        "* is on the front: of the baseline and all that holds, nothing else beats it in time or "
        f"{words.name} without losing in the other. ~ is stale, made from what was replaced since."
    )
    if any(_sign(each) == "*?" for each in entries):
        yield "*? seems to be: the rounds do not tell how fast it is."


def _marked(entries: list[Entry], baseline: str) -> list[tuple[Entry, bool]]:
    """Return each entry, and whether it is the baseline itself: on a GPU in fp32 only."""
    first = next(entry for entry in entries if entry["artifact"] == baseline)
    return [(entry, entry is first) for entry in entries]


def _sign(entry: Entry) -> str:
    if entry["stale"]:
        return "~"
    return ("*" if speedups.is_decided(entry["speedup"]) else "*?") if entry["pareto"] else ""


def _name(entry: Entry, more: str = "") -> str:
    """Return the end of a long name, and behind it what tells two of that name apart."""
    return _end(str(entry["artifact"]), _LONGEST_NAME - len(more)) + more


def _end(name: str, room: int) -> str:
    return name if len(name) <= room else f"..{name[2 - room :]}"


def _noise_text(noise: dict[str, Any]) -> str:
    if not speedups.is_sure(noise):
        return "Noise: not known; there were too few rounds."
    if speedups.is_wide(noise):
        told = speedups.bounds(noise)
        return f"Noise: the baseline, measured against itself, seems {told} times as fast."
    low, high = noise["low"] - 1, noise["high"] - 1
    return f"Noise: the baseline, measured against itself, seems {low:+.1%} to {high:+.1%} faster."
