import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from tcompress.compress.pruning import prune_
from tcompress.encoder import Encoder
from tcompress.errors import ExportError, ParityError
from tcompress.export import onnx_graph
from tcompress.export.deployment import deploy
from tcompress.export.exporting import write_export
from tcompress.export.onnx_graph import expected_operators
from tcompress.export.parity import parity_batches
from tcompress.loading import load
from tcompress.plan import CompressionPlan, Precision
from tcompress.runtime import MODEL_FILES

INT8_PARTS = ("layer.", "embedding.tokens", "embedding.positions")
original_positions = onnx_graph._positions
LOAD_WITHOUT_TCOMPRESS = {
    "onnx": "import onnxruntime as o; f = o.InferenceSession({path!r});"
    " run = lambda d: f.run(None, d)[0]",
    "torchscript": "import torch; f = torch.jit.load({path!r});"
    " run = lambda d: f(*map(torch.from_numpy, d.values())).detach().numpy()",
    "program": "import torch; f = torch.export.load({path!r}).module();"
    " run = lambda d: f(*map(torch.from_numpy, d.values())).detach().numpy()",
    "openvino": "sys.modules['openvino_telemetry'] = None; import openvino as o;"
    " f = o.compile_model({path!r}, 'CPU', {{'INFERENCE_PRECISION_HINT': 'f32'}});"
    " run = lambda d: f(d)[0]",
}


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8])
def test_onnx_equals_its_source_at_every_shape(
    any_encoder: Encoder, uneven_plan: CompressionPlan, precision: Precision, tmp_path: Path
) -> None:
    prune_(any_encoder, uneven_plan.with_precision(precision))
    parity = write_export(any_encoder, "onnx", tmp_path)["parity"]
    assert [1, 1] in parity["shapes"]
    assert len({tuple(shape) for shape in parity["shapes"]}) >= 6
    if precision is Precision.FP32:
        assert parity["max_abs_difference"] < 1e-5
    else:
        assert parity["max_abs_difference"] > 1e-5, f"{precision} must be real"


# bert's programs are in every precision, and other families' in tests/families
TORCH_FILES = [
    pytest.param(
        model,
        precision,
        kind,
        marks=pytest.mark.slow if kind == "program" and model != "bert" else (),
        id=f"{model}-{precision}-{kind}",
    )
    for model in ("bert", "roberta", "torch-sequence-first")
    for precision in Precision
    for kind in ("torchscript", "program")
]


@pytest.mark.parametrize(("model", "precision", "kind"), TORCH_FILES)
def test_torch_formats_equal_their_source_at_every_shape(
    model: str,
    kind: str,
    precision: Precision,
    model_directories,
    uneven_plan: CompressionPlan,
    tmp_path: Path,
) -> None:
    encoder = load(model_directories(model))
    prune_(encoder, uneven_plan.with_precision(precision))
    parity = write_export(encoder, kind, tmp_path)["parity"]
    assert (parity["max_abs_difference"] < 1e-5) == (precision is Precision.FP32)


