"""Pseudo-log-likelihood of sentences by a masked language model: the sum over tokens of log p(token | the others).

`plain` masks one token at a time (Salazar et al., 2020, equation 2). `within_word` also masks the later tokens of the
same word (Kauf and Ivanova, 2023, PLL-word-l2r), because a token's own continuation gives it away.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mlpt.downstream.side_by_side import side_by_side
from mlpt.downstream.subject import Precision, Subject
from mlpt.errors import UserError
from mlpt.models.last_layer import HiddenAt, knows_last_layer, reading_few
from mlpt.objectives.base import Inputs

Masking = Literal["within_word", "plain"]
TooLong = Literal["refuse", "truncate"]
Progress = Callable[[int, int], None]  # (done, of all)
_CHUNK = 16384  # sentences tokenised at once: bounds the memory of the tokenizer's Python lists
_LOGITS = 1 << 25  # numbers of the head's output at once: 128 MiB of float32
_SPACE = re.compile(r"[^\S\x0b\x0c\x1c-\x1f\x85]")  # without the controls that BERT deletes
_COPIES = 1 << 24  # tokens of masked copies that are compared with each other: 128 MiB of int64


@dataclass(frozen=True)
class SentenceScores:
    """values     (n,) float64 nats, the pseudo-log-likelihood of each sentence.
    tokens     (n,) int64, how many tokens were scored.
    truncated  sentences that were cut to the model's length.
    unknown    tokens that were not scored because the vocabulary doesn't have them.
    """

    values: np.ndarray
    tokens: np.ndarray
    truncated: int
    unknown: int


@dataclass(frozen=True)
class _Copies:
    """Sentences of one length with the masked copies that score them.

    ids      (sentences, length) int64.
    numbers  (sentences,) place of each sentence among all.
    row, position, end   (copies,) int64: the sentence, the token to predict, and where masking ends (exclusive).
    """

    ids: np.ndarray
    numbers: np.ndarray
    row: np.ndarray
    position: np.ndarray
    end: np.ndarray


@dataclass
class _Encoded:
    """One sentence: token ids, the word of each token (-1: of none), and whether it is scored."""

    ids: np.ndarray
    words: np.ndarray
    scored: np.ndarray
    unknown: int
    truncated: bool


def score_sentences(
    subject: Subject,
    sentences: Sequence[str],
    masking: Masking = "within_word",
    too_long: TooLong = "refuse",
    tokens_per_batch: int = 8192,
    precision: Precision = "float32",
    progress: Progress = lambda done, total: None,
) -> SentenceScores:
    """Pseudo-log-likelihoods of `sentences`, equal ones scored once.

    Special tokens, the unknown one included, are in the context and never scored. Masked copies go through the model in
    batches of one length, so nothing is padded, at most `tokens_per_batch` tokens at a time; only the predicted
    positions reach the head. Copies that are equal (the two sentences of a pair often share one) go through once.

    too_long   a sentence beyond the model's length is an error (`UserError`) or is cut, and counted.
    precision  "float32", "bf16" (autocast; probabilities are still computed in float32), or "auto" (`Subject`).
    Raises `UserError` for such a sentence, and for a model whose predictions are not finite.
    """
    distinct = list(dict.fromkeys(sentences))
    place = {sentence: number for number, sentence in enumerate(distinct)}
    encoded = list(_encode(subject, distinct, too_long))
    groups = _group(encoded, masking)
    total = sum(len(group.row) * group.ids.shape[1] for group in groups)
    done = 0
    sums = np.zeros(len(distinct))
    with reading_few(subject.encoder) as hidden_at:
        batches = (batch for group in groups for batch in _batches(group, subject.vocabulary.mask, tokens_per_batch))
        at_once = None if subject.device.type == "cpu" and knows_last_layer(subject.encoder) else 1
        work = partial(_log_probabilities, subject, hidden_at, precision)
        for batch, logs in side_by_side(lambda batch: (batch, work(batch)), batches, at_once):
            np.add.at(sums, batch.sentences, logs)
            done += len(logs) * batch.inputs.shape[1]
            progress(done, total)
    if not np.isfinite(sums).all():
        raise UserError(f"what {subject.name} predicts are not numbers: its weights are damaged, or it diverged")
    order = np.array([place[sentence] for sentence in sentences], dtype=np.int64)
    counts = np.array([int(one.scored.sum()) for one in encoded], dtype=np.int64)
    truncated = sum(encoded[number].truncated for number in order)
    unknown = sum(encoded[number].unknown for number in order)
    return SentenceScores(sums[order], counts[order], truncated, unknown)


def _encode(subject: Subject, sentences: Sequence[str], too_long: TooLong) -> Iterator[_Encoded]:
    tokenizer, room = subject.tokenizer, subject.room
    special = np.zeros(subject.vocabulary.size, dtype=bool)
    special[list(subject.vocabulary.special_ids)] = True
    for start in range(0, len(sentences), _CHUNK):
        chunk = sentences[start : start + _CHUNK]
        batch = tokenizer(chunk, return_attention_mask=False, return_token_type_ids=False)
        lengths = [len(ids) for ids in batch["input_ids"]]
        cut = [room is not None and length > room for length in lengths]
        if any(cut):
            longest = lengths.index(max(lengths))
            if too_long == "refuse":
                raise UserError(
                    f"a sentence has {lengths[longest]} tokens and the model takes {room} "
                    f"('{chunk[longest][:40]}...'); set too_long=truncate to cut such sentences"
                )
            batch = tokenizer(
                chunk, truncation=True, max_length=room, return_attention_mask=False, return_token_type_ids=False
            )
        for number, ids in enumerate(batch["input_ids"]):
            ids = np.array(ids, dtype=np.int64)
            words = _words(chunk[number], batch.word_ids(number), batch.encodings[number].offsets)
            is_unknown = (ids == subject.vocabulary.unk) & (words >= 0)
            words[special[ids] & ~is_unknown] = -1
            scored = (words >= 0) & ~special[ids]
            yield _Encoded(ids, words, scored, int(is_unknown.sum()), cut[number])


def _words(text: str, word_ids: Sequence[int | None], offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """The word of each token, (length,) int64; -1: of none.

    What a tokenizer calls a word is the whole sentence where it looks for none (Gemma's, SentencePiece without
    splitting), so words also begin behind whitespace.
    """
    words = [-1] * len(offsets)
    number = -1
    for word, group in groupby(range(len(offsets)), key=lambda token: word_ids[token]):
        if word is None:
            continue
        number += 1
        end: int | None = None  # of the letters so far
        blank = []  # tokens without letters, which belong to the word behind them
        for token in group:
            start, stop = offsets[token]
            piece = text[start:stop]
            if not piece.strip():
                blank.append(token)
                continue
            if end is not None and _SPACE.search(text, end, stop - len(piece.lstrip())):
                number += 1
            for one in (*blank, token):
                words[one] = number
            end, blank = start + len(piece.rstrip()), []
        for one in blank:
            words[one] = number
    return np.array(words, dtype=np.int64)


def _group(encoded: Sequence[_Encoded], masking: Masking) -> list[_Copies]:
    """Sentences by their length, the longest first: the first batch shows whether memory suffices."""
    lengths = np.array([len(one.ids) for one in encoded], dtype=np.int64)
    groups = []
    for length in sorted(set(lengths.tolist()), reverse=True):
        of_length = np.flatnonzero(lengths == length)
        size = max(1, _COPIES // length**2)
        for start in range(0, len(of_length), size):
            numbers = of_length[start : start + size]
            ids = np.stack([encoded[number].ids for number in numbers])
            words = np.stack([encoded[number].words for number in numbers])  # (sentences, length)
            row, position = np.nonzero(np.stack([encoded[number].scored for number in numbers]))
            ends = position + 1 if masking == "plain" else _word_ends(words)[row, position]
            groups.append(_Copies(ids, numbers, row, position, ends))
    return groups


def _word_ends(words: np.ndarray) -> np.ndarray:
    """Where the word of each token ends (exclusive): (sentences, length) int64, read from the right."""
    ends = np.empty_like(words)
    length = words.shape[1]
    for position in range(length - 1, -1, -1):
        ends[:, position] = position + 1
        if position + 1 < length:
            same = words[:, position] == words[:, position + 1]
            ends[same, position] = ends[same, position + 1]
    return ends


@dataclass(frozen=True)
class _Batch:
    """What goes through the model at once.

    inputs     (batch, length) int64, all different.
    positions  (batch,) int64, where each is predicted.
    row        (copies,) int64, ascending: the row of `inputs` that a copy is equal to.
    targets    (copies,) int64: the token that stands there in the copy's own sentence.
    sentences  (copies,) int64: the sentence that the copy scores.
    """

    inputs: Tensor
    positions: Tensor
    row: Tensor
    targets: Tensor
    sentences: np.ndarray


def _batches(group: _Copies, mask: int, tokens: int) -> Iterator[_Batch]:
    """Batches of at most `tokens` tokens; every copy comes once."""
    length = group.ids.shape[1]
    columns = np.arange(length)
    first, of_copy = _distinct(group, mask, columns)  # (distinct,), (copies,)
    by_input = np.argsort(of_copy, kind="stable")
    edges = np.searchsorted(of_copy[by_input], np.arange(len(first) + 1))
    step = max(1, tokens // length)
    for start in range(0, len(first), step):
        chosen = first[start : start + step]
        copies = by_input[edges[start] : edges[min(start + step, len(first))]]
        yield _Batch(
            torch.from_numpy(_masked(group, chosen, mask, columns)),
            torch.from_numpy(group.position[chosen]),
            torch.from_numpy(of_copy[copies] - start),
            torch.from_numpy(group.ids[group.row[copies], group.position[copies]]),
            group.numbers[group.row[copies]],
        )


def _distinct(group: _Copies, mask: int, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One copy of each distinct (masked input, position), and for each copy the number of that one."""
    every = np.arange(len(group.row))
    keys = np.concatenate([_masked(group, every, mask, columns), group.position[:, None]], axis=1).astype(np.int32)
    rows = np.ascontiguousarray(keys).view(np.dtype((np.void, keys.itemsize * keys.shape[1]))).ravel()
    _, first, of_copy = np.unique(rows, return_index=True, return_inverse=True)
    return first, of_copy


