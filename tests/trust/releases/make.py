"""Write what `test_releases.py` opens: artifacts of the installed release, a few kilobytes each.

Run once for every release, as `python tests/trust/releases/make.py`; what is there stays.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import tcompress
from tcompress.cli import cli
from tcompress.data import Columns, read_examples
from tcompress.transformer import ARCHITECTURE_FILE, TransformerClassifier, TransformerSpec

_SPEC = TransformerSpec(
    labels=("0", "1"),
    d_model=8,
    num_heads=2,
    feed_forward_size=8,
    num_layers=2,
    feature_size=3,
    max_positions=6,
    dropout=0.0,
)
_STAGES = (
    ("score", "--criterion", "curvature"),
    ("prune", "--heads", "0.25", "--neurons", "0.25"),
    ("finetune", "--epochs", "1"),
    ("quantize",),
    ("export", "--precision", "fp32"),
    ("export", "--precision", "fp32", "--format", "torchscript"),
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder) / tcompress.__version__
        _write(workspace)
        shutil.copytree(workspace, Path(__file__).parent / workspace.name)


def _write(workspace: Path) -> None:
    workspace.mkdir()
    _write_model(workspace / "model")
    data = _write_data(workspace / "data.npz")
    _run("init", workspace / "model", "--data", data, "--workspace", workspace)
    for words in _STAGES:
        _run(*words, "--workspace", workspace)
    options = ("--data", data, "--baseline", workspace / "model")
    _run("gate", "record", *options, "--output", workspace / "baseline.json")
    answers = {
        path.parent.relative_to(workspace).as_posix(): _answers(path.parent, data)
        for path in sorted((workspace / "artifacts").glob("**/manifest.json"))
    }
    (workspace / "answers.json").write_text(json.dumps(answers, indent=1) + "\n")


def _write_model(directory: Path) -> None:
    torch.manual_seed(0)
    directory.mkdir()
    _SPEC.write(directory / ARCHITECTURE_FILE)
    save_file(TransformerClassifier(_SPEC).state_dict(), directory / "model.safetensors")


def _write_data(path: Path) -> Path:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((40, 4, 3), dtype=np.float32)
    np.savez_compressed(path, inputs=inputs, labels=(inputs.mean((1, 2)) > 0).astype(np.int64))
    return path


def _run(*words: object) -> None:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    if result.exit_code:
        raise SystemExit(result.output)


def _answers(artifact: Path, data: Path) -> list[list[float]]:
    encoder = tcompress.load(artifact)
    encoded = encoder.preprocessor.encode(read_examples(data, Columns()))
    logits = encoder.predict(encoded.collate(range(4)))
    return [[round(float(value), 5) for value in row] for row in logits]


if __name__ == "__main__":
    main()
