import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tcompress.artifact import Artifact
from tcompress.cli import cli
from tcompress.console import Console
from tcompress.data import Columns, read_examples
from tcompress.encoder import open_encoder
from tcompress.evaluate.gating.defects import DEFECTS, damage_answers, damage_inputs
from tcompress.evaluate.gating.gate import judge_sides
from tcompress.evaluate.gating.selftest import Outcome, SelfTest, self_test
from tcompress.evaluate.noninferiority import Verdict

QUIET = Console(quiet=True)


def selftest(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["gate", "selftest", "--quiet", *map(str, arguments)])


def judged_at(max_drop: float, artifact: Path, data: Path, *names: str) -> SelfTest:
    examples = read_examples(data, Columns())
    defects = [defect for defect in DEFECTS if defect.name in names]
    return self_test(artifact, examples, lambda s: judge_sides(s, max_drop), QUIET, defects)


@pytest.fixture(scope="module")
def labelled(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples that the source answers right, all of them."""
    inputs = np.random.default_rng(3).standard_normal((400, 6, 4), dtype=np.float32)
    encoder = open_encoder(source)
    mask = np.ones(inputs.shape[:2], dtype=np.int64)
    found = encoder.predict({"inputs": inputs, "attention_mask": mask}).argmax(1)
    path = tmp_path_factory.mktemp("labelled") / "data.npz"
    np.savez(path, inputs=inputs, labels=np.asarray(encoder.labels)[found])
    return path


def test_every_defect_of_an_encoder_is_caught(source: Path, labelled: Path) -> None:
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    found = selftest(source, "--data", labelled, "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert (document["identity"], document["accuracy"]) == ("pass", 1.0)
    outcomes = {trial["defect"]: trial["outcome"] for trial in document["trials"]}
    assert outcomes == {d.name: "caught" for d in DEFECTS} | {"swapped mask": "not seeded"}
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_an_exported_file_is_damaged_in_a_copy(
    source: Path, labelled: Path, tmp_path: Path, write_onnx: Callable[..., Artifact]
) -> None:
    weight = np.random.default_rng(1).standard_normal((4, 3))
    artifact = write_onnx(source, tmp_path / "onnx", weight)
    found = judged_at(0.02, artifact.directory, labelled, "zeroed layer", "permuted labels")
    # This file has no layers.
    assert [trial.outcome for trial in found.trials] == [Outcome.NOT_SEEDED, Outcome.CAUGHT]
    assert artifact.faults() == []


def test_a_blind_gate_is_found_out(source: Path, labelled: Path) -> None:
    found = judged_at(0.99, source, labelled, "broken scale")
    assert (found.verdict, found.exit_code) == (Verdict.REGRESSION, 3)
    assert found.headline() == "FAIL: identity is pass; of 1 defects 1 missed"


def test_too_few_examples_for_identity_are_inconclusive(source: Path, data: Path) -> None:
    found = judged_at(0.01, source, data, "permuted labels")
    assert found.exit_code == 4
    assert "identity itself cannot pass" in found.headline()


def test_text_inputs_change_places_and_tokens_shift() -> None:
    batch = {
        "input_ids": np.asarray([[5, 7, 0]]),
        "attention_mask": np.asarray([[1, 1, 0]]),
        "token_type_ids": np.asarray([[0, 1, 1]]),
    }
    swapped = damage_inputs("swapped inputs", batch)
    assert swapped["input_ids"].tolist() == [[1, 1, 0]]
    assert swapped["attention_mask"].tolist() == [[5, 7, 0]]
    masked = damage_inputs("swapped mask", batch)
    assert masked["attention_mask"].tolist() == [[0, 1, 1]]
    assert masked["token_type_ids"].tolist() == [[1, 1, 0]]
    assert damage_inputs("shifted tokens", batch)["input_ids"].tolist() == [[6, 7, 1]]


def test_permuted_labels_give_every_label_the_next_ones_place() -> None:
    assert damage_answers("permuted labels", np.asarray([[1.0, 2, 3]])).tolist() == [[3, 1, 2]]