def _masked(group: _Copies, copies: np.ndarray, mask: int, columns: np.ndarray) -> np.ndarray:
    """(copies, length) int64: the sentences with the mask token in place of what is predicted or hidden."""
    hidden = (columns >= group.position[copies, None]) & (columns < group.end[copies, None])
    return np.where(hidden, mask, group.ids[group.row[copies]])


@torch.inference_mode()
def _log_probabilities(subject: Subject, hidden_at: HiddenAt, precision: Precision, batch: _Batch) -> np.ndarray:
    """log p of the target of each copy: (copies,) float64 nats."""
    device = subject.device
    count, length = batch.inputs.shape
    rows = max(1, _LOGITS // subject.encoder.config.vocab_size)
    starts = list(range(0, count, rows))
    edges = torch.searchsorted(batch.row, torch.tensor([*starts, count])).tolist()
    flat = (torch.arange(count) * length + batch.positions).to(device, non_blocking=True)
    row, targets = batch.row.to(device, non_blocking=True), batch.targets.to(device, non_blocking=True)
    parts = []
    with subject.autocast(precision):
        hidden = hidden_at(Inputs(batch.inputs.to(device, non_blocking=True)), flat)  # (batch, hidden)
        for number, start in enumerate(starts):
            logits = subject.encoder.token_logits(hidden[start : start + rows]).float()  # (rows, vocabulary)
            wanted = slice(edges[number], edges[number + 1])
            at = row[wanted] - start
            parts.append(logits[at, targets[wanted]] - logits.logsumexp(1)[at])
    return torch.cat(parts).double().cpu().numpy()
