"""Tiny models of BERT and its closest relatives."""

from transformers import (
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from .family_fixture import ANSWERS, INITIALIZER, SIZES, TEXT, hugging_face

SHARED = {**TEXT, **SIZES, **ANSWERS, **INITIALIZER}

FIXTURES = (
    hugging_face(lambda: BertConfig(**SHARED)),
    hugging_face(lambda: RobertaConfig(**SHARED, type_vocab_size=2)),
    hugging_face(lambda: XLMRobertaConfig(**SHARED, type_vocab_size=1)),
    hugging_face(lambda: CamembertConfig(**SHARED, type_vocab_size=1)),
    hugging_face(
        lambda: DistilBertConfig(
            **TEXT, **ANSWERS, **INITIALIZER, dim=32, n_layers=3, n_heads=4, hidden_dim=48
        )
    ),
    hugging_face(lambda: ElectraConfig(**SHARED, embedding_size=16)),
)
