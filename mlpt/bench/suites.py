"""Pseudo-log-likelihoods against the straightforward way: one sentence's masked copies at a time, with full logits.

Same model (BERT 4 x 256, vocabulary 8,192) and sentences on both sides: short ones of the embedded documentation.
"""

import re

import torch

from mlpt.bench.harness import Row, machine, peak_bytes, seconds_interleaved
from mlpt.data.tokenizers import train_tokenizer
from mlpt.data.vocabulary import Vocabulary
from mlpt.downstream.pseudo_likelihood import Masking, score_sentences
from mlpt.downstream.subject import Precision, Subject
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import build_encoder
from mlpt.models.quiet import quiet
from mlpt.tasks import TaskSource, load_task

LAYERS, HIDDEN, VOCABULARY, ROOM = 4, 256, 8192, 128
SENTENCES = 400
WORDS = (5, 14)  # of a sentence, fewest and most: about the lengths of BLiMP's
ROUNDS = 3


def run() -> list[Row]:
    """Sentences per second in float32 with either masking and in bf16, each against the peer's float32 `plain` way."""
    texts = [row.first for row in load_task("docs_package", TaskSource()).splits["train"]]
    sentences = _sentences(texts)
    tokenizer = train_tokenizer("wordpiece", lambda: iter(texts), VOCABULARY)
    config = ModelConfig(architecture="bert", hidden_size=HIDDEN, layers=LAYERS, heads=4)
    subject = Subject.of("bench", build_encoder(config, Vocabulary.of(tokenizer), {}, ROOM, seed=0), tokenizer)

    def ours(masking: Masking, precision: Precision) -> None:
        score_sentences(subject, sentences, masking, precision=precision)

    with quiet():
        plain, within, rough, peer = seconds_interleaved(
            lambda: ours("plain", "float32"),
            lambda: ours("within_word", "float32"),
            lambda: ours("plain", "bf16"),
            lambda: [one_sentence_at_a_time(subject, sentence) for sentence in sentences],
            rounds=ROUNDS,
        )
    return [
        _row("plain masking, float32", len(sentences), plain, peer),
        _row("masking the rest of the word, float32", len(sentences), within, peer),
        _row("plain masking, bf16 autocast", len(sentences), rough, peer),
    ]


@torch.inference_mode()
def one_sentence_at_a_time(subject: Subject, sentence: str) -> float:
    """The peer: all masked copies of one sentence as a batch through the stock model with its full logits."""
    ids = subject.tokenizer(sentence, return_tensors="pt")["input_ids"].to(subject.device)  # (1, length)
    positions = torch.arange(1, ids.shape[1] - 1, device=subject.device)
    copies = ids.repeat(len(positions), 1)
    rows = torch.arange(len(positions), device=subject.device)
    copies[rows, positions] = subject.vocabulary.mask
    logs = subject.encoder.backbone(input_ids=copies).logits.log_softmax(-1)  # (copies, length, vocabulary)
    return float(logs[rows, positions, ids[0, positions]].sum())


def _sentences(texts: list[str]) -> list[str]:
    found = dict.fromkeys(part for text in texts for part in re.split(r"(?<=[.!?])\s+", text))
    return [one for one in found if WORDS[0] <= len(one.split()) <= WORDS[1]][:SENTENCES]


def _row(name: str, sentences: int, ours: float, peer: float) -> Row:
    return Row("suites", name, sentences / ours, sentences / peer, peer / ours, "sentences/s", peak_bytes(), machine())
