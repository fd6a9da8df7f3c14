"""Tiny models with trained tokenizers whose words have several tokens, as suites measure them."""

from functools import cache

import torch
from transformers import PreTrainedTokenizerFast

from mlpt.data.tokenizers import train_tokenizer
from mlpt.data.vocabulary import Vocabulary
from mlpt.downstream.subject import Subject
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import Encoder, build_encoder

TEXTS = [
    "the traveler lost the souvenir near the old bridge.",
    "a small river runs under the green hill, and the water is cold.",
    "who should they help after visiting the traveler's house?",
    "travelers bought souvenirs; the rivers ran over stones.",
]
SENTENCES = [
    "the traveler lost the souvenirs.",
    "the travelers lost the souvenir.",
    "who runs?",
    "under the bridge, the travelers' unbelievable rivers ran",
    "hill",
]
ROOM = 48


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A WordPiece or byte-level BPE vocabulary so small that most words are cut."""
    return train_tokenizer(kind, lambda: iter(TEXTS), {"wordpiece": 100, "bpe": 300}[kind])


def tiny_encoder(architecture: str, kind: str, seed: int = 0) -> Encoder:
    """Two layers x 32 whose answers depend strongly on what they see."""
    config = ModelConfig(
        architecture=architecture, hidden_size=32, layers=2, heads=2, intermediate_size=64, attention="eager"
    )
    encoder = build_encoder(config, Vocabulary.of(tokenizer(kind)), {}, ROOM, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in encoder.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.3, generator=generator)
    return encoder


def tiny_subject(architecture: str = "bert", kind: str = "wordpiece", seed: int = 0) -> Subject:
    return Subject.of(
        f"tiny {architecture}", tiny_encoder(architecture, kind, seed), tokenizer(kind), torch.device("cpu")
    )


@torch.no_grad()
def one_at_a_time(subject, sentence, masking, max_length=None):
    """The published sum: each token's log-probability where it (and the rest of its word) is masked."""
    encoded = subject.tokenizer(sentence, truncation=max_length is not None, max_length=max_length, return_tensors="pt")
    words = encoded.word_ids(0)
    ids = encoded["input_ids"]
    total, scored = 0.0, 0
    for position, word in enumerate(words):
        if word is None or int(ids[0, position]) in subject.vocabulary.special_ids:
            continue
        masked = ids.clone()
        masked[0, position] = subject.vocabulary.mask
        if masking == "within_word":
            for later in range(position + 1, len(words)):
                if words[later] == word:
                    masked[0, later] = subject.vocabulary.mask
        logits = subject.encoder.backbone(input_ids=masked).logits[0, position].double()
        total += float(logits.log_softmax(0)[ids[0, position]])
        scored += 1
    return total, scored
