import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

# Tiny models on busy machines: a second thread only waits.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from tcompress import worker_process
from tcompress.cli import cli
from tcompress.encoder import Encoder, open_encoder
from tcompress.plan import CompressionPlan, LayerPlan
from tcompress.transformer import ARCHITECTURE_FILE, TransformerClassifier, TransformerSpec

from .engine_forks import Forking

WORDS = [
    "a",
    "the",
    "film",
    "was",
    "good",
    "bad",
    "great",
    "dull",
    "plot",
    "scene",
    "very",
    "not",
    "and",
    "or",
    "but",
    "it",
]
LABELS = ("bad", "good")
_VOCABULARY = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *WORDS]
_SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_SHARED = {
    "vocab_size": len(_VOCABULARY),
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "id2label": dict(enumerate(LABELS)),
    "label2id": {label: i for i, label in enumerate(LABELS)},
    "initializer_range": 0.3,
}
_CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "bert": lambda: BertConfig(**_SIZES, **_SHARED, intermediate_size=48),
    "roberta": lambda: RobertaConfig(**_SIZES, **_SHARED, intermediate_size=48, type_vocab_size=2),
    "electra": lambda: ElectraConfig(**_SIZES, **_SHARED, intermediate_size=48, embedding_size=16),
    "distilbert": lambda: DistilBertConfig(
        dim=32, n_layers=3, n_heads=4, hidden_dim=48, **_SHARED, seq_classif_dropout=0.0
    ),
}
_SPECS = {
    "torch-post-norm": {"positions": "sinusoidal", "activation": "relu"},
    "torch-pre-norm": {"norm_first": True, "positions": "learned", "activation": "gelu"},
    "torch-sequence-first": {"batch_first": False, "pooling": "first", "positions": "none"},
    "torch-no-bias": {"bias": False, "norm_first": True, "batch_first": False},
}
MODEL_KINDS = (*_CONFIGS, *_SPECS)


def pytest_configure() -> None:
    """Give every process of `-n` a CPU of its own: thread pools that share them only wait."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        usable = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {usable[int(worker.removeprefix("gw")) % len(usable)]})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    Forking.allow(item.get_closest_marker("fresh_engines") is None)
    return (yield)


@pytest.fixture(autouse=True, scope="session")
def _forked_engines() -> Iterator[None]:
    worker_process.subprocess = Forking
    yield
    worker_process.subprocess = subprocess
    Forking.close()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def write_transformers_model(kind: str, directory: Path) -> Path:
    """Write a tiny seeded Hugging Face classifier with a tokenizer."""
    torch.manual_seed(0)
    config = _CONFIGS[kind]()
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start as constants
            parameter.add_(0.1 * torch.randn_like(parameter))
    directory.mkdir(parents=True)
    config.to_json_file(str(directory / "config.json"), use_diff=False)
    document = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(document | {"model_type": kind}))
    save_file(model.state_dict(), directory / "model.safetensors")
    _tokenizer().save_pretrained(str(directory))
    return directory


def write_torch_model(kind: str, directory: Path) -> Path:
    """Write a tiny seeded model around nn.TransformerEncoder."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "num_heads": 4, "feed_forward_size": 48, "num_layers": 3}
    spec = TransformerSpec(
        labels=LABELS, feature_size=5, max_positions=24, dropout=0.0, **sizes, **_SPECS[kind]
    )
    model = TransformerClassifier(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    directory.mkdir(parents=True)
    spec.write(directory / ARCHITECTURE_FILE)
    save_file(model.state_dict(), directory / "model.safetensors")
    return directory


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(_VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def model_directories(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("models")

    def get(kind: str) -> Path:
        directory = root / kind
        if not directory.exists():
            write = write_transformers_model if kind in _CONFIGS else write_torch_model
            write(kind, directory)
        return directory

    return get


@pytest.fixture(params=MODEL_KINDS)
def any_encoder(request: pytest.FixtureRequest, model_directories: Callable) -> Encoder:
    """One encoder of every kind, opened afresh."""
    return open_encoder(model_directories(request.param))


@pytest.fixture
def bert(model_directories: Callable) -> Encoder:
    return open_encoder(model_directories("bert"))


@pytest.fixture
def uneven_plan() -> CompressionPlan:
    """Uneven heads and neurons; the middle layer loses its attention, the last one its FFN."""
    return CompressionPlan(
        (
            LayerPlan((0, 2, 3), tuple(range(0, 48, 2))),
            LayerPlan((), tuple(range(5, 40))),
            LayerPlan((3,), ()),
        ),
        source_heads=(4, 4, 4),
        source_neurons=(48, 48, 48),
    )


@pytest.fixture(scope="session")
def reviews_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled sentences made of the tiny vocabulary."""
    rng = np.random.default_rng(0)
    rows = ["text,label"]
    for _ in range(160):
        words = rng.choice(WORDS, size=rng.integers(3, 12))
        label = "good" if sum(w in ("good", "great") for w in words) else "bad"
        rows.append(f"{' '.join(words)},{label}")
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    path.write_text("\n".join(dict.fromkeys(rows)) + "\n")
    return path


@pytest.fixture
def tcompress() -> Callable[..., Result]:
    """Run the command line in this process."""

    def run(*words: object) -> Result:
        return CliRunner().invoke(cli, [str(word) for word in words])

    return run


@pytest.fixture
def text_workspace(
    tmp_path: Path, model_directories: Callable, reviews_file: Path, tcompress: Callable
) -> Path:
    """A workspace on the tiny BERT."""
    directory = tmp_path / "workspace"
    result = tcompress(
        "init", model_directories("bert"), "--data", reviews_file, "--workspace", directory
    )
    assert result.exit_code == 0, result.output
    return directory
