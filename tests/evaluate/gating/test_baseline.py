import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tcompress.cli import cli
from tcompress.data import Columns, Examples, read_examples
from tcompress.digests import document_digest
from tcompress.encoder import open_encoder
from tcompress.errors import DataError, InputError, ModelError
from tcompress.evaluate.engine_info import EngineInfo
from tcompress.evaluate.gating.baseline import Baseline, record_baseline
from tcompress.evaluate.gating.baseline_file import (
    MAX_BYTES,
    Row,
    compose,
    file_digests,
    parse,
)
from tcompress.preprocessing import TOKENIZER_FILES


@pytest.fixture(scope="module")
def examples(data: Path) -> Examples:
    return read_examples(data, Columns())


@pytest.fixture(scope="module")
def recorded(source: Path, examples: Examples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "baseline.json"
    record_baseline(path, source, examples).write()
    return path


def gate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["gate", *map(str, arguments)])


def changed(recorded: Path, target: Path, **values: Any) -> Path:
    """Write the file with other values and a digest that fits them."""
    document = json.loads(recorded.read_text()) | values
    del document["digest"]
    document["digest"] = document_digest(document)
    # JSON has no sign for infinity, but numbers that are read as it
    target.write_text(json.dumps(document).replace("Infinity", "1e999"))
    return target


def info_of(directory: Path) -> EngineInfo:
    encoder = open_encoder(directory)
    return EngineInfo("pytorch", "cpu", 1, encoder.labels, encoder.preprocessor.max_tokens, {})


def test_gate_decides_by_the_file_as_by_the_model(source: Path, data: Path, recorded: Path):
    words = ("--quiet", "--json", "--candidate", source, "--data", data, "--max-drop", "0.03")
    by_file, by_model = (gate(*words, "--baseline", baseline) for baseline in (recorded, source))
    assert by_file.exit_code == by_model.exit_code == 0, by_file.output
    first, second = (json.loads(found.stdout) for found in (by_file, by_model))
    assert first.pop("baseline") == str(recorded)
    assert second.pop("baseline") == str(source)
    assert first == second


def test_recording_again_writes_the_same_bytes(
    source: Path, examples: Examples, recorded: Path, tmp_path: Path
):
    record_baseline(tmp_path / "again.json", source, examples).write()
    assert (tmp_path / "again.json").read_bytes() == recorded.read_bytes()


def test_three_thousand_examples_take_less_than_200_kb(recorded: Path):
    record = parse(recorded)
    logits = np.random.default_rng(0).standard_normal((3198, 2)) * 5
    rows = tuple(Row.of(str(i), "0" * 64, "fresh", row) for i, row in enumerate(logits))
    assert len(compose(replace(record, labels=("fresh", "rotten"), rows=rows))) < 200_000


def test_rounding_does_not_change_a_recorded_class(recorded: Path, tmp_path: Path):
    document = json.loads(recorded.read_text())
    document["rows"][0][2:] = ["owl", [1.5, -1.0, 1.5]]
    answers = Baseline.read(changed(recorded, tmp_path / "tie.json", **document)).answers
    assert answers.names[0] == "owl"


@pytest.mark.parametrize(
    ("alter", "match"),
    [
        pytest.param(lambda e: e.take(range(100)), "it has 100 examples, 150 were", id="fewer"),
        pytest.param(
            lambda e: e.take(range(149, -1, -1)), "stand in another order", id="reordered"
        ),
        pytest.param(
            lambda e: replace(e, inputs=e.inputs + (np.arange(150) == 7)[:, None, None]),
            "example '7' has another input",
            id="other-input",
        ),
        pytest.param(
            lambda e: replace(e, ids=("x", *e.ids[1:])), "example 'x' was not", id="other-id"
        ),
        pytest.param(
            lambda e: replace(e, labels=(*e.labels[1:], "cat")), "other labels", id="other-label"
        ),
        pytest.param(
            lambda e: replace(e, ids=("1", *e.ids[1:])), "id '1' stands in it 2", id="same-id"
        ),
    ],
)
def test_other_examples_than_recorded_are_refused(
    recorded: Path, examples: Examples, alter: Callable[[Examples], Examples], match: str
):
    baseline = Baseline.read(recorded)
    assert baseline.answers_to(examples).labels == ("cat", "dog", "owl")
    with pytest.raises(DataError, match=match):
        baseline.answers_to(alter(examples))


