import copy
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tcompress.compress.judging import mean_divergence, predict_all
from tcompress.compress.least_squares import Fitting, NormFit
from tcompress.compress.moments import Moments
from tcompress.compress.pruning import prune_
from tcompress.compress.reconstruction import reconstruct_
from tcompress.encoder import Encoder
from tcompress.errors import CalibrationError, StorageError
from tcompress.plan import CompressionPlan, LayerPlan
from tcompress.preprocessing import Encoded


@pytest.fixture
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files of this test go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def cut(encoder: Encoder, plan: CompressionPlan) -> Encoder:
    student = replace(encoder, model=copy.deepcopy(encoder.model))
    prune_(student, plan)
    return student


def reconstructed(encoder: Encoder, plan: CompressionPlan, encoded: Encoded) -> Encoder:
    student = cut(encoder, plan)
    reconstruct_(student, encoder, encoded, batch_size=32)
    return student


def keeping(plan: CompressionPlan, layer: int, **units: tuple[int, ...]) -> CompressionPlan:
    layers = list(plan.layers)
    layers[layer] = replace(layers[layer], **units)
    return replace(plan, layers=tuple(layers))


def double_neuron_(encoder: Encoder, layer: int) -> None:
    """Make neuron 1 a copy of neuron 0, and share what they give."""
    pieces = encoder.anatomy.layers[layer]
    with torch.no_grad():
        for parameter in pieces.ffn_in.parameters():
            parameter[1] = parameter[0]
        pieces.ffn_out.weight[:, 1] = 0.7 * pieces.ffn_out.weight[:, 0]
        pieces.ffn_out.weight[:, 0] *= 0.3


def double_head_(encoder: Encoder, layer: int) -> None:
    """Make head 1 a copy of head 0, and share what they give."""
    pieces = encoder.anatomy.layers[layer]
    size = pieces.head_size
    with torch.no_grad():
        for projection in pieces.projections():
            for parameter in projection.parameters():
                parameter[size : 2 * size] = parameter[:size]
        out = pieces.output.weight
        out[:, size : 2 * size] = 0.7 * out[:, :size]
        out[:, :size] *= 0.3


def with_ridge(monkeypatch: pytest.MonkeyPatch, ridge: float) -> None:
    monkeypatch.setattr("tcompress.compress.least_squares.RIDGES", (ridge,) * 3)


