import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from .case import Seeds
from .harness import Harness
from .model_files import CONFIG, WEIGHTS, edit
from .processes import Zygote


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory, model_directories: Callable) -> Seeds:
    """Small valid things, made once."""
    root = tmp_path_factory.mktemp("seeds").resolve()
    rng = np.random.default_rng(0)
    places = {kind: root / kind for kind in ("bert", "torch", "embedder")}
    shutil.copytree(model_directories("bert"), places["bert"])
    shutil.copytree(model_directories("torch-pre-norm"), places["torch"])
    _write_embedder(places["bert"], places["embedder"])
    words = ("good", "bad", "great", "dull", "plot", "scene", "very", "not")
    rows = [
        f"the {a} film was {b} and {c},{a in ('good', 'great')}"
        for a in words
        for b in words
        for c in words[:3]
    ]
    texts = root / "texts.csv"
    named = [row.replace(",True", ",good").replace(",False", ",bad") for row in rows]
    texts.write_text("\n".join(("text,label", *named)) + "\n")
    np.savez(
        root / "tensors.npz",
        inputs=rng.standard_normal((60, 6, 5), dtype=np.float32),
        labels=rng.choice(["bad", "good"], 60),
    )
    found = Seeds(
        **places,
        onnx=root / "onnx",
        torchscript=root / "torchscript",
        program=root / "program",
        pruned=root / "pruned",
        texts=texts,
        tensors=root / "tensors.npz",
        workspace=root / "workspace",
        baseline=root / "baseline.json",
        canary=root.parent / "canary",
    )
    with Zygote(tmp_path_factory.mktemp("seeding")) as zygote:
        for line in _lines(found):
            ended = zygote.run(*line)
            assert ended.code == 0, (line, ended)
    return found


def _lines(seeds: Seeds) -> Iterator[tuple[object, ...]]:
    """Yield the command lines that make artifacts of the models."""
    prune = ("--heads", "0.3", "--criterion", "magnitude")
    yield ("prune", "--model", seeds.bert, *prune, "--output", seeds.pruned)
    for kind in ("onnx", "torchscript", "program"):
        place = ("--output", getattr(seeds, kind))
        yield ("export", "--model", seeds.bert, "--format", kind, *place)
    yield ("init", seeds.bert, "--data", seeds.texts, "--workspace", seeds.workspace)
    yield ("prune", *prune, "--workspace", seeds.workspace)
    yield ("export", "--workspace", seeds.workspace)
    asked = ("--data", seeds.texts, "--baseline", seeds.bert)
    yield ("gate", "record", *asked, "--output", seeds.baseline)


def _write_embedder(bert: Path, target: Path) -> None:
    shutil.copytree(bert, target)
    state = load_file(bert / WEIGHTS)
    base = {name[5:]: value for name, value in state.items() if name.startswith("bert.")}
    save_file(base, target / WEIGHTS)
    edit(target / CONFIG, lambda document: document.update(architectures=["BertModel"]))
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (target / "modules.json").write_text(json.dumps(modules))
    for folder in ("1_Pooling", "2_Normalize"):
        (target / folder).mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (target / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


@pytest.fixture(scope="session")
def harness(seeds: Seeds, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    running = Harness(tmp_path_factory.mktemp("harness"), seeds)
    yield running
    running.close()