def test_candidate_that_reads_or_answers_otherwise_is_refused(
    recorded: Path, model_directories: Callable[[str], Path], tmp_path: Path
):
    model = model_directories("bert")
    info = info_of(model)
    record = replace(
        parse(recorded),
        labels=info.labels,
        tokenizer=file_digests(model, TOKENIZER_FILES),
        max_tokens=info.max_tokens,
    )
    baseline = Baseline(recorded, record)
    other = tmp_path / "other"
    other.mkdir()
    for path in model.glob("*.json"):
        (other / path.name).write_bytes(path.read_bytes())
    config = other / "tokenizer_config.json"
    # What an export changes, and a tool that writes JSON in another layout: no other tokens.
    document = json.loads(config.read_text()) | {"model_input_names": ["input_ids"]}
    config.write_text(json.dumps(document, sort_keys=True, indent=7))
    baseline.check_candidate(other, info)

    with pytest.raises(ModelError, match=r"the labels are \(good, bad\), not \(bad, good\)"):
        baseline.check_candidate(other, replace(info, labels=("good", "bad")))
    with pytest.raises(ModelError, match="inputs are cut at 16 tokens, not at 40 from what"):
        baseline.check_candidate(other, replace(info, max_tokens=16))
    tokenizer = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(tokenizer.replace("[SEP]", "[SEQ]"))
    with pytest.raises(ModelError, match=r"tokenizer\.json differs from what"):
        baseline.check_candidate(other, info)


def test_gate_on_other_data_ends_in_exit_5(
    source: Path, recorded: Path, examples: Examples, tmp_path: Path
):
    fewer = examples.take(range(20))
    np.savez(tmp_path / "few.npz", inputs=fewer.inputs, labels=np.asarray(fewer.labels))
    words = ("--baseline", recorded, "--candidate", source, "--max-drop", "0.03")
    found = gate(*words, "--data", tmp_path / "few.npz")
    assert found.exit_code == 5, found.output
    *_, line = found.stderr.splitlines()
    assert "it has 20 examples, 150 were recorded" in line
    assert str(recorded) in line


def test_latency_of_another_cpu_is_refused(recorded: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"no latency in it.*gate record --latency"):
        Baseline.read(recorded).latency_here()
    latency = {
        **{"median_ms": 1.5, "noise_low": 0.99, "noise_high": 1.01, "noise_confidence": 0.95},
        **{"n": 100, "batch": 1, "tokens": 6, "threads": 1, "device": "cpu"},
    }
    here = Baseline.read(changed(recorded, tmp_path / "here.json", latency=latency))
    assert here.latency_here().median_ms == 1.5
    one_round = latency | {"noise_confidence": 0.0}
    Baseline.read(changed(recorded, tmp_path / "one.json", latency=one_round)).latency_here()
    with pytest.raises(InputError, match="'latency' must be above 0"):
        Baseline.read(changed(recorded, tmp_path / "no.json", latency=latency | {"n": 0}))
    assert here.notes() == ()
    cpu = here.record.cpu | {"name": "Z80", "usable": 1}
    there = Baseline.read(changed(recorded, tmp_path / "there.json", latency=latency, cpu=cpu))
    with pytest.raises(InputError, match="measured on Z80 with 1 CPUs, this is "):
        there.latency_here()
    assert "recorded on Z80" in there.notes()[0]


