"""The text for a pull request: short, with the details folded away, and never too long to post."""

from collections.abc import Iterator, Sequence
from typing import Any

from .. import speedups
from ..entry import MetricWords
from .summary import Row, Standing, Summary
from .wording import (
    condition_facts,
    data_name,
    format_bytes,
    format_ms,
    interval_words,
    lead_of,
    machine_facts,
    noise_sentence,
    recommendations,
)

LONGEST_BYTES = 60_000
"""A little below what a comment on a pull request may hold."""

_MOST_FLIPPED = 10
_LONGEST_TEXT = 160
_CUT = "\n_Cut here: the rest is in report.html and report.json._\n"


def render_markdown(document: dict[str, Any]) -> str:
    """Return the text for a pull request.

    Args:
        document: The document of `evaluate`.

    Returns:
        The text of the file, in parts of which the last ones are left out where it grows too long.
    """
    parts: list[str] = []
    size = len(_CUT.encode())
    for part in _parts(Summary.of(document)):
        size += len(part.encode("utf-8", "replace")) + 1
        if size > LONGEST_BYTES:
            return "\n".join([*parts, _CUT])
        parts.append(part)
    return "\n".join(parts)


def code(text: Any) -> str:
    """Return text as Markdown code, which neither links, nor mentions, nor ends a cell.

    Args:
        text: Any text on one line.
    """
    return "`" + str(text).replace("`", "'").replace("|", "¦") + "`"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """Return a table.

    Args:
        heads: Titles of the columns.
        rows: The cells.
        texts: Number of columns at the left that hold text; the others are numbers.
    """
    rule = ("---",) * texts + ("---:",) * (len(heads) - texts)
    return "".join("| " + " | ".join(row) + " |\n" for row in (heads, rule, *rows))


def _parts(summary: Summary) -> Iterator[str]:
    where, lead = lead_of(summary, quote=_name)
    yield f"**{f'On {where}: ' if where else ''}{lead}**\n"
    others = recommendations(summary, quote=_name)[1:]
    if others:
        yield "".join(f"- {words}: {sentence}\n" for words, sentence in others)
    first = summary.settings[0]
    yield _measurements(summary, summary.rows_at(first))
    rest = [row for row in summary.rows if row.setting != first]
    if rest:
        yield from _folded("Other batches, lengths and devices", _measurements(summary, rest))
    if flips := _flips(summary):
        yield from _folded("Answers that flipped", flips)
    yield from _folded("Data, machine and noise", _circumstances(summary))
    if notes := [note for note in (summary.document["gpu"], *summary.document["notes"]) if note]:
        yield "".join(f"- {_name(note)}\n" for note in notes)


def _folded(title: str, text: str) -> Iterator[str]:
    """Fold a text away; it is one part, so that it is never cut open."""
    yield f"<details><summary>{title}</summary>\n\n{text}\n</details>\n"


def _measurements(summary: Summary, rows: Sequence[Row]) -> str:
    words = summary.words
    heads = ("artifact", "backend", "device", "precision")
    numbers = ("batch × tokens", "latency, ms", "speed-up", words.title, words.drop_title)
    cells = [_cells(row, words) for row in rows[:100]]
    return table((*heads, *numbers, "loss", "size"), cells, len(heads))


def _cells(row: Row, words: MetricWords) -> list[str]:
    raw, drop = row.raw, row.known_drop
    return [
        _name(row.name) + (" (out of date)" if raw["stale"] else ""),
        _name(raw["backend"]),
        _name(raw["device"]),
        _name(raw["precision"]),
        f"{raw['batch']} × {raw['tokens']}",
        format_ms(row.latency_ms),
        speedups.cell(raw["speedup"], is_baseline=row.is_baseline),
        words.number(row.quality),
        "–" if drop is None else words.change(drop),
        {Standing.PROVED: "proved small", Standing.UNPROVED: "not proved small"}.get(
            row.standing, str(row.standing)
        ),
        "–" if raw["size_bytes"] is None else format_bytes(raw["size_bytes"]),
    ]


def _flips(summary: Summary) -> str:
    subject = summary.candidate or summary.compressed
    found = [e for e in summary.document["flipped"] if subject and e["artifact"] == _raw(subject)]
    return (
        table(
            ("example", "label", "before", "after", "text"),
            [
                [_name(e[key]) for key in ("id", "label", "before", "after")]
                + [code(str(e["text"])[:_LONGEST_TEXT]) if e.get("text") else "–"]
                for e in found[:_MOST_FLIPPED]
            ],
            5,
        )
        if found
        else ""
    )


def _circumstances(summary: Summary) -> str:
    clean = summary.document
    data, environment = clean["data"], clean["environment"]
    facts = machine_facts(environment) | condition_facts(environment)
    split = f", {_name(data['split'])} split" if data["split"] else ""
    lines = [
        interval_words(summary),
        f"Data: {_name(data_name(data))}{split}, {data['examples']:,} examples.",
        "Machine: " + "; ".join(f"{fact} {code(value)}" for fact, value in facts.items()) + ".",
        noise_sentence(environment),
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def _raw(row: Row) -> str:
    return str(row.raw["artifact"])


def _name(text: Any) -> str:
    """Return a name or a note as code, cut where it is absurdly long."""
    text = str(text)
    return code(text if len(text) <= 600 else f"{text[:600]}…")
