"""A model card for every artifact: what was done to it, what was measured, and what is not known.

A card lies beside the report, not in the artifact, which is sealed by its digests. It starts with
the metadata that the Hugging Face Hub reads; what is not known is left out.
"""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData, metadata_load

from .. import speedups
from ..entry import words_of
from .markdown import code, table
from .summary import Row, Standing, Summary, cleaned
from .wording import (
    data_name,
    format_bytes,
    format_macs,
    format_ms,
    interval_words,
    machine_facts,
    margin_words,
    timing_doubt,
)

_LIBRARIES = {"onnxruntime": "onnx", "openvino": "openvino"}
_TEXT_FILES = ("tokenizer.json", "vocab.txt", "spiece.model")
_INHERITED = ("license", "license_name", "license_link", "language", "base_model")
_LONGEST_FILE_NAME = 80
_METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "mcc": "matthews_correlation",
    "micro_f1": "f1",
    "entity_f1": "f1",
    "entity_precision": "precision",
    "entity_recall": "recall",
    "f1": "f1",
    "exact_match": "exact_match",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "mse": "mse",
    "ndcg_at_10": "ndcg_at_10",
    "recall_at_10": "recall_at_10",
}
"""Names of the Hub."""
_TASKS = {
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "embedding": "sentence-similarity",
}
"""Names of the Hub; other tasks on texts are text-classification."""


def render_cards(document: dict[str, Any]) -> dict[str, str]:
    """Return a card for everything but the baseline.

    Args:
        document: The document of `evaluate`.

    Returns:
        Cards by file name without suffix.
    """
    summary = Summary.of(document)
    artifacts: dict[str, list[Row]] = {}
    for row in summary.rows:
        if not row.is_baseline:
            artifacts.setdefault(row.raw["artifact"], []).append(row)
    cards: dict[str, str] = {}
    for number, (name, rows) in enumerate(artifacts.items()):
        stem = _file_name(name)
        cards[f"{stem}-{number}" if stem in cards else stem] = render_card(summary, rows)
    return cards


def render_card(summary: Summary, rows: list[Row]) -> str:
    """Return the card of one artifact.

    Args:
        summary: The document.
        rows: The artifact's measurements.

    Returns:
        The text of its README.md.
    """
    row = rows[0]
    lines = [
        f"---\n{_metadata(summary, row).to_yaml()}\n---\n",
        f"# {code(row.name)}\n",
        "A transformer encoder compressed by tcompress. Every number below was measured on the "
        "exported artifact itself, against the source model in PyTorch fp32.\n",
        "## What was done\n",
        _plan(summary, row),
        "## What it costs and wins\n",
        _numbers(summary, rows),
        "Measured by `tcompress evaluate`; the raw samples are in its report.json.\n",
        "## Limits\n",
        _limits(summary, row),
    ]
    return "\n".join(lines)


def _metadata(summary: Summary, row: Row) -> ModelCardData:
    source = summary.baseline.raw.get("path") if summary.baseline else None
    origin = Path(source) if source else None
    known = _TASKS.get(str(summary.document["data"].get("task")), "text-classification")
    task = known if origin and _reads_text(origin) else None
    backend, precision = str(row.raw["backend"]), str(row.raw["precision"])
    return ModelCardData(
        library_name=_LIBRARIES.get(backend, "tcompress"),
        pipeline_tag=task,
        tags=["tcompress", "compressed", backend, precision],
        model_name=row.name,
        eval_results=_results(summary, row, task or "classification"),
        **_inherited(origin),
    )