def test_cut_or_flipped_files_are_refused(recorded: Path, tmp_path: Path):
    whole, target = recorded.read_bytes(), tmp_path / "bad.json"
    rng = np.random.default_rng(0)
    cuts = [whole[:end] for end in range(0, len(whole) - 1, 61)]
    flips = []
    for at, bit in zip(rng.integers(0, len(whole), 200), rng.integers(0, 8, 200), strict=True):
        flips.append(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
    for raw in (*cuts, *flips):
        if raw.lower() == whole.lower():
            continue  # 1e-05 and 1E-05 are the same number
        target.write_bytes(raw)
        with pytest.raises(InputError, match=r"not a recorded baseline|not valid JSON"):
            Baseline.read(target)


WRONG: tuple[Any, ...] = (None, True, 7, 1.5, "x", [], [1], [[1, 2, 3, 4]], {"a": [1]})


@pytest.mark.parametrize("key", ["data", "labels", "tokenizer", "max_tokens", "truncated", "rows"])
def test_values_of_another_type_are_refused(recorded: Path, tmp_path: Path, key: str):
    kind = type(json.loads(recorded.read_text())[key])
    for value in WRONG:
        if type(value) is not kind or (kind is list):
            with pytest.raises(InputError, match="not a recorded baseline that can be read"):
                Baseline.read(changed(recorded, tmp_path / "bad.json", **{key: value}))


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (["0", "ab", "owl", [1.0, 2.0, 1e39]], "'0' are not finite"),
        (["0", "ab", "owl", [1.0, 2.0, 1e999]], "'1e999' is too large"),
        (["0", "ab", "owl", [1.0, 2.0, -(10**400)]], "int too large"),
        (["0", "ab", "owl", [1.0, 2.0, True]], "must be 3 numbers"),
        (["0", "ab", "owl", [1.0, 2.0]], "must be 3 numbers"),
        (["0", "ab", "owl", [3.0, 2.0, 1.0]], "do not give the predicted class"),
        (["0", "ab", "bat", [3.0, 2.0, 1.0]], "one of 'labels'"),
        (["1", "ab", "owl", [1.0, 2.0, 3.0]], "every id once"),
        (["0", "ab", "owl", [[1.0], 2.0, 3.0]], "must be 3 numbers"),
    ],
)
def test_impossible_answers_are_refused(recorded: Path, tmp_path: Path, row: Any, match: str):
    rows = [row, *json.loads(recorded.read_text())["rows"][1:]]
    with pytest.raises(InputError, match=re.escape(match)):
        Baseline.read(changed(recorded, tmp_path / "bad.json", rows=rows))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        pytest.param("", "it is empty", id="empty"),
        pytest.param("[" * 100_000, "nested more than 64 deep", id="deep"),
        pytest.param('{"kind": 1, "kind": 2}', "key 'kind' stands twice", id="key-twice"),
        pytest.param('{"kind": NaN}', "not valid JSON: NaN at line 1", id="nan"),
        pytest.param("[]", "holds a list, expected an object", id="list"),
        pytest.param('{"schema_version": 1}', "'kind' must be", id="other-kind"),
        pytest.param("\udc80", "byte 0 is not UTF-8", id="not-utf8"),
        pytest.param(" " * (MAX_BYTES + 1), "larger than the 16,777,216 bytes", id="huge"),
    ],
)
def test_other_files_are_refused(source: Path, tmp_path: Path, text: str, match: str):
    path = tmp_path / "bad.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=match):
        Baseline.read(path)


def test_newer_file_and_missing_file_are_refused(recorded: Path, tmp_path: Path):
    with pytest.raises(InputError, match="'schema_version' is 2, this tcompress reads 1"):
        Baseline.read(changed(recorded, tmp_path / "newer.json", schema_version=2))
    with pytest.raises(InputError, match="no such file; record a baseline"):
        Baseline.read(tmp_path / "none.json")
