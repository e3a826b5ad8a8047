"""Names and texts of a model, of data and of an artifact reach no terminal, page or log alive."""

import csv
import json
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tcompress import cli as command_line
from tcompress.console import tame_libraries

# What steers a terminal, breaks a cell, opens an element, or is a command of a CI service.
NASTY = (
    "\x1b[31m\x9b2J\u202e|`<img src=x onerror=x>[a](javascript:x)@all[/red]"
    "\n::error::x ##[a]##vso[b]%0A"
)
LABELS = (f"bad{NASTY}", f"good{NASTY}")
STEERING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
COMMAND = re.compile(r"^\s*::|##\w*\[", re.MULTILINE)
SUMMARY = "GITHUB_STEP_SUMMARY"
OURS = ("::error title=tcompress gate", "::warning title=tcompress gate", "::notice title=")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line; returns its exit code, and what anything wrote to the two streams."""

    def command(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit, match=r"^\d+$") as ended:
            command_line.cli([str(word) for word in words], prog_name="tcompress")
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    monkeypatch.setenv("NO_COLOR", "1")
    return command


@pytest.fixture
def model(model_directories: Callable[[str], Path], tmp_path: Path) -> Path:
    """A classifier whose labels, words, name and card were written to do harm."""
    directory = tmp_path / f"model{NASTY}".replace("/", "_")
    directory.mkdir()
    for path in model_directories("bert").iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    config = json.loads((directory / "config.json").read_text())
    config |= {
        "id2label": dict(enumerate(LABELS)),
        "label2id": {label: i for i, label in enumerate(LABELS)},
        "_name_or_path": NASTY,
        "problem_type": "single_label_classification",
    }
    (directory / "config.json").write_text(json.dumps(config))
    words = json.loads((directory / "tokenizer.json").read_text())
    words["model"]["vocab"] = {
        (NASTY.replace(" ", "") if word == "film" else word): number
        for word, number in words["model"]["vocab"].items()
    }
    (directory / "tokenizer.json").write_text(json.dumps(words))
    (directory / "README.md").write_text(f"---\nlicense: {json.dumps(NASTY)}\n---\n")
    return directory


@pytest.fixture
def data(reviews_file: Path, tmp_path: Path) -> Path:
    """A table whose file, columns, values and texts were."""
    path = tmp_path / f"data{NASTY}.csv".replace("/", "_")
    names = {"bad": LABELS[0], "good": LABELS[1]}
    with reviews_file.open(newline="") as source, path.open("w", newline="") as target:
        rows = csv.writer(target)
        rows.writerow((f"text{NASTY}", f"label{NASTY}", f"slice{NASTY}"))
        for number, (text, label) in enumerate([*csv.reader(source)][1:]):
            rows.writerow((f"{text} {NASTY}", names[label], f"{number % 2}{NASTY}"))
    return path


@pytest.fixture
def workspace(run: Run, model: Path, data: Path, tmp_path: Path) -> Path:
    """A workspace on both."""
    directory = tmp_path / f"work{NASTY}".replace("/", "_")
    columns = ("--text-column", f"text{NASTY}", "--label-column", f"label{NASTY}")
    words = ("--data", data, *columns, "--slice-column", f"slice{NASTY}")
    code, out, err = run("init", model, *words, "--workspace", directory)
    assert code == 0, err
    assert_inert(out, err)
    return directory


class Page(HTMLParser):
    """A page in which names are text: no element loads, runs or leads anywhere."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"iframe", "img", "link", "object", "script"}
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in {"src", "href"} or (value or "").startswith("#")


def assert_inert(*texts: str) -> None:
    """Check what a terminal or the log of a CI service is shown."""
    for text in texts:
        assert not STEERING.search(text), repr(text)
        foreign = [line for line in text.splitlines() if not line.startswith(OURS)]
        assert not COMMAND.search("\n".join(foreign)), text


def assert_documents_inert(directory: Path) -> None:
    """Check what is written for people or for servers to show."""
    for path in written(directory):
        text = path.read_text("utf-8")
        assert not STEERING.search(text), path
        if path.suffix == ".html":
            Page().feed(text)
        elif path.suffix == ".md":
            assert not re.search(r"<img|\]\(|@all|::", prose(text)), path
        elif path.suffix == ".xml":
            ET.fromstring(text)


