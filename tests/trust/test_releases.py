"""What former releases wrote opens, verifies and answers as it did then."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tcompress
from tcompress.artifact import Artifact
from tcompress.data import Columns, read_examples

RELEASES = sorted(Path(__file__).with_name("releases").glob("*/tcompress.toml"))
ARTIFACTS = [
    pytest.param(path.parent, release.parent, id=f"{release.parent.name} {path.parent.name}")
    for release in RELEASES
    for path in sorted(release.parent.glob("artifacts/**/manifest.json"))
]


@pytest.mark.parametrize(("artifact", "release"), ARTIFACTS)
def test_an_artifact_of_a_former_release_answers_as_it_did(artifact: Path, release: Path) -> None:
    wanted = json.loads((release / "answers.json").read_text())
    Artifact.open(artifact)
    encoder = tcompress.load(artifact)
    encoded = encoder.preprocessor.encode(read_examples(release / "data.npz", Columns()))
    logits = encoder.predict(encoded.collate(range(4)))
    np.testing.assert_allclose(
        logits, wanted[artifact.relative_to(release).as_posix()], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("release", [path.parent for path in RELEASES], ids=lambda p: p.name)
def test_a_workspace_of_a_former_release_goes_on(
    release: Path, tmp_path: Path, tcompress: Callable
) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(release, workspace)
    for words in (
        ("inspect", workspace / "artifacts/export/onnx"),
        ("prune", "--heads", "0.5", "--workspace", workspace, "--force"),
        ("export", "--workspace", workspace, "--output", tmp_path / "exported"),
        ("gate", "--baseline", workspace / "baseline.json", "--data", workspace / "data.npz",
         "--candidate", workspace / "artifacts/export/onnx", "--max-drop", "0.9"),
    ):  # fmt: skip
        result = tcompress(*words)
        assert result.exit_code in (0, 4), result.output
