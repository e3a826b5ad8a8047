import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from tcompress.console import Console
from tcompress.evaluate import history
from tcompress.evaluate.history import remember

Document = dict[str, Any]


def entry(name: str, digest: str, directory: Path, **changes: Any) -> Document:
    setting = {"backend": "pytorch", "device": "cpu", "precision": "fp32", "batch": 1, "tokens": 6}
    numbers = {
        "latency_ms": {"median": 2.0, "n": 3, "samples": [1.0, 2.0, 3.0]},
        "speedup": {"value": 1.5, "low": 1.4, "high": 1.6, "confidence": 0.95, "blocks": 8},
        "metrics": {"accuracy": 0.8},
        "size_bytes": 100,
        "classes": [{"label": "a"}],
        "not_inferior": True,
        "pareto": True,
    }
    names = {"artifact": name, "path": str(directory), "stage": "prune", "digest": digest}
    return names | setting | numbers | changes


@pytest.fixture
def run(tmp_path: Path):
    """A document of `evaluate` on the source and one artifact, and when it was measured."""

    def document(digest: str, minute: int, **changes: Any) -> Document:
        environment = {"cpu": "x", "cpu_features": {"avx2": True}, "threads": 2, "gpu": None}
        source = entry("source", "source-digest", tmp_path / "source")
        return {
            "baseline": "source",
            "environment": environment | {"started": f"2026-01-01T00:{minute:02}:00+00:00"},
            "data": {"digest": "data-digest"},
            "measurements": [source, entry("prune", digest, tmp_path / "prune", **changes)],
        }

    return document


@pytest.fixture
def keep(tmp_path: Path):
    """Remember a document; returns what is earlier, and the artifacts in the file."""
    path = tmp_path / "report" / "history.jsonl"

    def remembered(document: Document) -> tuple[list[Document], list[str]]:
        earlier = remember(document, path, Console(quiet=True))
        return earlier, [json.loads(line)["artifact"] for line in path.read_text().splitlines()]

    return remembered


def test_replaced_artifact_is_shown_as_earlier_once_and_without_its_samples(run, keep):
    assert keep(run("old", 1)) == ([], ["source-digest", "old"])
    keep(run("old", 2, latency_ms={"median": 4.0, "n": 1, "samples": [4.0]}))
    earlier, lines = keep(run("new", 3))
    assert lines == ["old", "source-digest", "new"]
    (point,) = earlier
    assert (point["artifact"], point["digest"]) == ("prune", "old")
    assert point["latency_ms"] == {"median": 4.0, "n": 1, "samples": []}
    assert (point["measured"], point["pareto"]) == ("2026-01-01T00:02:00+00:00", False)
    assert "classes" not in point
    assert keep(run("old", 4))[0][0]["digest"] == "new"


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"environment": {"cpu": "y"}}, id="other-cpu"),
        pytest.param({"environment": {"threads": 1}}, id="other-threads"),
        pytest.param({"data": {"digest": "other"}}, id="other-data"),
    ],
)
def test_points_that_do_not_compare_are_kept_but_not_shown(run, keep, changed):
    keep(run("old", 1))
    document = run("new", 2)
    for name, values in changed.items():
        document[name] |= values
    earlier, lines = keep(document)
    assert earlier == []
    assert "old" in lines


def test_artifact_that_still_stands_where_it_was_is_not_earlier(
    run, keep, tmp_path: Path, model_directories
):
    from tcompress.workspace import reference_to

    directory = model_directories("bert")
    digest = reference_to(directory).digest
    keep(run(digest, 1, path=str(directory)))
    assert keep(run("new", 2))[0] == []


def test_damaged_lines_are_warned_of_and_stay(run, keep, tmp_path: Path, capsys):
    keep(run("old", 1))
    path = tmp_path / "report" / "history.jsonl"
    good = path.read_text()
    point = json.loads(good.splitlines()[1])
    no_number = json.dumps(point).replace('"median": 2.0', '"median": NaN')
    no_metrics = json.dumps(point | {"measurement": {"artifact": "prune"}})
    damaged = ["{", "[]", no_number, no_metrics, json.dumps(point | {"schema_version": 9})]
    path.write_bytes("\n".join([good, *damaged, ""]).encode() + b"\xff\n")
    earlier = remember(run("new", 2), path, Console(quiet=True))
    assert [found["digest"] for found in earlier] == ["old"]
    assert "6 damaged lines are skipped, and stay" in capsys.readouterr().err
    assert path.read_text().splitlines()[:6] == [*damaged, "\\xff"]


def test_file_is_bounded_and_the_oldest_points_go(run, keep, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(history, "MOST_LINES", 4)
    for minute in range(1, 7):
        _, lines = keep(run(f"digest-{minute}", minute))
    assert lines == ["digest-4", "digest-5", "source-digest", "digest-6"]


def test_runs_at_the_same_time_lose_no_line(run, tmp_path: Path):
    path = tmp_path / "history.jsonl"

    def remember_some(writer: int) -> None:
        for minute in range(5):
            remember(run(f"{writer}-{minute}", minute), path, Console(quiet=True))

    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=remember_some, args=(writer,)) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    kept = {json.loads(line)["artifact"] for line in path.read_text().splitlines()}
    assert kept == {"source-digest", *(f"{n}-{minute}" for n in range(4) for minute in range(5))}