def test_the_onnx_file_holds_what_the_plan_asks_for(
    bert: Encoder, uneven_plan: CompressionPlan, tmp_path: Path
) -> None:
    prune_(bert, uneven_plan.with_precision(Precision.INT8))
    write_export(bert, "onnx", tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    heads = [
        onnx.helper.get_node_attr_value(node, "q_num_heads")
        for node in model.graph.node
        if node.op_type == "Attention"
    ]
    assert heads == [3, 1]
    # layer 0: q, k, v, output, in, out; layer 1: in, out; layer 2: q (one token), k, v, output
    int8 = [node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"]
    assert len(int8) == expected_operators(deploy(bert))["MatMulIntegerToFloat"] == 6 + 2 + 4
    assert [i.name for i in model.graph.input] == ["input_ids", "token_type_ids", "attention_mask"]
    assert {p.key for p in model.metadata_props} >= {"tcompress.plan", "tcompress.precision"}


def test_int8_makes_matrices_and_tables_four_times_smaller(bert: Encoder, tmp_path: Path) -> None:
    sizes = {}
    for precision in (Precision.FP32, Precision.INT8):
        bert.plan = bert.plan.with_precision(precision)
        directory = tmp_path / precision
        directory.mkdir()
        write_export(bert, "onnx", directory)
        weights = onnx.load(directory / "model.onnx").graph.initializer
        matrices = [t for t in weights if len(t.dims) == 2 and t.name.startswith(INT8_PARTS)]
        sizes[precision] = sum(len(t.raw_data) for t in matrices if "weight" in t.name)
    assert sizes[Precision.FP32] == 4 * sizes[Precision.INT8]


def test_the_same_encoder_gives_the_same_file(bert: Encoder, tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_export(bert, "onnx", tmp_path / name)
        files.append((tmp_path / name / "model.onnx").read_bytes())
    assert files[0] == files[1]


def test_a_program_names_no_file_of_the_machine(bert: Encoder, tmp_path: Path) -> None:
    write_export(bert, "program", tmp_path)
    with zipfile.ZipFile(tmp_path / MODEL_FILES["program"]) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert not [name for name, content in members.items() if b".py\\" in content]


def test_a_file_answers_in_a_process_without_tcompress(
    any_format: str, bert: Encoder, tmp_path: Path
) -> None:
    write_export(bert, any_format, tmp_path)
    batch = next(parity_batches(bert))
    np.savez(tmp_path / "batch.npz", **batch)
    script = (
        f"import sys, numpy as np; {LOAD_WITHOUT_TCOMPRESS[any_format]}; "
        "y = run(dict(np.load({batch!r}))); np.save({out!r}, y); "
        "assert not [m for m in sys.modules if m.startswith('tcompress')]"
    ).format(
        path=str(tmp_path / MODEL_FILES[any_format]),
        batch=str(tmp_path / "batch.npz"),
        out=str(tmp_path / "out.npy"),
    )
    subprocess.run([sys.executable, "-I", "-W", "ignore", "-c", script], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), bert.predict(batch), atol=1e-5)


def test_a_file_that_computes_something_else_is_not_accepted(
    text_workspace: Path, tcompress, monkeypatch
) -> None:
    """Swap two inputs, as an exporter that goes by position would."""
    original = onnx_graph._token_types
    monkeypatch.setattr(
        onnx_graph,
        "_token_types",
        lambda writer, table: writer.rows(
            "token_types", table.weight, "attention_mask", int8=False
        ),
    )
    result = tcompress("export", "--workspace", text_workspace)
    assert result.exit_code == 1
    assert "does not compute what its source does: logits differ by" in result.stderr
    assert not list((text_workspace / "artifacts").rglob("*.onnx"))
    monkeypatch.setattr(onnx_graph, "_token_types", original)
    assert tcompress("export", "--workspace", text_workspace).exit_code == 0


@pytest.mark.parametrize(
    ("model", "name", "broken"),
    [
        pytest.param(
            "bert",
            "_token_types",
            lambda writer, table: writer.weight("token_type_0", table.weight[0]),
            id="ignores-token-types",
        ),
        pytest.param(
            "roberta",
            "_positions",
            lambda *arguments: positions_as_for_bert(*arguments),
            id="counts-padding",
        ),
    ],
)
def test_parity_sees_inputs_that_a_file_ignores(
    model: str, name: str, broken, model_directories, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(onnx_graph, name, broken)
    with pytest.raises(ParityError, match="logits differ by"):
        write_export(load(model_directories(model)), "onnx", tmp_path)


def positions_as_for_bert(writer, module, main: str) -> str:
    """Positions that count padding too, from 2."""
    counting_all = SimpleNamespace(padding_id=None)
    positions = original_positions(writer, counting_all, main)
    return writer.node("Add", positions, writer.weight("offset", np.array(2)))


def test_parity_is_tried_alone_and_in_batches_at_odd_lengths_and_with_padding(
    bert: Encoder,
) -> None:
    masks = [batch["attention_mask"] for batch in parity_batches(bert)]
    shapes = {(1, 1), (1, 17), (3, 33), (8, 5), (8, 33)}
    assert shapes <= {mask.shape for mask in masks}
    assert shapes - {(1, 1)} <= {mask.shape for mask in masks if not mask.all()}


def test_logits_that_are_not_finite_fail_parity(bert: Encoder) -> None:
    from tcompress.export.parity import FP32_LIMITS, check_parity

    def broken(batch):
        return np.full_like(bert.predict(batch), np.nan)

    with pytest.raises(ParityError, match="logits that are not finite"):
        check_parity(bert, broken, FP32_LIMITS)
    with pytest.raises(ParityError, match=r"the file gives logits \(1, 1\), its source \(1, 2\)"):
        check_parity(bert, lambda batch: bert.predict(batch)[:, :1], FP32_LIMITS)


def test_an_export_opens_in_one_call_and_answers(
    any_format: str, text_workspace: Path, tcompress
) -> None:
    tcompress("prune", "--heads", "0.3", "--workspace", text_workspace)
    tcompress("quantize", "--workspace", text_workspace)
    result = tcompress("export", "--format", any_format, "--workspace", text_workspace)
    assert result.exit_code == 0, result.output
    exported = load(text_workspace / "artifacts/export" / any_format)
    source = load(text_workspace / "artifacts/prune")
    assert (exported.kind, exported.labels) == (any_format, source.labels)
    batch = source.preprocessor.random_batch(3, 11)
    assert np.abs(exported.predict(batch) - source.predict(batch)).max() < 0.5
    assert (text_workspace / "artifacts/export" / any_format / "tokenizer.json").is_file()


def test_a_missing_extra_ends_with_6_and_the_line_that_installs_it(
    model_directories, tcompress, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    words = ("--model", model_directories("bert"), "--output", tmp_path / "x")
    result = tcompress("export", "--format", "openvino", *words)
    assert result.exit_code == 6
    assert 'pip install "tcompress[openvino]"' in result.stderr
    assert not (tmp_path / "x").exists()


def test_static_activations_come_from_training_examples(text_workspace: Path, tcompress) -> None:
    where = ("--workspace", text_workspace)
    tcompress("quantize", *where)
    words = ("export", "--activations", "static", *where)
    result = tcompress(*words)
    assert result.exit_code == 0, result.output
    graph = onnx.load(text_workspace / "artifacts/export/onnx/model.onnx").graph
    counts = Counter(node.op_type for node in graph.node)
    # three layers: what q, k and v read, heads, what the FFN reads, neurons; one token in the last
    assert (counts["QuantizeLinear"], counts["DynamicQuantizeLinear"]) == (3 * 4 + 1, 0)
    assert "up to date" in tcompress(*words).stderr
    dynamic = tcompress("export", *where)
    assert dynamic.exit_code == 2, "another result stands in the way"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--format", "program", "--activations", "static"),
            "goes with --format onnx, not program",
        ),
        (("--format", "torchscript", "--reduce-range"), "goes with --format onnx and openvino"),
        (("--precision", "fp32", "--activations", "static"), "nothing is in int8"),
    ],
)
def test_options_of_int8_are_refused_where_they_mean_nothing(
    text_workspace: Path, tcompress, words: tuple[str, ...], message: str
) -> None:
    result = tcompress("export", *words, "--workspace", text_workspace)
    assert result.exit_code == 2
    assert message in result.stderr


def test_static_scales_save_what_dynamic_ones_lose(bert: Encoder, tmp_path: Path) -> None:
    """The check on the way must not be one that only dynamic int8 fails."""
    with torch.no_grad():
        for layer in bert.anatomy.layers:
            for parameter in layer.value.parameters():
                parameter[3] *= 1000
            layer.output.weight[:, 3] /= 1000
    bert.plan = bert.plan.with_precision(Precision.INT8)
    with pytest.raises(ParityError, match="mean KL"):
        write_export(bert, "onnx", tmp_path)
    batches = tuple(bert.preprocessor.random_batch(4, 12, seed) for seed in range(8))
    parity = write_export(bert, "onnx", tmp_path, calibration=batches)["parity"]
    assert parity["mean_kl"] < 0.01


def test_an_unknown_format_is_refused(bert: Encoder, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="unknown format 'tflite'; known are: onnx, torchscript"):
        write_export(bert, "tflite", tmp_path)
