"""What a family's tiny models are made of."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tcompress.data import Examples

WORDS = [
    "a", "the", "film", "was", "good", "bad", "great", "dull",
    "plot", "scene", "very", "not", "and", "or", "but", "it",
]  # fmt: skip
VOCABULARY = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", *WORDS)
LABELS = ("bad", "good")
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
# Weights as large as those of a trained model, or no head would matter.
INITIALIZER = {"initializer_range": 0.3}
ANSWERS = {
    "id2label": dict(enumerate(LABELS)),
    "label2id": {label: i for i, label in enumerate(LABELS)},
}
TEXT = {
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


@dataclass(frozen=True)
class FamilyFixture:
    """A family's tiny model and data for it.

    Attributes:
        name: Name of its row in the support table.
        model_type: Of the configuration; None where torch itself is the library.
        write: Writes a model directory from a seed.
        examples: Makes so many labelled examples of several lengths.
        reference: Opens a directory as its own library does: logits from named inputs.
        limitations: What the row of the support table says beside its cells.
    """

    name: str
    model_type: str | None
    write: Callable[[Path, int], None]
    examples: Callable[[int], Examples]
    reference: Callable[[Path], Callable[[dict[str, Tensor]], Tensor]]
    limitations: str = ""


def hugging_face(
    config: Callable[[], PretrainedConfig],
    *,
    model_class: type[PreTrainedModel] | type = AutoModelForSequenceClassification,
    preparation: Callable[[Path], None] | None = None,
    examples: Callable[[int], Examples] | None = None,
    limitations: str = "",
) -> FamilyFixture:
    """Describe a family of transformers.

    Args:
        config: Makes the configuration.
        model_class: The auto class of its classifiers.
        preparation: Writes the tokenizer or image configuration; a tokenizer by default.
        examples: See `FamilyFixture`; sentences by default.
        limitations: See `FamilyFixture`.
    """

    def write(directory: Path, seed: int) -> None:
        torch.manual_seed(seed)
        model = model_class.from_config(config())
        stir_(model)
        model.save_pretrained(directory)
        (preparation or write_tokenizer)(directory)

    def reference(directory: Path) -> Callable[[dict[str, Tensor]], Tensor]:
        model = model_class.from_pretrained(str(directory), local_files_only=True).eval()
        return lambda inputs: model(**inputs).logits

    name = config().model_type
    return FamilyFixture(name, name, write, examples or sentences, reference, limitations)


def stir_(model: nn.Module) -> None:
    """Move every parameter a little, in place: biases and norms start as constants."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def sentences(count: int) -> Examples:
    """Make labelled sentences of 1 to 9 words that differ, the shortest first."""
    rng = np.random.default_rng(0)
    texts = tuple(
        f"{' '.join(rng.choice(WORDS, 1 + i % 9))} {WORDS[i % len(WORDS)]}" for i in range(count)
    )
    labels = tuple(LABELS["good" in text or "great" in text] for text in texts)
    return Examples("sentences", tuple(map(str, range(count))), labels=labels, texts=texts)


def arrays(*shape: int) -> Callable[[int], Examples]:
    """Return a maker of labelled arrays without padding.

    Args:
        shape: Of one example.
    """

    def make(count: int) -> Examples:
        rng = np.random.default_rng(0)
        inputs = rng.standard_normal((count, *shape), dtype=np.float32)
        bright = inputs.reshape(count, -1).mean(1) > 0
        labels = tuple(LABELS[int(value)] for value in bright)
        return Examples("arrays", tuple(map(str, range(count))), labels=labels, inputs=inputs)

    return make


def write_tokenizer(directory: Path) -> None:
    """Write a tokenizer of the tiny vocabulary, with RoBERTa's padding id."""
    vocabulary = {word: i for i, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(str(directory))
