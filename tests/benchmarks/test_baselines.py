import importlib.util
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from tcompress.compress.gating import Units
from tcompress.compress.judging import mean_divergence, predict_all
from tcompress.compress.moments import Moments
from tcompress.data import Columns, Examples, read_examples
from tcompress.encoder import Encoder, label_indices
from tcompress.errors import RequestError

FILE = Path(__file__).parents[2] / "benchmarks" / "baselines.py"


@pytest.fixture(scope="module")
def baselines() -> ModuleType:
    spec = importlib.util.spec_from_file_location("baselines", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def examples(reviews_file: Path) -> Examples:
    return read_examples(reviews_file, Columns())


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def gradients_of(baselines: ModuleType, encoder: Encoder, examples: Examples) -> Tensor:
    encoded = encoder.preprocessor.encode(examples)
    labels = label_indices(encoder.labels, examples)
    batches = [(batch, labels[rows]) for rows, batch in encoded.batches(32)]
    return baselines.batch_gradients(encoder, batches)


def test_mask_search_is_the_best_of_all_masks_within_the_budget(baselines: ModuleType) -> None:
    units = Units((2, 2), (3, 3))
    importance = random(10).abs()
    budget = baselines.Budget(head=7, neuron=2, left=19.0)
    kept = baselines.search_masks(importance, units, budget)
    cost = torch.tensor([7.0] * 4 + [2.0] * 6)
    affordable = [
        list(chosen)
        for count in range(1, 11)
        for chosen in combinations(range(10), count)
        if cost[list(chosen)].sum() <= 19 and min(chosen) < 4
    ]
    best = max(affordable, key=lambda chosen: float(importance[chosen].sum()))
    assert kept.nonzero().flatten().tolist() == best
    with pytest.raises(RequestError, match="leaves no head"):
        baselines.search_masks(importance, units, baselines.Budget(head=7, neuron=2, left=5.0))


def test_rearranging_keeps_the_number_and_lowers_the_joint_fisher(baselines: ModuleType) -> None:
    rows = random(6, 12)
    kept = torch.ones(12, dtype=torch.bool)
    kept[rows.square().sum(0).argsort()[:5]] = False
    chosen = baselines.rearranged(kept, rows)
    assert chosen.sum() == kept.sum()
    joint = [float(rows[:, ~mask].sum(1).square().sum()) for mask in (kept, chosen)]
    assert joint[1] < joint[0]


@pytest.mark.parametrize("width", [pytest.param(1, id="neurons"), pytest.param(4, id="heads")])
def test_scales_that_made_the_targets_are_found(baselines: ModuleType, width: int) -> None:
    z, weights = random(500, 12), random(12, 8, seed=1)
    scales = 1 + 0.3 * random(12 // width, seed=2)
    moments = Moments(12, 8)
    constant = 0.0 if width == 1 else 0.7
    moments.add(z, (z * scales.repeat_interleave(width)) @ weights + constant)
    found = baselines.fitted_scales(moments, weights, width)
    # damping of 1 against normal equations of hundreds moves them by a little
    assert found.numpy() == pytest.approx(scales.numpy(), abs=1e-3)


def test_scales_beyond_ten_end_the_tuning(baselines: ModuleType) -> None:
    z, weights = random(500, 4), random(4, 8, seed=1)
    moments = Moments(4, 8)
    moments.add(z, 20 * z @ weights)
    assert baselines.fitted_scales(moments, weights, 1) is None


def test_one_threshold_pays_for_a_sublayer_and_those_behind_it(baselines: ModuleType) -> None:
    scores = [torch.tensor([1.0, 6.0]), torch.tensor([4.0, 0.5, 3.0])]
    budget = baselines.Budget(head=2, neuron=1, left=4.0)
    kept, cost = baselines.affordable(scores, 0, budget)
    # per MAC: heads 0.5 and 3, neurons 4, 0.5 and 3
    assert kept.tolist() == [False, True]
    assert cost == 2


def test_kprune_with_nothing_to_remove_changes_nothing(
    baselines: ModuleType, bert: Encoder, examples: Examples
) -> None:
    encoded = bert.preprocessor.encode(examples)
    student = baselines.prune_by_knowledge(bert, encoded, removed=0.0, tokens=16)
    assert student.plan == bert.plan
    difference = predict_all(student, encoded) - predict_all(bert, encoded)
    assert difference.abs().max() < 1e-3


def test_both_baselines_stay_in_budget_and_beat_their_bare_masks(
    baselines: ModuleType, bert: Encoder, examples: Examples
) -> None:
    removed = 0.3
    encoded = bert.preprocessor.encode(examples)
    answers = predict_all(bert, encoded)
    gradients = gradients_of(baselines, bert, examples)
    students = {
        "kwon": baselines.prune_by_fisher(bert, gradients, encoded, removed=removed, tokens=16),
        "k-prune": baselines.prune_by_knowledge(bert, encoded, removed=removed, tokens=16),
    }
    for student in students.values():
        assert student.anatomy.macs(16) <= (1 - removed) * bert.anatomy.macs(16)
        assert student.anatomy.macs(16) > (0.85 - removed) * bert.anatomy.macs(16)
        repaired = mean_divergence(answers, predict_all(student, encoded))
        bare = baselines._cut(bert, student.plan)
        assert repaired < mean_divergence(answers, predict_all(bare, encoded))


def test_batch_gradients_are_what_a_gate_changes_the_loss_by(
    baselines: ModuleType, bert: Encoder, examples: Examples, nudged_loss: Callable
) -> None:
    gradients = gradients_of(baselines, bert, examples.take(range(8)))
    slope = (nudged_loss(1 + 1e-2) - nudged_loss(1 - 1e-2)) / 2e-2
    assert float(gradients[0, 1]) == pytest.approx(slope, rel=0.02)


@pytest.fixture
def nudged_loss(bert: Encoder, examples: Examples) -> Callable[[float], float]:
    """Loss of the first eight examples with head 1 of the first layer scaled."""
    few = examples.take(range(8))
    batch = bert.preprocessor.encode(few).collate(range(8))
    labels = label_indices(bert.labels, few)

    def loss(factor: float) -> float:
        output = bert.anatomy.layers[0].output.weight
        with torch.no_grad():
            kept = output.clone()
            output[:, 8:16] *= factor
            value = torch.nn.functional.cross_entropy(bert.logits(batch), labels)
            output.copy_(kept)
        return float(value)

    return loss
