import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tcompress import storage
from tcompress.artifact import ENCODER_KIND, Artifact, Manifest, Parent
from tcompress.errors import ArtifactError, OutputExistsError, StorageError
from tcompress.plan import CompressionPlan
from tcompress.storage import Moment, Operation
from tcompress.tasks import Task
from tcompress.writing import writing_artifact, writing_directory

PLAN = CompressionPlan.dense((2,), (4,))


def _write(target: Path, content: str = "weights", *, replace: bool = False) -> Artifact:
    with writing_artifact(target, replace=replace) as draft:
        (draft.directory / "model.bin").write_text(content)
        parent = Parent("/somewhere", "0" * 64)
        draft.manifest = Manifest(ENCODER_KIND, "prune", parent, parent, PLAN, {"heads": 0.3})
    return Artifact.open(target)


def test_an_artifact_knows_its_files_and_parent(tmp_path: Path) -> None:
    artifact = _write(tmp_path / "a")
    assert set(artifact.manifest.files) == {"model.bin"}
    assert artifact.size_bytes == len("weights")
    assert artifact.manifest.plan == PLAN
    assert Artifact.open(tmp_path / "a").manifest == artifact.manifest


def test_equal_content_gives_equal_digests_whenever_it_was_written(tmp_path: Path) -> None:
    first, second = _write(tmp_path / "a"), _write(tmp_path / "b")
    assert first.manifest.created != second.manifest.created
    assert first.manifest.digest == second.manifest.digest
    assert _write(tmp_path / "c", "other").manifest.digest != first.manifest.digest


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a: (a / "model.bin").write_text("weightz"), "model.bin differs from the manifest"),
        (lambda a: (a / "model.bin").unlink(), "model.bin is missing"),
        (lambda a: (a / "extra.py").write_text(""), "extra.py is not in the manifest"),
        (lambda a: (a / "manifest.json").write_text("{"), "manifest.json: not valid JSON"),
        (lambda a: (a / "manifest.json").unlink(), "no manifest.json in it"),
    ],
)
def test_damage_is_found_and_named(tmp_path: Path, damage, message: str) -> None:
    _write(tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(ArtifactError, match=message):
        Artifact.open(tmp_path / "a")


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> None:
        with writing_directory(tmp_path / "a") as staging:
            (staging / "half").write_text("written")
            msg = "in the middle"
            raise KeyboardInterrupt(msg)

    with pytest.raises(KeyboardInterrupt, match="in the middle"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_old_artifact(tmp_path: Path) -> None:
    old = _write(tmp_path / "a")

    def fail() -> None:
        with writing_directory(tmp_path / "a", replace=True):
            raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"disk full: .*/a needs more room, .* MB free"):
        fail()
    assert Artifact.open(tmp_path / "a").manifest == old.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_where_names_cannot_be_exchanged_a_kill_between_two_renames_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = _write(tmp_path / "a")

    def killed(operation: Operation, path: Path, moment: Moment) -> None:
        if operation is Operation.RENAME and path == tmp_path / "a":
            raise KeyboardInterrupt("between the renames")

    monkeypatch.setattr(storage, "_renameat2", None)
    with monkeypatch.context() as patched:
        patched.setattr(storage, "observer", killed)
        with pytest.raises(KeyboardInterrupt, match="between the renames"):
            _write(tmp_path / "a", "new", replace=True)
    assert not (tmp_path / "a").exists()
    assert Artifact.open(tmp_path / "a").manifest == old.manifest  # a reader puts it back
    new = _write(tmp_path / "a", "new", replace=True)
    assert Artifact.open(tmp_path / "a").manifest == new.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_another_process_wrote_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def race() -> None:
        with writing_directory(tmp_path / "a"):
            (tmp_path / "a").mkdir()
            (tmp_path / "a" / "thesis.tex").write_text("years of work")

    with pytest.raises(OutputExistsError, match="exists already"):
        race()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "thesis.tex"]


@pytest.mark.parametrize(
    "change",
    [
        {"files": None},
        {"files": {"x": 3}},
        {"created": 5},
        {"recipe": []},
        {"kind": 1},
        {"task": "poetry"},
    ],
)
def test_a_manifest_of_wrong_types_is_refused(tmp_path: Path, change: dict) -> None:
    path = _write(tmp_path / "a").directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match="not a manifest that can be read"):
        Artifact.open(tmp_path / "a")