def prose(markdown: str) -> str:
    """Return Markdown without its front matter and without what stands as code."""
    markdown = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)
    markdown = re.sub(r"^(`{3,})\w*\n.*?\n\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    return re.sub("`[^`\n]*`", "", markdown)


def written(directory: Path) -> Iterator[Path]:
    for path in directory.rglob("*"):
        if path.suffix in {".html", ".md", ".xml"} and path.name != "README.md":
            yield path


def test_hostile_names_are_shown_as_text_by_every_command(
    run: Run, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = workspace / "artifacts" / f"onnx{NASTY}".replace("/", "_")
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    monkeypatch.setenv(SUMMARY, str(outputs / "summary.md"))
    report = ("--junit", outputs / "gate.xml", "--markdown", outputs / "gate.md", "--github")
    quick = ("--budget-s", "0.2", "--no-mix", "--tokens", "8")
    gate = ("gate", "--candidate", exported, "--slice-column", f"slice{NASTY}")
    for words, codes in (
        (("score",), {0}),
        (("prune", "--heads", "0.2"), {0}),
        (("quantize",), {0}),
        (("export", "--format", "onnx", "--output", exported), {0}),
        (("inspect", exported), {0}),
        (("evaluate", exported, *quick), {0}),
        (("evaluate", "--compare", workspace / "artifacts/prune", exported, *quick), {0}),
        ((*gate, *report), {0, 3, 4}),
        (("gate", "record", "--output", outputs / "baseline.json"), {0}),
        (("gate", "plan"), {0}),
        (("finetune", "--epochs", "1"), {0}),
        (("doctor", "--quick"), {0}),
    ):
        code, out, err = run(*words, *(() if words[0] == "doctor" else ("--workspace", workspace)))
        assert code in codes, f"{words}: {err}"
        assert_inert(out, err)
    assert_documents_inert(workspace)
    assert_documents_inert(outputs)
    assert {path.name for path in outputs.iterdir()} > {"gate.xml", "gate.md", "summary.md"}


def test_json_on_stdout_holds_hostile_names_without_showing_them(
    run: Run, workspace: Path, model: Path
) -> None:
    code, out, err = run("inspect", model, "--json", "--workspace", workspace)
    assert code == 0, err
    assert tuple(json.loads(out)["labels"]) == LABELS
    assert_inert(out, err)


def other_label(model: Path, data: Path) -> tuple[Any, ...]:
    data.write_bytes(data.read_bytes().replace(b"bad\x1b", b"sad\x1b"))
    columns = ("--text-column", f"text{NASTY}", "--label-column", f"label{NASTY}")
    return "init", model, "--data", data, *columns


def other_column(model: Path, data: Path) -> tuple[Any, ...]:
    return "init", model, "--data", data, "--text-column", f"none{NASTY}"


def other_tensor(model: Path, data: Path) -> tuple[Any, ...]:
    from safetensors.torch import load_file, save_file

    path = model / "model.safetensors"
    state = load_file(path)
    state[f"bert.{NASTY}"] = state.pop("bert.embeddings.LayerNorm.weight")
    save_file(state, path)
    return "inspect", model


def other_architecture(model: Path, data: Path) -> tuple[Any, ...]:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": NASTY}))
    return "inspect", model


def other_manifest(model: Path, data: Path) -> tuple[Any, ...]:
    (model / "manifest.json").write_text(json.dumps({"schema_version": 1, "kind": NASTY}))
    return "inspect", model


def other_option(model: Path, data: Path) -> tuple[Any, ...]:
    return "inspect", model, f"--{NASTY}"


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        pytest.param(other_label, 5, id="label"),
        pytest.param(other_column, 5, id="column"),
        pytest.param(other_tensor, 5, id="tensor"),
        pytest.param(other_architecture, 5, id="architecture"),
        pytest.param(other_manifest, 5, id="manifest"),
        pytest.param(other_option, 2, id="option"),
    ],
)
def test_a_refusal_quotes_hostile_names_on_its_one_line(
    run: Run, model: Path, data: Path, tmp_path: Path, spoil: Callable[..., Any], code: int
) -> None:
    found, out, err = run(*spoil(model, data), "--workspace", tmp_path / "w")
    assert (found, out) == (code, ""), err
    assert_inert(err)
    told = [line for line in err.splitlines() if not line.startswith(("Usage:", "Try ", "warning"))]
    assert len([line for line in told if line]) == 1


def test_what_libraries_log_and_warn_of_is_one_inert_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = logging.getLogRecordFactory()
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    logger, handler = logging.getLogger("somebody.else"), logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:
        tame_libraries()
        logger.warning("a tensor %s and %s", NASTY, "another")
        sys.stderr.write(warnings.formatwarning(UserWarning(NASTY), UserWarning, "x.py", 1, None))
    finally:
        logging.setLogRecordFactory(factory)
        logger.removeHandler(handler)
    err = capfd.readouterr().err
    assert_inert(err)
    assert [line.split()[0] for line in err.splitlines()] == ["a", "UserWarning:"]


def test_overlong_text_is_cut(run: Run, model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "x" * 10**6}))
    code, _, err = run("inspect", model)
    assert code == 5
    assert len(err) < 5_000