@pytest.mark.parametrize("layer", [0, 2])
def test_what_others_give_exactly_is_made_up_for(
    any_encoder: Encoder, encode, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the ridge; without one, to 1e-3 of the logits."""
    double_neuron_(any_encoder, layer)
    double_head_(any_encoder, layer)
    plan = keeping(any_encoder.plan, layer, heads=(0, 2, 3), neurons=(0, *range(2, 48)))
    encoded, held_out = encode(any_encoder, 200), encode(any_encoder, 60, seed=1)
    wanted = predict_all(any_encoder, held_out)

    def error(student: Encoder) -> float:
        return float((predict_all(student, held_out) - wanted).abs().max())

    assert error(cut(any_encoder, plan)) > 0.1
    assert error(reconstructed(any_encoder, plan, encoded)) < 0.01
    with_ridge(monkeypatch, 1e-6)
    assert error(reconstructed(any_encoder, plan, encoded)) < 1e-3


def test_the_answers_to_other_inputs_diverge_less(
    any_encoder: Encoder, uneven_plan: CompressionPlan, encode
) -> None:
    encoded, held_out = encode(any_encoder, 400), encode(any_encoder, 100, seed=1)
    answers = predict_all(any_encoder, held_out)
    before = predict_all(cut(any_encoder, uneven_plan), held_out)
    after = predict_all(reconstructed(any_encoder, uneven_plan, encoded), held_out)
    assert mean_divergence(answers, after) < 0.2 * mean_divergence(answers, before)


def test_padding_does_not_matter(
    any_encoder: Encoder, uneven_plan: CompressionPlan, encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_ridge(monkeypatch, 1e-2)  # chosen by held-out batches, which depend on the batch size
    encoded = encode(any_encoder, 24)
    alone, padded = cut(any_encoder, uneven_plan), cut(any_encoder, uneven_plan)
    reconstruct_(alone, any_encoder, encoded, batch_size=1)
    reconstruct_(padded, any_encoder, encoded, batch_size=24)
    logits = [predict_all(student, encoded) for student in (alone, padded)]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-4)


def test_layers_below_the_first_cut_stay_as_they_are_to_the_bit(
    any_encoder: Encoder, encode
) -> None:
    plan = keeping(any_encoder.plan, 1, neurons=tuple(range(20)))
    student = cut(any_encoder, plan)
    refits = reconstruct_(student, any_encoder, encode(any_encoder, 80))
    assert [(r.layer, r.sublayer) for r in refits] == [
        (1, "feed-forward"),
        (2, "attention"),
        (2, "feed-forward"),
    ]
    assert all(r.error <= r.error_before for r in refits)
    assert refits[0].error < refits[0].error_before
    for mine, theirs in zip(
        student.anatomy.layers[:1], any_encoder.anatomy.layers[:1], strict=True
    ):
        for module, source in (
            (mine.output, theirs.output),
            (mine.ffn_in, theirs.ffn_in),
            (mine.ffn_out, theirs.ffn_out),
            (mine.attention_norm, theirs.attention_norm),
            (mine.ffn_norm, theirs.ffn_norm),
            (student.anatomy.layers[1].output, any_encoder.anatomy.layers[1].output),
        ):
            for name, value in source.state_dict().items():
                assert torch.equal(module.state_dict()[name], value)


def test_a_plan_that_removes_nothing_changes_no_bit_and_the_teacher_never_changes(
    any_encoder: Encoder, uneven_plan: CompressionPlan, encode
) -> None:
    before = {name: value.clone() for name, value in any_encoder.model.state_dict().items()}
    student = cut(any_encoder, any_encoder.plan)
    assert reconstruct_(student, any_encoder, encode(any_encoder, 30)) == []
    reconstructed(any_encoder, uneven_plan, encode(any_encoder, 30))
    for name, value in before.items():
        assert torch.equal(student.model.state_dict()[name], value)
        assert torch.equal(any_encoder.model.state_dict()[name], value)


def test_what_was_pruned_before_can_be_pruned_and_reconstructed_again(
    bert: Encoder, uneven_plan: CompressionPlan, encode
) -> None:
    encoded = encode(bert, 100)
    once = reconstructed(bert, uneven_plan, encoded)
    further = keeping(uneven_plan, 0, heads=(2,), neurons=())
    answers = predict_all(once, encoded)
    before = mean_divergence(answers, predict_all(cut(once, further), encoded))
    after = mean_divergence(answers, predict_all(reconstructed(once, further, encoded), encoded))
    assert after < before


def test_when_every_sublayer_is_gone_the_norms_and_the_head_do_what_they_can(
    any_encoder: Encoder, encode
) -> None:
    encoded = encode(any_encoder, 100)
    nothing = replace(any_encoder.plan, layers=(LayerPlan((), ()),) * 3)
    answers = predict_all(any_encoder, encoded)
    before = mean_divergence(answers, predict_all(cut(any_encoder, nothing), encoded))
    after = predict_all(reconstructed(any_encoder, nothing, encoded), encoded)
    assert mean_divergence(answers, after) < 0.5 * before


@pytest.mark.parametrize("count", [1, 3])
def test_a_few_examples_give_finite_weights(
    bert: Encoder, uneven_plan: CompressionPlan, encode, count: int
) -> None:
    student = reconstructed(bert, uneven_plan, encode(bert, count))
    for value in student.model.state_dict().values():
        assert torch.isfinite(value).all()
    encoded = encode(bert, count)
    torch.testing.assert_close(
        predict_all(student, encoded), predict_all(bert, encoded), rtol=0, atol=0.3
    )


def test_no_examples_are_refused(bert: Encoder, encode) -> None:
    none = replace(encode(bert, 3), lengths=np.zeros(0, np.int64))
    with pytest.raises(CalibrationError, match="at least one example"):
        reconstruct_(cut(bert, bert.plan), bert, none)


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_weights_that_are_not_finite_are_refused_and_no_file_stays(
    bert: Encoder, uneven_plan: CompressionPlan, encode, temporary_files: Path, whose: str
) -> None:
    student = cut(bert, uneven_plan)
    broken = student if whose == "student" else bert
    with torch.no_grad():
        broken.anatomy.layers[1].ffn_in.weight[0, 0] = float("nan")
    with pytest.raises(CalibrationError, match="not finite; check the weights and inputs"):
        reconstruct_(student, bert, encode(bert, 30))
    assert list(temporary_files.iterdir()) == []


def test_temporary_files_are_there_while_it_works_and_gone_afterwards(
    bert: Encoder, uneven_plan: CompressionPlan, encode, temporary_files: Path
) -> None:
    seen = []

    def progress(layers, _what: str, _total: int):
        for layer in layers:
            seen.append(sum(path.stat().st_size for path in temporary_files.rglob("*")))
            yield layer

    encoded = encode(bert, 30)
    reconstruct_(cut(bert, uneven_plan), bert, encoded, batch_size=30, progress=progress)
    streams = 3 * 30 * int(encoded.lengths.max()) * 32 * 4
    assert min(seen) >= streams
    assert list(temporary_files.iterdir()) == []


def test_a_disk_without_room_is_named_before_anything_is_written(
    bert: Encoder,
    uneven_plan: CompressionPlan,
    encode,
    temporary_files: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = shutil.disk_usage(temporary_files)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: full)
    with pytest.raises(StorageError, match=r"temporary has room for 1e-06 GB; .* TMPDIR"):
        reconstructed(bert, uneven_plan, encode(bert, 30))
    assert list(temporary_files.iterdir()) == []


def sizes(holder: object) -> int:
    """Numbers held in tensors, however deep."""
    if isinstance(holder, Tensor):
        return holder.numel()
    if isinstance(holder, dict):
        return sum(map(sizes, holder.values()))
    if isinstance(holder, (tuple, list)):
        return sum(map(sizes, holder))
    return sizes(vars(holder)) if isinstance(holder, (Moments, Fitting, NormFit)) else 0


def test_sums_do_not_grow_with_the_rows() -> None:
    rng = torch.Generator().manual_seed(0)
    fitting, norm = Fitting(nn.Linear(6, 4)), NormFit(4)
    held = []
    for place in range(50):
        x = torch.randn(100, 6, generator=rng)
        fitting.add(place, x, x[:, :4])
        norm.add(x[:, :4], x[:, 2:])
        held.append(sizes(fitting) + sizes(norm))
    assert held[5] == held[-1] > 0


def test_a_linear_layer_is_fitted_without_its_bias_where_it_has_none() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=rng) + 2
    right = torch.randn(6, 3, generator=rng)
    for bias in (True, False):
        linear = nn.Linear(6, 3, bias=bias)
        fitting = Fitting(linear)
        for place in range(10):
            rows = slice(40 * place, 40 * place + 40)
            fitting.add(place, x[rows], x[rows] @ right + (5 if bias else 0))
        with torch.no_grad():
            before, after, _ = fitting.solve_()
        assert after < 1e-4 < before
        torch.testing.assert_close(linear.weight.T, right, rtol=0, atol=0.02)
