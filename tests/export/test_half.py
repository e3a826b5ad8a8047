"""Half precision in the files that run it."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from tcompress.compress.pruning import prune_
from tcompress.encoder import Encoder
from tcompress.errors import ExportError, ParityError
from tcompress.export.exporting import write_export
from tcompress.export.parity import limits_for
from tcompress.loading import load
from tcompress.plan import CompressionPlan, Precision
from tcompress.runtime import MODEL_FILES

TORCH_KINDS = ("torchscript", "program")


@pytest.mark.parametrize("kind", TORCH_KINDS)
@pytest.mark.parametrize("model", ["bert", "torch-pre-norm"])
def test_files_mix_all_precisions(
    model: str, kind: str, model_directories: Callable, uneven_plan: CompressionPlan, tmp_path: Path
) -> None:
    encoder = load(model_directories(model))
    first, second, third = uneven_plan.layers
    layers = (
        replace(first, attention=Precision.FP16, feed_forward=Precision.INT8),
        replace(second, feed_forward=Precision.BF16),
        replace(third, attention=Precision.FP32),
    )
    prune_(encoder, replace(uneven_plan, layers=layers))
    assert encoder.plan.precision == "mixed"
    parity = write_export(encoder, kind, tmp_path)["parity"]
    assert 1e-5 < parity["max_abs_difference"] < 0.2


ANSWER = """
import sys, numpy as np, torch
batch, *files = sys.argv[1:]
inputs = [torch.from_numpy(array) for array in np.load(batch).values()]
for file in files:
    is_program = file.endswith(".pt2")
    module = torch.export.load(file).module() if is_program else torch.jit.load(file)
    np.save(file + ".npy", module(*inputs).detach().numpy())
assert not [name for name in sys.modules if name.startswith("tcompress")]
"""


def test_half_answers_in_a_process_without_tcompress(bert: Encoder, tmp_path: Path) -> None:
    batch = bert.preprocessor.random_batch(2, 9)
    batch["attention_mask"][0] = 0
    np.savez(tmp_path / "batch.npz", **batch)
    limits = {}
    for kind, precision in product(TORCH_KINDS, (Precision.BF16, Precision.FP16)):
        bert.plan = bert.plan.with_precision(precision)
        directory = tmp_path / f"{kind}-{precision}"
        directory.mkdir()
        write_export(bert, kind, directory)
        limits[str(directory / MODEL_FILES[kind])] = limits_for(
            bert.plan, bert.task
        ).max_abs_difference
    words = ["-I", "-W", "ignore", "-c", ANSWER, str(tmp_path / "batch.npz"), *limits]
    subprocess.run([sys.executable, *words], check=True)
    for file, limit in limits.items():
        logits = np.load(f"{file}.npy")
        assert np.isfinite(logits).all(), "a row of padding only"
        assert limit is not None
        assert np.abs(logits[1] - bert.predict(batch)[1]).max() < limit


def test_fp16_that_overflows_is_refused_and_says_what_to_do(bert: Encoder, tmp_path: Path) -> None:
    with torch.no_grad():
        bert.anatomy.layers[0].ffn_in.weight[0] *= 1e6
        bert.anatomy.layers[0].ffn_out.weight[:, 0] /= 1e6
    bert.plan = bert.plan.with_precision(Precision.FP16)
    with pytest.raises(ParityError, match="not finite; values above 65504 overflow fp16"):
        write_export(bert, "torchscript", tmp_path)


def test_onnx_refuses_bf16(bert: Encoder, tmp_path: Path) -> None:
    bert.plan = bert.plan.with_precision(Precision.BF16)
    with pytest.raises(ExportError, match="no bf16 products on a CPU"):
        write_export(bert, "onnx", tmp_path)
