"""Tiny stock models for the tests of masks."""

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from mlpt.data.vocabulary import Vocabulary
from mlpt.models.masked import attach_scores
from mlpt.sparsity.scores import scores_of_mask
from mlpt.sparsity.structured import by_weight

VOCABULARY = Vocabulary(size=101, pad=0, mask=4, cls=2, sep=3, unk=1)
SIZES = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}


def tiny_bert(seed: int = 0, dropout: float = 0.0) -> BertForMaskedLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(**SIZES, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
        model = BertForMaskedLM(config).eval()
        torch.nn.init.normal_(model.cls.predictions.bias)  # zeros would hide a lost bias
        return model


def tiny_roberta() -> RobertaForMaskedLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RobertaForMaskedLM(RobertaConfig(**SIZES, type_vocab_size=1)).eval()
        torch.nn.init.normal_(model.lm_head.bias)
        return model


def tiny_encoder_of(family: str) -> nn.Module:
    """The stock `...ForMaskedLM` of another family, by its model type; two layers, no dropout while it is evaluated."""
    named = {"distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 101}}
    specials = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3, "embedding_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **named.get(family, SIZES | specials))
        return AutoModelForMaskedLM.from_config(config).eval()


def linear(values: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(values[0]), len(values), bias=False)
    layer.weight = nn.Parameter(torch.tensor(values))
    return layer


def token_batch(rows: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, VOCABULARY.size, (rows, length), generator=generator)
    tokens[:, 0], tokens[:, -1] = VOCABULARY.cls, VOCABULARY.sep
    return tokens


def mask_groups(model: nn.Module, **kept: torch.Tensor) -> None:
    """Mask heads or neurons, (layers, groups) bool, by scores that reproduce them."""
    for kind, mask in kept.items():
        attach_scores(model, {name: scores_of_mask(row) for name, row in by_weight(model, kind, mask).items()})
