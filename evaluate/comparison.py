"""Two models side by side on a terminal: `evaluate --compare`."""

from collections.abc import Callable
from functools import partial
from textwrap import wrap
from typing import Any

from tcompress.console import Console

from . import speedups
from .entry import Entry, drop_interval_of, drop_of, metric_of, value_of, words_of
from .showing import (
    WIDTH,
    milliseconds,
    quality_word,
    show_mixes,
    show_notes,
    speedup_text,
)

_INDENT = " " * len("Is B faster?  ")

_SPEEDS = {
    "faster": "Yes, B is faster: {times}.",
    "slower": "No, B is slower: {times}.",
    "equivalent": "No, B is as fast as A: {times}.",
    "inconclusive": "Not known: the measurements do not tell whether B is faster; {times}.",
}


def show_comparison(console: Console, document: dict[str, Any]) -> None:
    """Show two models side by side, per device and shape, and answer: faster? worse?

    Args:
        console: Where to show it.
        document: The document of `evaluate`; its baseline is A.
    """
    if console.as_json:
        console.show_json(document)
        return
    entries = document["measurements"]
    name = next((e["artifact"] for e in entries if e["artifact"] != document["baseline"]), "")
    console.show(f"A  {document['baseline']}", f"B  {name}")
    for first, second in _pairs(entries, document["baseline"]):
        where = f"{first['device']}, batch {first['batch']}, {first['tokens']} tokens"
        console.show("", f"{where}, {document['data']['examples']} examples")
        console.table(("", "A", "B"), _rows(first, second))
        for question, answer in (
            ("Is B faster?", speed_answer(second)),
            ("Is B worse? ", quality_answer(second, document["margin"])),
        ):
            console.show(*wrap(f"{question}  {answer}", WIDTH, subsequent_indent=_INDENT))
    show_mixes(console, document)
    show_notes(console, document)


def speed_answer(entry: Entry) -> str:
    """Answer in a sentence whether the candidate is faster.

    Args:
        entry: Its entry of `measurements`.
    """
    speedup = entry["speedup"]
    if not speedups.is_sure(speedup):
        return "Not known: too few rounds to tell; a larger --budget-s tells."
    low, high = speedup["low"], speedup["high"]
    times = f"{speedup['value']:.2f} times A's speed, {low:.2f} to {high:.2f} with 95 %"
    return _SPEEDS[speedup.get("verdict") or _by_interval(low, high)].format(times=times)


def quality_answer(entry: Entry, margin: float) -> str:
    """Answer in a sentence whether the candidate is worse.

    Args:
        entry: Its entry of `measurements`.
        margin: Smallest drop that is not acceptable, a fraction.
    """
    interval, drop = drop_interval_of(entry), drop_of(entry)
    if interval is None or drop is None:
        if entry["agreement"] is None:
            return f"Not known without labels: the answers correlate by {value_of(entry):.4f}."
        return f"Not known without labels: both answer {entry['agreement']:.1%} alike."
    low, high = interval["low"], interval["high"]
    name, side = words_of(metric_of(entry)).name, "lower" if drop > 0 else "higher"
    told = (
        f"its {name} is {abs(drop):.4f} {side}, "
        f"a drop of {low:+.4f} to {high:+.4f}, each bound with 95 %"
    )
    return {
        "holds": f"No, a drop below the margin of {margin:g} is proved: {told}.",
        "worse": f"Yes, by at least the margin of {margin:g}: {told}.",
        "unproved": f"Not known: {told}; more examples tell whether it is below {margin:g}.",
    }[quality_word(entry, margin)]


def _by_interval(low: float, high: float) -> str:
    if low > 1:
        return "faster"
    return "slower" if high < 1 else "inconclusive"


def _pairs(entries: list[Entry], baseline: str) -> list[tuple[Entry, Entry]]:
    """Return baseline and candidate of each device, shape and number format there."""
    found = []
    for second in entries:
        if second["artifact"] == baseline:
            continue
        setting = [second[name] for name in ("device", "batch", "tokens")]
        first = next(
            entry
            for entry in entries
            if entry["artifact"] == baseline
            and [entry[name] for name in ("device", "batch", "tokens")] == setting
        )
        found.append((first, second))
    return found


def _rows(first: Entry, second: Entry) -> list[tuple[str, str, str]]:
    """Return a row per property of A and B, and below one per comparison of B with A."""
    of_each: dict[str, Callable[[Entry], str]] = {
        "engine, format": lambda entry: f"{entry['backend']}, {entry['precision']}",
        "latency, median ms": lambda entry: milliseconds(entry["latency_ms"]["median"]),
        "start to first answer, ms": lambda entry: _start(entry.get("load_ms")),
        "model file, MB": lambda entry: f"{entry['size_bytes'] / 1e6:.1f}",
        "memory at peak, MB": lambda entry: f"{entry['memory_peak_bytes'] / 1e6:.0f}",
        **{
            words_of(name).name: partial(_metric, name)
            for name in first["metrics"]
            if name != "agreement"
        },
    }
    flips = second["flips"]
    compared = {
        "speed-up": speedup_text(second["speedup"]),
        f"drop in {words_of(metric_of(second)).name}": _number(drop_of(second), "+.4f"),
        "right answers lost, gained": f"{flips['lost']}, {flips['gained']}" if flips else "",
        "answers alike": _number(second["agreement"], ".1%"),
        "mean KL(A || B), nats": _number(second["divergence"], ".3g"),
    }
    rows = [(name, cell(first), cell(second)) for name, cell in of_each.items()]
    rows += [(name, "", value) for name, value in compared.items()]
    return [row for row in rows if any(row[1:])]


def _metric(name: str, entry: Entry) -> str:
    return _number(entry["metrics"].get(name), ".4f")


def _start(load: dict[str, Any] | None) -> str:
    return "" if load is None else milliseconds(load["median"])


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