def _results(summary: Summary, row: Row, task: str) -> list[EvalResult]:
    data = summary.document["data"]
    name = data_name(data)
    return [
        EvalResult(
            task_type=task,
            dataset_type=_file_name(name),
            dataset_name=name,
            dataset_split=data["split"],
            metric_type=hub_name,
            metric_name=words_of(metric).name,
            metric_value=round(row.raw["metrics"][metric], 6),
        )
        for metric, hub_name in _METRICS.items()
        if metric in row.raw["metrics"]
    ] or [
        EvalResult(
            task_type=task,
            dataset_type=_file_name(name),
            dataset_name=name,
            metric_type=summary.metric,
            metric_value=round(row.quality, 6),
        )
    ]


def _inherited(source: Path | None) -> dict[str, Any]:
    """Return what the source's own card says and holds for the artifact as well."""
    card = source / "README.md" if source else None
    if card is None or not card.is_file():
        return {}
    try:
        known = metadata_load(card) or {}
    except (OSError, ValueError):
        return {}  # a card that cannot be read says nothing
    return {name: cleaned(known[name]) for name in _INHERITED if known.get(name)}


def _reads_text(source: Path) -> bool:
    return any((source / name).is_file() for name in _TEXT_FILES)


def _plan(summary: Summary, row: Row) -> str:
    base, raw = summary.baseline, row.raw
    lines = [f"- precision: {code(raw['precision'])}, run by {code(raw['backend'])}"]
    if base is not None and raw["heads"] and row.shape != base.shape:
        lines += [
            f"- attention heads kept per layer: {_list(raw['heads'])}, "
            f"of {_list(base.raw['heads'])}",
            f"- FFN neurons kept per layer: {_list(raw['neurons'])}, "
            f"of {_list(base.raw['neurons'])}",
        ]
    else:
        lines.append("- nothing was pruned")
    lines += [f"- digest: {code(raw['digest'])}"] if raw["digest"] else []
    return "\n".join(lines) + "\n"


def _numbers(summary: Summary, rows: list[Row]) -> str:
    words = summary.words
    heads = ("device", "batch × tokens", "latency, ms", "speed-up", words.title, words.drop_title)
    cells = []
    for row in rows:
        drop = row.known_drop
        cells.append(
            [
                code(row.raw["device"]),
                f"{row.raw['batch']} × {row.raw['tokens']}",
                format_ms(row.latency_ms),
                speedups.cell(row.raw["speedup"], is_baseline=row.is_baseline),
                words.number(row.quality),
                "–" if drop is None else words.change(drop),
            ]
        )
    raw, told = rows[0].raw, [words for words in (interval_words(summary),) if words]
    if raw["size_bytes"] is not None:
        told.append(f"Size: {format_bytes(raw['size_bytes'])}.")
    if raw["macs"] is not None:
        told.append(f"Multiply-accumulates per example: {format_macs(raw['macs'])}.")
    return table(heads, cells, 1) + ("\n" + " ".join(told) + "\n" if told else "")


def _limits(summary: Summary, row: Row) -> str:
    data, points, name = summary.document["data"], margin_words(summary), summary.words.name
    split = f", {code(data['split'])} split" if data["split"] else ""
    doubt = timing_doubt(summary, row)
    proved = {
        Standing.PROVED: f"proved to lose less than {points} of {name} on these examples",
        Standing.WORSE: f"loses more than {points}, as measured",
    }.get(row.standing, f"not proved to lose less than {points} of {name}")
    machine = machine_facts(summary.document["environment"])
    lines = [
        f"- {proved}",
        f"- measured on {data['examples']:,} examples of {code(data_name(data))}"
        f"{split}; other data may lose more",
        f"- timed on {code(machine.get('CPU', 'an unknown CPU'))}; other machines differ, and int8 "
        "may answer differently on a CPU without the same instructions",
        *([f"- {doubt.strip().removesuffix('.')}"] if doubt else []),
        "- what the source model cannot do, or does unfairly, this one does too",
    ]
    return "\n".join(lines) + "\n"


def _list(counts: list[int]) -> str:
    return ", ".join(map(str, counts))


def _file_name(name: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")
    return safe[-_LONGEST_FILE_NAME:].strip(".-") or "artifact"
