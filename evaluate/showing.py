"""What `evaluate` shows on a terminal or in a log: tables of 80 columns, and a legend."""

import math
from collections.abc import Iterator
from textwrap import wrap
from typing import Any

from tcompress.console import Console

from .entry import (
    Entry,
    drop_interval_of,
    drop_of,
    is_proved_by_examples,
    metric_of,
    value_of,
    words_of,
)
from .measurement import CONFIDENCE

WIDTH = 80
"""Columns of a line that is read in a log."""
_LONGEST_NAME = 18
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
    for line in _legend(document["measurements"][0], margin):
        console.show(*wrap(line, WIDTH, subsequent_indent="  "))
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
    console.table(
        ("artifact", "format", "calls", "ms", "per s", "speed-up", "verdict"),
        [
            (
                _name(mix),
                mix["precision"],
                _SCENARIOS.get(mix["scenario"], mix["scenario"]),
                milliseconds(mix["latency_ms"]["median"]),
                f"{mix['examples_per_s']:.4g}",
                speedup_text(mix["speedup"]) if mix["speedup"].get("blocks", 1) else "1",
                mix["speedup"].get("verdict")
                or ("" if mix["speedup"].get("blocks", 1) else "baseline"),
            )
            for mix in mixes
        ],
        dense=True,
    )


def show_notes(console: Console, document: dict[str, Any]) -> None:
    """Show how sure the times are, and the notes.

    Args:
        console: Where to show it.
        document: The document of `evaluate`.
    """
    console.show(_noise_text(document["environment"]["noise_floor"]))
    if earlier := document.get("earlier"):
        console.show(f"Former runs: the report greys {len(earlier)} points of artifacts now gone.")
    for note in document["notes"]:
        console.show(f"Note: {note}.")


def milliseconds(value: float) -> str:
    """Return a latency with three digits.

    Args:
        value: In ms.
    """
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def speedup_text(speedup: dict[str, Any]) -> str:
    """Return a speed-up and half of its interval, in three digits; `?` for no 95 % interval.

    Args:
        speedup: The entry's `speedup`.
    """
    value = speedup["value"]
    places = max(0, 2 - math.floor(math.log10(max(value, 1.0))))
    if not is_known(speedup):
        return f"{value:.{places}f} ?"
    return f"{value:.{places}f} ±{(speedup['high'] - speedup['low']) / 2:.{places}f}"


def is_known(speedup: dict[str, Any]) -> bool:
    """Tell whether a speed-up has a 95 % interval.

    Args:
        speedup: The entry's `speedup`.
    """
    return bool(speedup["confidence"] >= CONFIDENCE)


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
    console.table(
        ("artifact", "", "format", "ms", "", "speed-up", "verdict"),
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
        dense=True,
    )


def _show_quality(console: Console, entries: list[Entry], baseline: str, margin: float) -> None:
    metric = words_of(metric_of(entries[0])).short
    console.table(
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
        dense=True,
    )


def _drop_cells(entry: Entry) -> tuple[str, str, str, str]:
    """Return the drop, its upper bound, and the answers that were lost and gained."""
    interval, drop, flips = drop_interval_of(entry), drop_of(entry), entry["flips"]
    if interval is None or drop is None:
        return "", "", "", ""
    lost, gained = (str(flips[way]) if flips else "" for way in ("lost", "gained"))
    return f"{drop:+.4f}", f"{interval['high']:+.4f}", lost, gained


def _legend(entry: Entry, margin: float) -> Iterator[str]:
    """Explain the words of the tables."""
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


def _marked(entries: list[Entry], baseline: str) -> list[tuple[Entry, bool]]:
    """Return each entry, and whether it is the baseline itself: on a GPU in fp32 only."""
    first = next(entry for entry in entries if entry["artifact"] == baseline)
    return [(entry, entry is first) for entry in entries]


def _sign(entry: Entry) -> str:
    if entry["stale"]:
        return "~"
    return "*" if entry["pareto"] else ""


def _name(entry: Entry, more: str = "") -> str:
    """Return the end of a long name, and behind it what tells two of that name apart."""
    name, room = str(entry["artifact"]), _LONGEST_NAME - len(more)
    return (name if len(name) <= room else f"..{name[2 - room :]}") + more


def _noise_text(noise: dict[str, Any]) -> str:
    if not is_known(noise):
        return "Noise: not known; there were too few rounds."
    low, high = noise["low"] - 1, noise["high"] - 1
    return f"Noise: the baseline, measured against itself, seems {low:+.1%} to {high:+.1%} faster."
