from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from tcompress.artifact import Artifact
from tcompress.errors import MeasurementError
from tcompress.evaluate.profile_worker import _of_median_run
from tcompress.evaluate.profiling import OperatorProfile, profile_operators
from tcompress.writing import writing_artifact

HOSTILE = '"},{"cat":"Node","dur":1e9,"name":"x_kernel_time\n</script>\\'

OURS = "tmp*"  # libraries leave things beside it, as they do without a profile


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


def check_sums(profile: OperatorProfile) -> None:
    found = profile.to_json()
    assert found["runs"] >= 5
    times = [operator["ms"] for operator in found["operators"]]
    assert times == sorted(times, reverse=True)
    assert 0 < sum(times) <= found["total_ms"] * 1.001
    shares = [operator["share"] for operator in found["operators"]]
    np.testing.assert_allclose(shares, np.array(times) / found["total_ms"], rtol=1e-3)


def test_onnx_file_is_told_by_operator_and_leaves_no_file_behind(
    source: Path, tmp_path: Path, write_onnx: Callable[..., Artifact], temporary: Path
):
    artifact = write_onnx(source, tmp_path / "onnx", np.eye(4, 3))
    profile = profile_operators(artifact.directory, batch=3, tokens=5, threads=1)
    assert profile is not None
    assert {operator.name: operator.calls for operator in profile.operators} == {
        "ReduceSum": 1,
        "MatMul": 1,
    }
    check_sums(profile)
    assert not list(temporary.glob(OURS))


def test_encoder_is_told_by_operator_under_short_names(source: Path, temporary: Path):
    profile = profile_operators(source, batch=2, tokens=6, threads=1)
    assert profile is not None
    calls = {operator.name: operator.calls for operator in profile.operators}
    per_layer, around = 6, 2  # q, k, v, o and the feed-forward's two; input and classifier
    assert calls["linear"] == 2 * per_layer + around
    check_sums(profile)
    assert not list(temporary.glob(OURS))


def test_median_run_is_told_whole_and_no_run_that_a_profiler_slowed():
    runs = [(0.0, 100_000.0), (200_000.0, 3_000.0), (210_000.0, 2_000.0)]
    calls = [("linear", start + 10, took / 2) for start, took in runs]
    profile = _of_median_run(runs, [*calls, ("add", 200_100.0, 500.0)])
    assert (profile.total_ms, profile.runs) == (3.0, 3)
    assert [(one.name, one.ms, one.calls) for one in profile.operators] == [
        ("linear", 1.5, 1),
        ("add", 0.5, 1),
    ]
    check_sums(replace(profile, runs=5))


def test_names_of_nodes_cannot_forge_times(
    source: Path, tmp_path: Path, write_onnx: Callable[..., Artifact]
):
    parent = write_onnx(source, tmp_path / "plain", np.eye(4, 3))
    with writing_artifact(tmp_path / "hostile") as draft:
        for path in parent.directory.iterdir():
            if path.name != "manifest.json":
                (draft.directory / path.name).write_bytes(path.read_bytes())
        model = onnx.load(draft.directory / "model.onnx")
        for node in model.graph.node:
            node.name = f"{HOSTILE}{node.op_type}model_run"
        onnx.save(model, draft.directory / "model.onnx")
        draft.manifest = parent.manifest
    profile = profile_operators(tmp_path / "hostile", batch=1, tokens=5, threads=1)
    assert profile is not None
    assert {operator.name for operator in profile.operators} == {"ReduceSum", "MatMul"}
    check_sums(profile)


def test_kinds_whose_engine_does_not_tell_have_no_profile(
    model_directories: Callable, tmp_path: Path, tcompress: Callable
):
    target = tmp_path / "script"
    words = ("--model", model_directories("torch-post-norm"), "--format", "torchscript")
    result = tcompress("export", *words, "--output", target)
    assert result.exit_code == 0, result.output
    assert profile_operators(target, batch=1, tokens=5) is None


def test_shape_beyond_the_positions_names_the_artifact_and_leaves_no_file(
    source: Path, temporary: Path
):
    with pytest.raises(MeasurementError, match="profile of source0: the engine failed"):
        profile_operators(source, batch=1, tokens=64, threads=1)
    assert not list(temporary.glob(OURS))
