"""Numbers and sentences of the report, the same in the page, the pull request and the card."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .. import speedups
from ..conditions import BUSY
from .summary import Row, Setting, Summary

Quote = Callable[[Any], str]
"""Marks a name as one."""

_UNSURE_HALF_WIDTH = 0.1
_VERSIONS_SHOWN = ("tcompress", "torch", "transformers", "onnxruntime", "openvino", "python")


def recommendation(summary: Summary, setting: Setting, quote: Quote = str) -> str:
    """Say what to ship in a setting, and what is not proved about it.

    Args:
        summary: The document.
        setting: Device, batch and tokens.
        quote: Marks a name as one.

    Returns:
        A few sentences.
    """
    base = summary.base_at(setting)
    if base is None:
        return "Nothing can be recommended, as the baseline was not measured."
    best, likely = summary.chosen_at(setting), summary.likely_at(setting)
    if best is None:
        return _keep(summary, base, likely, quote)
    told = (
        f"Ship {_what(best, quote)}: {_gain(best, base, quote)} at {_quality(best, summary)}. "
        f"On {_examples(summary)} its loss is proved to stay below {margin_words(summary)}."
        f"{timing_doubt(summary, best)}"
    )
    if likely is None:
        return told
    return (
        f"{told} {quote(likely.name)} is faster still ({format_ms(likely.latency_ms)} ms), "
        f"but {_doubt(likely, summary)}."
    )


def recommendations(summary: Summary, quote: Quote = str) -> list[tuple[str, str]]:
    """Return every setting in words, and what to ship there; the baseline's first one leads.

    Args:
        summary: The document.
        quote: Marks a name as one.

    Returns:
        Pairs of a setting and a sentence.
    """
    return [
        (setting_words(setting), recommendation(summary, setting, quote))
        for setting in summary.settings
    ]


def lead_of(summary: Summary, quote: Quote = str) -> tuple[str, str]:
    """Return the setting that the lead speaks of, empty where there is only one, and the lead.

    Args:
        summary: The document.
        quote: Marks a name as one.
    """
    where, told = recommendations(summary, quote)[0]
    return (where if len(summary.settings) > 1 else "", told)


def timing_doubt(summary: Summary, row: Row) -> str:
    """Say why a speed-up is less sure than its numbers look, as one more sentence.

    Args:
        summary: The document.
        row: The measurement that is spoken of; the baseline stands for all of its setting.

    Returns:
        The sentence behind a space; empty where nothing speaks against the speed-up.
    """
    reasons = [*_disturbances(summary, row), *_vagueness(row, summary)]
    return f" Timing unsure: {'; '.join(reasons)}." if reasons else ""


def interval_words(summary: Summary) -> str:
    """Say with what confidence the intervals of quality and speed hold; empty where none is shown.

    Args:
        summary: The document.
    """
    told = []
    if confidence := _confidence(row.quality_interval for row in summary.rows):
        told.append(f"of each {summary.words.name} {confidence:.0%}, two-sided")
    timed = (row.raw["speedup"] for row in summary.rows if not row.is_baseline and row.is_timed)
    if confidence := _confidence(timed):
        told.append(f"of a speed-up {confidence:.0%}, two-sided")
    drops = (row.drop_interval for row in summary.rows if not row.is_baseline)
    if confidence := _confidence(drops):
        told.append(
            f"of a drop {confidence:.0%}, two-sided, so that each of its ends alone holds with "
            f"{(1 + confidence) / 2:.0%}"
        )
    return f"Intervals: {'; '.join(told)}.".replace("%", " %") if told else ""


def margin_words(summary: Summary) -> str:
    """Return the margin as a reader would say it."""
    return summary.words.margin(summary.margin)


def setting_words(setting: Setting) -> str:
    """Return a setting as a reader would say it."""
    device, batch, tokens = setting
    return f"{device}, batch {batch}, {tokens} tokens"


def machine_facts(environment: dict[str, Any]) -> dict[str, str]:
    """Return what a reader has to know about the machine, as short texts.

    Args:
        environment: The document's `environment`; what is missing in it is left out.

    Returns:
        Short texts by name.
    """
    features = [name for name, there in environment.get("cpu_features", {}).items() if there]
    versions = environment.get("versions", {})
    facts = {
        "CPU": environment.get("cpu"),
        "instruction sets": ", ".join(features),
        "CPUs usable": environment.get("cpus_usable"),
        "threads": environment.get("threads"),
        "memory": _optional(format_bytes, environment.get("memory_bytes")),
        "GPU": environment.get("gpu"),
        "system": environment.get("system"),
        "started": environment.get("started"),
        "load before": _load(environment.get("load_before")),
        "load after": _load(environment.get("load_after")),
        "versions": ", ".join(f"{n} {versions[n]}" for n in _VERSIONS_SHOWN if n in versions),
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def condition_facts(environment: dict[str, Any]) -> dict[str, str]:
    """Return the conditions that the timing ran under, as short texts.

    Args:
        environment: The document's `environment`; what is missing in it is left out.

    Returns:
        Short texts by name.
    """
    found = environment.get("conditions") or {}
    facts = {
        "CPUs allowed": ", ".join(map(str, found.get("affinity") or [])),
        "CPU quota of the container": found.get("cgroup_cpus"),
        "frequency governor": found.get("governor"),
        "turbo": _optional(lambda on: "on" if on else "off", found.get("turbo")),
        "CPU temperature": _optional("{:.0f} °C".format, found.get("temperature_c")),
        "time stolen by the hypervisor": _optional("{:.2%}".format, found.get("steal")),
        "load of other processes": _optional(
            "{:.0%} of the CPUs".format, found.get("foreign_load")
        ),
        "spinning threads": found.get("spinning"),
        "GPU clock": _optional("{:,.0f} MHz".format, found.get("gpu_clock_mhz")),
        "GPU temperature": _optional("{:.0f} °C".format, found.get("gpu_temperature_c")),
        "GPU memory": _optional(format_bytes, found.get("gpu_memory_bytes")),
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def noise_sentence(environment: dict[str, Any]) -> str | None:
    """Say how much two timings of the same model differ here.

    Args:
        environment: The document's `environment`.

    Returns:
        The sentence; None where the noise was not measured.
    """
    floor = environment.get("noise_floor")
    if not floor:
        return None
    if not speedups.is_sure(floor):
        return "Noise floor: not known, as there were too few rounds."
    told = (
        speedups.bounds(floor)
        if speedups.is_wide(floor)
        else f"{floor['value']:.3f} ({speedups.bounds(floor, decimals=3)})"
    )
    return (
        f"Noise floor: the baseline timed against itself came out {told} times as fast; "
        "a speed-up inside that range says nothing."
    )


def format_ms(value: float) -> str:
    """Return milliseconds with three significant digits."""
    return f"{value:.3g}" if value < 99.95 else f"{value:,.0f}"


def format_bytes(value: float) -> str:
    """Return a size in decimal units."""
    return _scaled(value, ("B", "kB", "MB", "GB", "TB"))


def format_macs(value: float) -> str:
    """Return a number of multiply-accumulates in decimal units."""
    return _scaled(value, ("", "k", "M", "G", "T"))


def _scaled(value: float, units: Sequence[str]) -> str:
    position = 0
    while value >= 999.5 and position < len(units) - 1:
        value, position = value / 1000, position + 1
    return f"{value:.3g} {units[position]}".rstrip()


def _keep(summary: Summary, base: Row, likely: Row | None, quote: Quote) -> str:
    if likely is not None:
        return (
            f"Keep {quote(base.name)} until more is proved: {_what(likely, quote)} is "
            f"{_gain(likely, base, quote)} at {_quality(likely, summary)}, "
            f"but {_doubt(likely, summary)}.{timing_doubt(summary, likely)}"
        )
    return (
        f"Keep {quote(base.name)}: nothing else was shown to be faster and to lose less than "
        f"{margin_words(summary)}.{_too_costly(summary, base, quote)}{timing_doubt(summary, base)}"
    )


def _what(row: Row, quote: Quote) -> str:
    return f"{quote(row.name)} ({quote(row.raw['backend'])}, {quote(row.raw['precision'])})"


def _gain(row: Row, base: Row, quote: Quote) -> str:
    """Say how much faster a measurement is, and by which latencies where they say the same."""
    speedup, name = row.raw["speedup"], quote(base.name)
    if speedups.is_wide(speedup):
        return f"{_times(row)} as fast as {name}"
    told = speedups.bounds(speedup)
    # Two medians over all calls may differ by another ratio than the rounds, if the machine does.
    if speedup["low"] <= base.latency_ms / row.latency_ms <= speedup["high"]:
        told += f"; {format_ms(row.latency_ms)} ms instead of {format_ms(base.latency_ms)} ms"
    return f"{_times(row)} as fast as {name} ({told})"


def _times(row: Row) -> str:
    speedup = row.raw["speedup"]
    wide = speedups.is_wide(speedup)
    return f"{speedups.bounds(speedup) if wide else speedups.estimate(speedup['value'])} times"


def _disturbances(summary: Summary, row: Row) -> Iterator[str]:
    """Say what else went on, and how far two timings of one model differ here."""
    environment = summary.document["environment"]
    load = (environment.get("conditions") or {}).get("foreign_load") or 0.0
    if load > BUSY:
        yield f"other programs used up to {load:.0%} of the CPUs".replace("%", " %")
    floor = _floor_at(environment, row.setting)
    if not floor or not speedups.is_sure(floor):
        yield "the noise floor is not known"
    elif speedups.half_width(floor) > _UNSURE_HALF_WIDTH:
        yield f"the baseline seemed {speedups.bounds(floor)} times as fast as itself"


def _vagueness(row: Row, summary: Summary) -> Iterator[str]:
    """Say how little the rounds told."""
    rivals = [other for other in summary.rows_at(row.setting) if not other.is_baseline]
    if not all(other.is_timed for other in (rivals if row.is_baseline else [row])):
        yield "too few rounds"
    elif not row.is_baseline and speedups.half_width(row.raw["speedup"]) > _UNSURE_HALF_WIDTH:
        yield "its interval is wide"


def _confidence(intervals: Iterable[dict[str, Any] | None]) -> float:
    """Return the confidence of the first interval that states one; 0 where none does."""
    stated = (found.get("confidence") for found in intervals if found)
    return next((float(value) for value in stated if value), 0.0)


def _floor_at(environment: dict[str, Any], setting: Setting) -> dict[str, Any] | None:
    """Return the noise floor of a setting, or else the one that is quoted for all."""
    for floor in environment.get("noise_floors") or []:
        if (floor["device"], floor["batch"], floor["tokens"]) == setting:
            return dict(floor)
    return environment.get("noise_floor")


def _doubt(row: Row, summary: Summary) -> str:
    """Say what is not known about the loss of a measurement."""
    if row.known_drop is None:
        return "without labels nothing is proved about its quality"
    told = f"{_examples(summary)} do not prove that it loses less than {margin_words(summary)}"
    if row.raw["not_inferior"] is None:
        return f"it was not tested whether it loses less than {margin_words(summary)}"
    bound = row.drop_interval
    return f"{told} (it may be {summary.words.number(bound['high'])})" if bound else told


def _too_costly(summary: Summary, base: Row, quote: Quote) -> str:
    """Name what would be won, and given up, by the fastest measurement of all."""
    rows = summary.rows_at(base.setting)
    faster = [row for row in rows if row.is_faster and not row.raw["stale"]]
    if not faster:
        return ""
    best = min(faster, key=lambda row: row.latency_ms)
    lost = (
        f"has {_same(best, summary)}"
        if best.known_drop is None
        else f"gives up {summary.words.distance(best.drop)}"
    )
    return f" The fastest, {quote(best.name)}, is {_times(best)} as fast and {lost}."


def _quality(row: Row, summary: Summary) -> str:
    words = summary.words
    if not summary.has_labels:
        return _same(row, summary)
    side = "below" if row.drop > 0 else "above"
    far = words.number(abs(row.drop)) != words.number(0.0)
    distance = f"{words.distance(abs(row.drop))} {side} it" if far else "the same as it"
    value = words.shown(row.quality)
    told = f"{value} {words.name}" if words.is_fraction else f"a {words.name} of {value}"
    return f"{told}, {distance}"


def _same(row: Row, summary: Summary) -> str:
    """Say how far the answers are the baseline's, where nothing says which are right."""
    value = summary.words.shown(row.quality)
    if summary.metric == "agreement":
        return f"the same answer in {value} of the cases"
    return f"a {summary.words.name} of {value}"


def data_name(data: Mapping[str, Any]) -> str:
    """Return what the examples are called: a report is passed on, and a path is a machine's own.

    Args:
        data: The report's `data`.
    """
    return str(data["origin"]).rstrip("/").rpartition("/")[2] or "data"


def _examples(summary: Summary) -> str:
    return f"{summary.document['data']['examples']:,} examples"


def _load(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        return ", ".join(f"{part:.2f}" for part in value)
    return None if value is None else f"{value:.2f}"


def _optional(function: Callable[[Any], str], value: Any) -> str | None:
    return None if value is None else function(value)
