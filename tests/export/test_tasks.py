"""Every format for every task, on tiny BERT models."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tcompress.compress.pruning import prune_
from tcompress.encoder import open_encoder
from tcompress.export.exporting import write_export
from tcompress.plan import CompressionPlan, Precision
from tcompress.runtime import open_model_file
from tcompress.tasks import Task

from ..compress.test_tasks import TASKS, examples_of, write_model

# int8 in a program is also in test_formats, and what a task changes in a program in fp32
FILES = [
    pytest.param(
        kind,
        precision,
        marks=pytest.mark.slow if (kind, precision) == ("program", "int8") else (),
        id=f"{kind}-{precision}",
    )
    for kind in ("onnx", "torchscript", "program")
    for precision in (Precision.FP32, Precision.INT8)
]


@pytest.mark.parametrize(("kind", "precision"), FILES)
@pytest.mark.parametrize("task", TASKS, ids=str)
def test_exported_equals_source(
    task: Task,
    kind: str,
    precision: Precision,
    uneven_plan: CompressionPlan,
    tmp_path: Path,
    model_directories: Callable,
) -> None:
    encoder = open_encoder(write_model(task, tmp_path / "model", model_directories("bert")))
    prune_(encoder, uneven_plan.with_precision(precision))
    (tmp_path / "out").mkdir()
    details = write_export(encoder, kind, tmp_path / "out")
    limit = 0.05 if precision is Precision.INT8 else 1e-6
    assert details["parity"]["mean_kl"] < limit
    predict = open_model_file(kind, tmp_path / "out", details["input_names"])
    encoded = encoder.preprocessor.encode(examples_of(task, 5))
    batch = encoded.collate([0, 1, 2, 3, 4])
    source, exported = (encoded.rows(range(5), f(batch))[0] for f in (encoder.predict, predict))
    assert exported.shape == source.shape
    if precision is Precision.FP32:
        assert np.abs(exported - source).max() < 1e-4
