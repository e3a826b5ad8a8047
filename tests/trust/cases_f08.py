"""F8: configurations."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .case import Case, Opens, Seeds
from .model_files import (
    CONFIG,
    Build,
    bert_with,
    copied,
    edit,
    with_config,
    with_config_bytes,
)

_CODE = "never run"
_ARCHITECTURE = "architecture.json"


def _without(key: str) -> Build:
    return bert_with(lambda model: edit(model / CONFIG, lambda document: document.pop(key)))


def _larger(model: Path) -> None:
    with (model / CONFIG).open("r+b") as stream:  # a hole takes no room
        stream.truncate(200_000_000)


def _torch(**changes: Any) -> Build:
    """Build a tiny `TransformerClassifier` with other values in its description."""

    def build(seeds: Seeds, directory: Path) -> Path:
        model = copied(seeds.torch, directory)
        edit(model / _ARCHITECTURE, lambda document: document.update(changes))
        return model

    return build


def _embedder(spoil: Callable[[Path, Any], object]) -> Build:
    """Build a sentence-transformers directory with other modules."""

    def build(seeds: Seeds, directory: Path) -> Path:
        model = copied(seeds.embedder, directory)
        edit(model / "modules.json", lambda rows: spoil(model, rows))
        return model

    return build


def _module(model: Path, rows: Any, kind: str, config: str) -> None:
    folder = f"{len(rows)}_{kind}"
    row = {"idx": len(rows), "name": str(len(rows)), "path": folder}
    rows.append(row | {"type": f"sentence_transformers.models.{kind}"})
    (model / folder).mkdir()
    (model / folder / CONFIG).write_text(config)


def _dense(model: Path, rows: Any) -> None:
    sizes = '{"in_features": 1000000000, "out_features": 1000000000, "bias": true, '
    _module(model, rows, "Dense", sizes + '"activation_function": "torch.nn.Tanh"}')
    weights = (model / "model.safetensors").read_bytes()
    (model / str(rows[-1]["path"]) / "model.safetensors").write_bytes(weights)


def _linked_module(model: Path, rows: Any) -> None:
    folder = model.parent / "elsewhere"
    folder.mkdir()
    (folder / CONFIG).write_text('{"pooling_mode": "cls"}')
    (model / "9_Pooling").symlink_to(folder)
    rows.append({"idx": 9, "name": "9", "path": "9_Pooling", "type": "any.Pooling"})


def _fifo(model: Path) -> None:
    (model / CONFIG).unlink()
    os.mkfifo(model / CONFIG)


def _device(model: Path) -> None:
    (model / CONFIG).unlink()
    (model / CONFIG).symlink_to("/dev/zero")


def _strange_images(size: Any) -> Build:
    return with_config(image_size=size, patch_size=size)


def _refused(name: str, build: Build, says: str) -> Case:
    return Case(name, "F8", Opens.MODEL, build, says=says)


def _works(name: str, build: Build) -> Case:
    return Case(name, "F8", Opens.MODEL, build, codes=frozenset({0}), accepted=True)


_BILLION = 1_000_000_000
_NUMBER = "must be a whole number from 1"
CASES = (
    _refused("auto_map", with_config(auto_map={"AutoModel": "code.Model"}), _CODE),
    _refused("trust_remote_code", with_config(trust_remote_code=True), _CODE),
    _refused("attention of its own", with_config(_attn_implementation_internal="a/b"), _CODE),
    _refused("attention from the Hub", with_config(_attn_implementation="a/b:c"), "never fetched"),
    _refused("custom_pipelines", with_config(custom_pipelines={"x": {"impl": "x.X"}}), _CODE),
    _refused("another configuration", with_config(configuration_files=["../../x"]), "in its place"),
    _refused(
        "modules of a quantization",
        with_config(quantization_config={"quant_method": "x", "modules": ["os.system"]}),
        "another library packed the weights",
    ),
    *(
        _works(f"images of {size!r} in a model of texts", _strange_images(size))
        for size in (5, [], [None], {}, "../..", 1e308)
    ),
    _works("keys of code that are empty", with_config(auto_map={}, trust_remote_code=False)),
    _works("tuples as outputs", with_config(return_dict=False, torchscript=True)),
    _works("all outputs", with_config(output_attentions=True, output_hidden_states=True)),
    _works("name with markup", with_config(_name_or_path="[/red]\x1b[31m<script>")),
    _refused("10^9 layers", with_config(num_hidden_layers=_BILLION), "at most 100,000"),
    _refused("99,999 layers", with_config(num_hidden_layers=99_999), "99,999 layers"),
    _refused("no layers", with_config(num_hidden_layers=0), _NUMBER),
    _refused("vocabulary of 10^9", with_config(vocab_size=_BILLION), "describes a model of"),
    _refused("width of 10^9", with_config(hidden_size=_BILLION), "describes a model of"),
    _refused("10^9 neurons", with_config(intermediate_size=_BILLION), "describes a model of"),
    _refused("10^9 types", with_config(type_vocab_size=_BILLION), "describes a model of"),
    _refused(
        "10^9 positions", with_config(max_position_embeddings=_BILLION), "describes a model of"
    ),
    _refused("heads that do not divide", with_config(num_attention_heads=5), "do not divide"),
    _refused("10^9 heads", with_config(num_attention_heads=_BILLION), "do not divide"),
    _refused("no heads", with_config(num_attention_heads=0), _NUMBER),
    _refused("negative heads", with_config(num_attention_heads=-4), _NUMBER),
    _refused("heads as text", with_config(num_attention_heads="4"), _NUMBER),
    _refused("fractional width", with_config(hidden_size=32.5), _NUMBER),
    _refused("true layers", with_config(num_hidden_layers=True), _NUMBER),
    _refused("10^9 labels", with_config(id2label=None, num_labels=_BILLION), "at most 100,000"),
    _refused(
        "more labels than the classifier has",
        with_config(id2label={str(i): f"x{i}" for i in range(3)}, num_labels=3),
        "the model expects (3",
    ),
    _refused("gap in id2label", with_config(id2label={"0": "a", "2": "b"}), "id2label"),
    _refused("one label twice", with_config(id2label={"0": "a", "1": "a"}), "id2label"),
    _refused("words as keys", with_config(id2label={"a": "0", "b": "1"}), "numbers of classes"),
    _refused("list of labels", with_config(id2label=["a", "b"]), "'id2label' must"),
    _refused("pruned layer that is not there", with_config(pruned_heads={"7": [0]}), "layer 7"),
    _refused("pruned head that is not there", with_config(pruned_heads={"0": [9]}), "heads [9]"),
    _refused("all heads pruned", with_config(pruned_heads={"0": [0, 1, 2, 3]}), "pruned_heads"),
    _refused("words as pruned layers", with_config(pruned_heads={"x": [0]}), "config.json"),
    _refused("list of pruned heads", with_config(pruned_heads=[[0]]), "config.json"),
    _refused("type of numbers 'object'", with_config(torch_dtype="object"), "'torch_dtype' must"),
    _refused("type of numbers as list", with_config(dtype=["float32"]), "'dtype' must"),
    _refused("path as model type", with_config(model_type="../"), "'model_type' must"),
    _refused("list as model type", with_config(model_type=["bert"]), "'model_type' must"),
    _refused("number of architectures", with_config(architectures=30), "'architectures' must"),
    Case(
        "list of problems",
        "F8",
        Opens.MODEL,
        with_config(problem_type=[]),
        codes=frozenset({0, 5}),
        accepted=True,
    ),
    _refused("no model type", _without("model_type"), "'model_type' must"),
    _refused("model type of another kind", with_config(model_type="timm_wrapper"), "no encoder"),
    _refused("unknown activation", with_config(hidden_act="os.system"), "config.json"),
    _refused("norm of a word", with_config(layer_norm_eps="small"), "must be a number from 0"),
    _refused("dropout of 7", with_config(hidden_dropout_prob=7), "config.json"),
    _refused(
        "UTF-16",
        with_config_bytes(lambda raw: raw.decode().encode("utf-16")),
        "utf-16, expected UTF-8",
    ),
    _refused("200 MB", bert_with(_larger), "larger than"),
    _refused(
        "NaN", with_config_bytes(lambda raw: b'{"a": NaN, ' + raw.lstrip()[1:]), "not valid JSON"
    ),
    _refused("truncated", with_config_bytes(lambda raw: raw[:-9]), "not valid JSON"),
    _refused("list", with_config_bytes(lambda raw: b"[" + raw + b"]"), "expected an object"),
    _refused("100,000 deep", with_config_bytes(lambda raw: b'{"a":' * 100_000), "deep"),
    _refused("FIFO", bert_with(_fifo), "FIFO"),
    _refused("device", bert_with(_device), "leads out of its directory"),
    _refused("10^9 layers of torch", _torch(num_layers=_BILLION), "layers, its weights"),
    _refused("10^9 torch positions", _torch(max_positions=_BILLION), "describes a model of"),
    _refused("torch neurons of 10^12", _torch(feed_forward_size=10**12), "describes a model of"),
    _refused("negative torch vocabulary", _torch(vocab_size=-(2**63)), "one is positive and one 0"),
    _refused("fractional torch width", _torch(d_model=32.0), "whole numbers"),
    _refused("negative torch dropout", _torch(dropout=-1), "dropout must be"),
    _refused("text as torch size", _torch(num_heads="4"), "whole numbers"),
    _refused("dense layer of 10^18", _embedder(_dense), "'linear.weight' must have shape"),
    _refused("module that leads out", _embedder(_linked_module), "leads out of its directory"),
)