def test_manifests_from_before_there_were_tasks_are_of_classifiers(tmp_path: Path) -> None:
    path = _write(tmp_path / "a").directory / "manifest.json"
    document = json.loads(path.read_text())
    del document["task"], document["seal"]
    path.write_text(json.dumps(document))
    assert Artifact.open(tmp_path / "a").manifest.task is Task.CLASSIFICATION


def test_an_artifact_is_replaced_only_when_allowed(tmp_path: Path) -> None:
    _write(tmp_path / "a")
    with pytest.raises(OutputExistsError, match="exists already; pass --force"):
        _write(tmp_path / "a", "new")
    _write(tmp_path / "a", "new", replace=True)
    assert (tmp_path / "a" / "model.bin").read_text() == "new"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: (a / "notes.txt").write_text("mine"), "did not write 'notes.txt' in it"),
        (lambda a: (a / "manifest.json").write_text("{}"), "nothing says what in it is yours"),
    ],
    ids=["a file of the user's", "a manifest of something else"],
)
def test_an_artifact_with_something_else_in_it_is_never_replaced(
    tmp_path: Path, spoil, message: str
) -> None:
    spoil(_write(tmp_path / "a").directory)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(OutputExistsError, match=message):
        _write(tmp_path / "a", replace=True)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.*")}


def test_a_directory_that_tcompress_did_not_write_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExistsError, match="is not an artifact of tcompress"):
        _write(tmp_path / "mine", replace=True)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_is_reported(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="cannot be written"):
        _write(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"schema_version": 2}, "a newer one wrote it: upgrade", id="newer"),
        pytest.param({"schema_version": 0}, "schema_version 0, this tcompress reads 1", id="older"),
        pytest.param({"schema_version": True}, "schema_version True", id="version true"),
        pytest.param({"surprise": 1}, "surprise", id="unknown key"),
        pytest.param({"parent": {"path": 3, "digest": "x"}}, "path", id="parent"),
        *(
            pytest.param(
                {"files": {name: {"sha256": "", "size_bytes": 1}}}, "must not name", id=id_
            )
            for name, id_ in (
                ("../x", "up"),
                ("/etc/hosts", "absolute"),
                ("a\\b", "backslash"),
                ("manifest.json", "itself"),
                ("./x", "not canonical"),
            )
        ),
        pytest.param({"files": {"x": {"sha256": "", "size_bytes": -1}}}, "size_bytes", id="size"),
        pytest.param(
            {
                "plan": {
                    "source_heads": [1] * 40,
                    "source_neurons": [1_000_000] * 40,
                    "layers": [
                        {
                            "heads": [0],
                            "neurons": [[0, 1_000_000]],
                            "precision": {"attention": "fp32", "feed_forward": "fp32"},
                        }
                    ]
                    * 40,
                }
            },
            "no encoder has more than 20000000",
            id="plan bomb",
        ),
    ],
)
def test_a_manifest_that_cannot_be_meant_is_refused(
    tmp_path: Path, change: dict, says: str
) -> None:
    path = _write(tmp_path / "a").directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match=f"not a manifest that can be read: .*{says}"):
        Manifest.read(tmp_path / "a")


def test_a_listed_pipe_is_a_fault_and_is_not_opened(tmp_path: Path) -> None:
    artifact = _write(tmp_path / "a")
    (tmp_path / "a" / "model.bin").unlink()
    os.mkfifo(tmp_path / "a" / "model.bin")
    assert artifact.faults() == ["model.bin differs from the manifest"]


def test_one_unreadable_manifest_does_not_block_a_workspace(
    text_workspace: Path, tcompress: Callable[..., Result]
) -> None:
    place = ("--workspace", text_workspace)
    assert tcompress("prune", "--heads", "0.3", "--criterion", "random", *place).exit_code == 0
    _write(text_workspace / "artifacts" / "old").directory.joinpath("manifest.json").write_text("{")
    result = tcompress("export", "--format", "torchscript", *place)
    assert result.exit_code == 0, result.output
    [line] = [line for line in result.stderr.splitlines() if line.startswith("warning")]
    assert "artifacts/old/manifest.json: not valid JSON" in line
    assert line.endswith("; left out")
