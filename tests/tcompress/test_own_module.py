import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model

import tcompress
from tcompress.attention import HeadAttention
from tcompress.compress.gating import masked
from tcompress.compress.pruning import prune_
from tcompress.encoder import Encoder, model_digest, open_encoder
from tcompress.errors import ModelError, RequestError
from tcompress.export.exporting import write_export
from tcompress.factories import TRUST_VARIABLE, house
from tcompress.plan import CompressionPlan, LayerPlan, Precision

_MODULES = "own_modules"
_DOCS = Path(__file__).parents[2] / "docs" / "own-modules.md"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The modules of this folder can be imported, and nothing is trusted yet."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(TRUST_VARIABLE, "")
    monkeypatch.setenv("TCOMPRESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def readings(tmp_path: Path) -> Path:
    """Labelled inputs for `own_modules:sensors`."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((200, 6, 5), dtype=np.float32)
    labels = (inputs[:, 0, 0] > 0).astype(np.int64)
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=labels)
    return tmp_path / "data.npz"


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def write_weights(name: str, directory: Path) -> Path:
    """Write seeded weights for a factory of `own_modules`."""
    import own_modules

    torch.manual_seed(0)
    module = getattr(own_modules, name)()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    directory.mkdir(exist_ok=True)
    save_model(module, str(directory / "model.safetensors"))
    return directory


def opened(name: str, directory: Path) -> Encoder:
    encoder = tcompress.load(f"{_MODULES}:{name}", weights=write_weights(name, directory))
    assert isinstance(encoder, Encoder)
    return encoder


def batches(encoder: Encoder) -> list[dict[str, np.ndarray]]:
    """Inputs without padding and with."""
    whole = encoder.preprocessor.random_batch(3, 7)
    mask = np.arange(7) < np.array([[7], [3], [5]])
    return [whole, whole | {"attention_mask": mask.astype(np.int64)}]


def uneven() -> CompressionPlan:
    layers = (
        LayerPlan((0, 2, 3), tuple(range(0, 48, 2))),
        LayerPlan((), tuple(range(5, 40))),
        LayerPlan((3,), ()),
    )
    return CompressionPlan(layers, source_heads=(4,) * 3, source_neurons=(48,) * 3)


@pytest.mark.parametrize("name", ["text", "causal", "sensors", "unusual"])
def test_pruned_equals_masked_and_opens_again(name: str, tmp_path: Path) -> None:
    encoder, plan = opened(name, tmp_path / "weights"), uneven()
    with masked(encoder, plan):
        expected = [encoder.predict(batch) for batch in batches(encoder)]
    prune_(encoder, plan)
    (tmp_path / "pruned").mkdir()
    encoder.save(tmp_path / "pruned")
    again = open_encoder(tmp_path / "pruned", plan)
    for batch, right in zip(batches(encoder), expected, strict=True):
        np.testing.assert_allclose(encoder.predict(batch), right, rtol=0, atol=1e-5)
        np.testing.assert_allclose(again.predict(batch), right, rtol=0, atol=1e-5)


needs_onnxscript = pytest.mark.skipif(find_spec("onnxscript") is None, reason="no onnxscript")


@pytest.mark.parametrize(
    ("name", "kind", "precision"),
    [
        ("text", "onnx", "fp32"),
        ("sensors", "onnx", "int8"),
        ("causal", "torchscript", "fp32"),
        ("causal", "torchscript", "int8"),
        ("causal", "program", "fp32"),
        pytest.param("causal", "onnx", "fp32", marks=needs_onnxscript),
        pytest.param("causal", "onnx", "int8", marks=needs_onnxscript),
    ],
)
def test_exports_of_pruned_modules_answer_alike(
    name: str, kind: str, precision: str, tmp_path: Path
) -> None:
    encoder = opened(name, tmp_path / "weights")
    prune_(encoder, uneven().with_precision(Precision(precision)))
    (tmp_path / "export").mkdir()
    parity = write_export(encoder, kind, tmp_path / "export")["parity"]
    assert len(parity["shapes"]) > 1
    assert (parity["max_abs_difference"] < 1e-5) == (precision == "fp32"), "int8 must be real"


def test_a_layer_applied_several_times_is_pruned_once(tmp_path: Path) -> None:
    encoder = opened("shared", tmp_path / "weights")
    assert encoder.anatomy.order == (0, 0, 0)
    plan = CompressionPlan((LayerPlan((0, 2), tuple(range(9))),), (4,), (48,))
    with masked(encoder, plan):
        expected = encoder.predict(batches(encoder)[1])
    prune_(encoder, plan)
    (tmp_path / "pruned").mkdir()
    encoder.save(tmp_path / "pruned")
    again = open_encoder(tmp_path / "pruned", plan).predict(batches(encoder)[1])
    np.testing.assert_allclose(again, expected, rtol=0, atol=1e-5)


def test_reconstruction_refuses_what_it_cannot_walk_through(tmp_path: Path) -> None:
    from tcompress.plain import plain

    with pytest.raises(ModelError, match=r"does more than.*--criterion fisher --no-reconstruct"):
        plain(opened("causal", tmp_path / "weights"))


def test_code_that_a_file_names_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tcompress: Callable
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    model = write_weights("text", tmp_path / "model")
    (model / "factory.json").write_text(json.dumps({"factory": "evil:build"}))
    with pytest.raises(RequestError, match="--trust-module evil:build"):
        open_encoder(model)
    assert "evil" not in sys.modules
    result = tcompress("inspect", model, "--trust-module", f"{_MODULES}:text")
    assert result.exit_code == 2, "trust in one module is no trust in another"


def test_a_factory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"own_modules:nothing: cannot be imported"):
        tcompress.load(f"{_MODULES}:nothing", weights=write_weights("text", tmp_path / "weights"))


def test_masks_of_every_head_are_cut_with_the_heads() -> None:
    torch.manual_seed(0)
    attention = HeadAttention(8, 4, 2)
    x, mask = torch.randn(2, 5, 8), torch.randn(2 * 4, 5, 5)
    whole = attention(x, x, x, attn_mask=mask)[0]
    silent = torch.arange(8).view(4, 2)[[0, 2]].flatten()
    with torch.no_grad():
        attention.out_proj.weight[:, silent] = 0
        expected = attention(x, x, x, attn_mask=mask)[0]
    assert not torch.allclose(whole, expected)
    kept = torch.arange(8).view(4, 2)[[1, 3]].flatten()
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
        linear.weight = torch.nn.Parameter(linear.weight[kept])
        linear.bias = torch.nn.Parameter(linear.bias[kept])
        linear.out_features = 4
    attention.out_proj.weight = torch.nn.Parameter(attention.out_proj.weight[:, kept])
    attention.kept_heads = (1, 3)
    torch.testing.assert_close(attention(x, x, x, attn_mask=mask)[0], expected)


def test_files_of_the_user_stay_where_the_model_is_to_stand(
    tmp_path: Path, readings: Path, tcompress: Callable
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("model.safetensors", "tokenizer.json", "notes.txt"):
        (model / name).write_text(f"my {name}")
    before = contents(model)
    write_weights("sensors", tmp_path / "weights")
    words = ("init", f"{_MODULES}:sensors", "--weights", "weights", "--data", readings)
    refused = tcompress(*words)
    assert refused.exit_code == 2, refused.output
    assert "something else is here already" in refused.stderr
    refused = tcompress(*words, "--force")
    assert refused.exit_code == 2
    assert "with notes.txt in it: move it away" in refused.stderr
    assert contents(model) == before
    assert not list(tmp_path.glob(".tcompress-*"))


def test_a_refused_start_with_a_factory_touches_nothing(
    tmp_path: Path, readings: Path, tcompress: Callable
) -> None:
    write_weights("sensors", tmp_path / "weights")
    words = ("init", f"{_MODULES}:sensors", "--weights", "weights", "--data")
    assert tcompress(*words, readings).exit_code == 0
    before = contents(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").samefile("weights/model.safetensors")
    write_weights("sensors", tmp_path / "others")
    with np.load(readings) as arrays:
        np.savez("wrong.npz", inputs=arrays["inputs"], labels=arrays["labels"] + 7)
    others = ("init", f"{_MODULES}:sensors", "--weights", "others", "--force", "--data")
    assert tcompress(*others, "wrong.npz").exit_code == 5
    assert contents(tmp_path / "model") == before
    assert (tmp_path / "model" / "model.safetensors").samefile("weights/model.safetensors")
    assert tcompress(*words, readings).exit_code == 0, "nothing changed"


def test_the_cached_directory_is_whole_for_each_of_several_processes(tmp_path: Path) -> None:
    weights = write_weights("sensors", tmp_path / "weights")
    (weights / "tokenizer.json").write_text("{}")
    code = (
        "import sys; from pathlib import Path; from tcompress.factories import house\n"
        "for _ in range(20): made = house(sys.argv[1], Path(sys.argv[2]))\n"
        "print(made)"
    )
    words = [sys.executable, "-c", code, f"{_MODULES}:sensors", str(weights)]
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = {process.communicate()[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0, 0]
    (directory,) = map(Path, found)
    assert set(contents(directory)) == {"factory.json", "model.safetensors", "tokenizer.json"}
    (weights / "tokenizer.json").unlink()
    assert house(f"{_MODULES}:sensors", weights) == directory
    assert set(contents(directory)) == {"factory.json", "model.safetensors"}
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


def test_a_stage_is_done_again_when_the_source_of_the_module_changes(
    tmp_path: Path, readings: Path, monkeypatch: pytest.MonkeyPatch, tcompress: Callable
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    helper = tmp_path / "edited_helper.py"
    helper.write_text("ACTIVATION = 'relu'\n")
    (tmp_path / "edited.py").write_text(
        "import own_modules\n\n\ndef build():\n    from edited_helper import ACTIVATION\n"
        "    return own_modules.Tutorial(activation=ACTIVATION)\n"
    )
    import edited

    torch.manual_seed(0)
    (tmp_path / "weights").mkdir()
    save_file(edited.build().state_dict(), tmp_path / "weights" / "model.safetensors")
    ids = np.random.default_rng(0).integers(1, 20, (60, 6))
    np.savez("ids.npz", inputs=ids, labels=ids[:, 0] % 2)
    trust = ("--trust-module", "edited:build")
    names = ("--data", "ids.npz", "--label-map", "0=bad,1=good")
    assert tcompress("init", "edited:build", "--weights", "weights", *names).exit_code == 0
    prune = ("prune", "--criterion", "magnitude", "--no-reconstruct", "--heads", 0.5, *trust)
    assert tcompress(*prune).exit_code == 0
    assert "is up to date" in tcompress(*prune).stderr
    helper.write_text("ACTIVATION = 'gelu'\n")
    with pytest.warns(UserWarning, match=r"the source of edited:build changed since this was made"):
        assert tcompress("export", *trust).exit_code == 0
    stale = tcompress("inspect", "artifacts/prune", *trust).stdout
    assert "stale: since then the model changed" in stale
    again = tcompress(*prune, "--force")
    assert again.exit_code == 0, again.output
    assert "not up to date: the model changed" in again.stderr
    assert "is up to date" in tcompress(*prune).stderr


def test_code_that_a_file_names_is_not_looked_for_either(tmp_path: Path) -> None:
    model = write_weights("text", tmp_path / "model")
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "__init__.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "evil" / "inner.py").write_text("")
    (model / "factory.json").write_text(json.dumps({"factory": "evil.inner:build", "source": "x"}))
    before = model_digest(model)
    (tmp_path / "evil" / "inner.py").write_text("changed = True")
    assert model_digest(model) == before
    assert "evil" not in sys.modules


def test_the_declared_example_of_the_docs_is_scored_and_pruned(
    tmp_path: Path, readings: Path, monkeypatch: pytest.MonkeyPatch, tcompress: Callable
) -> None:
    code = re.search(r"```python\n(.*?)```", _DOCS.read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "my_model.py").write_text(code.group(1))
    monkeypatch.syspath_prepend(tmp_path)
    import my_model

    torch.manual_seed(0)
    (tmp_path / "weights").mkdir()
    save_file(my_model.build().state_dict(), tmp_path / "weights" / "model.safetensors")
    own = ("my_model:build", "--weights", "weights")
    trust = ("--trust-module", "my_model:build")
    for words in (
        ("init", *own, "--data", readings, "--label-map", "0=idle,1=busy"),
        ("score", *trust),
        ("prune", "--heads", 0.5, *trust),
        ("export", *trust),
    ):
        result = tcompress(*words)
        assert result.exit_code == 0, result.output
    pruned = tcompress("inspect", "artifacts/prune", "--json")
    assert sum(json.loads(pruned.stdout)["plan"]["heads"]) == 4
