"""What docs/support.md claims: every cell of its table is a test of this file."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tcompress.compress.gating import masked
from tcompress.compress.pruning import prune_
from tcompress.encoder import Encoder, open_encoder
from tcompress.export.exporting import write_export
from tcompress.loading import load_encoder
from tcompress.plan import CompressionPlan, Precision
from tcompress.preprocessing import Batch

from .family_fixture import FamilyFixture
from .plans import uneven


@pytest.fixture
def batches(encoder: Encoder, family: FamilyFixture) -> list[Batch]:
    """One example, one three times, and three of several lengths: the shorter ones padded."""
    encoded = encoder.preprocessor.encode(family.examples(12))
    return [encoded.collate(rows) for rows in ([8], [8, 8, 8], [0, 3, 8])]


@pytest.fixture
def plan(encoder: Encoder) -> CompressionPlan:
    """Uneven heads and neurons, with a sublayer of either kind dropped."""
    return uneven(encoder)


def answers(encoder: Encoder, batches: list[Batch]) -> np.ndarray:
    return np.concatenate([encoder.predict(batch) for batch in batches])


def test_pruned_equals_masked(
    encoder: Encoder, plan: CompressionPlan, batches: list[Batch]
) -> None:
    check_pruned_equals_masked(encoder, plan, batches)


@pytest.mark.cell("prune heads")
def test_without_heads_equals_with_masked_heads(encoder: Encoder, batches: list[Batch]) -> None:
    check_pruned_equals_masked(encoder, uneven(encoder, neurons=False), batches)


@pytest.mark.cell("prune neurons")
def test_without_neurons_equals_with_masked_neurons(encoder: Encoder, batches: list[Batch]) -> None:
    check_pruned_equals_masked(encoder, uneven(encoder, heads=False), batches)


def check_pruned_equals_masked(
    encoder: Encoder, plan: CompressionPlan, batches: list[Batch]
) -> None:
    before, parameters = answers(encoder, batches), encoder.parameters
    with masked(encoder, plan):
        expected = answers(encoder, batches)
    assert np.abs(before - expected).max() > 1e-3, "the mask must change something"
    prune_(encoder, plan)
    assert encoder.anatomy.head_counts == plan.head_counts
    assert encoder.anatomy.neuron_counts == plan.neuron_counts
    assert encoder.parameters < parameters
    np.testing.assert_allclose(answers(encoder, batches), expected, rtol=0, atol=1e-5)


@pytest.mark.cell("reload")
def test_an_opened_encoder_answers_as_its_own_library_does(
    family: FamilyFixture, encoder: Encoder, batches: list[Batch]
) -> None:
    reference = family.reference(encoder.directory)
    for batch in batches:
        with torch.no_grad():
            expected = reference({n: torch.from_numpy(array) for n, array in batch.items()})
        np.testing.assert_allclose(encoder.predict(batch), expected, rtol=0, atol=1e-5)


@pytest.mark.cell("reload")
def test_a_saved_encoder_opens_again_before_and_after_pruning(
    encoder: Encoder, plan: CompressionPlan, batches: list[Batch], tmp_path: Path
) -> None:
    for name, kept in (("whole", encoder.plan), ("pruned", plan)):
        prune_(encoder, kept)
        (tmp_path / name).mkdir()
        encoder.save(tmp_path / name)
        again = open_encoder(tmp_path / name, kept)
        np.testing.assert_allclose(
            answers(again, batches), answers(encoder, batches), rtol=0, atol=1e-6
        )


@pytest.mark.cell("score")
def test_every_head_gets_a_score(
    encoder: Encoder, data_file: Path, tcompress: Callable, tmp_path: Path
) -> None:
    words = ("--model", encoder.directory, "--data", data_file, "--json")
    result = tcompress("score", *words, "--output", tmp_path / "scores.json")
    assert result.exit_code == 0, result.output
    heads = json.loads(result.stdout)["heads"]
    assert [len(layer) for layer in heads] == list(encoder.plan.head_counts)
    scores = [score for layer in heads for score in layer]
    assert np.isfinite(scores).all()
    assert len(set(scores)) == len(scores), "equal heads would be ranked by chance"


@pytest.mark.cell("finetune")
def test_the_loss_of_a_pruned_encoder_falls(
    encoder: Encoder, data_file: Path, tcompress: Callable, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"

    def run(command: str, *words: object) -> str:
        result = tcompress(command, *words, "--workspace", workspace)
        assert result.exit_code == 0, result.output
        return result.stdout

    run("init", encoder.directory, "--data", data_file)
    run("prune", "--heads", 0.5, "--criterion", "magnitude", "--no-reconstruct")
    recipe = ("--epochs", 4, "--learning-rate", 3e-3, "--batch-size", 16, "--precision", "fp32")
    tuned = json.loads(run("finetune", "--no-distill", *recipe, "--json"))
    losses = [epoch["loss"] for epoch in tuned["details"]["epochs"][1:]]
    assert losses[-1] < losses[0]
    assert load_encoder(tuned["path"]).plan.head_sparsity == 0.5


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        pytest.param("onnx", "fp32", marks=pytest.mark.cell("fp32 ONNX"), id="fp32-onnx"),
        pytest.param("onnx", "int8", marks=pytest.mark.cell("int8 ONNX"), id="int8-onnx"),
        pytest.param("torchscript", "fp32", marks=pytest.mark.cell("TorchScript"), id="script"),
        pytest.param("program", "fp32", marks=pytest.mark.cell("program"), id="program"),
    ],
)
def test_a_pruned_encoder_and_its_export_answer_alike(
    encoder: Encoder, plan: CompressionPlan, kind: str, precision: str, tmp_path: Path
) -> None:
    prune_(encoder, plan.with_precision(Precision(precision)))
    parity = write_export(encoder, kind, tmp_path)["parity"]
    assert len(parity["shapes"]) > 1
    assert (parity["max_abs_difference"] < 1e-5) == (precision == "fp32"), "int8 must be real"
