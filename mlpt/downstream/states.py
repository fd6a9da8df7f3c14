"""Frozen states of an encoder: one vector a text, or one a word, from any layer."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mlpt.downstream.subject import Precision, Subject
from mlpt.errors import UserError
from mlpt.objectives.base import Inputs
from mlpt.tasks.batching import passes
from mlpt.tasks.features import Features

Pooling = Literal["mean", "first"]
Progress = Callable[[int, int], None]
_ROWS_A_PASS = 128


def layer_states(subject: Subject, inputs: Inputs, layer: int | None) -> Tensor:
    """(batch, length, hidden) float32 states of `layer`: 0 the embeddings, n the n-th layer's output, -1 the last one's
    as in a list; None what the model's head sees (the last layer's, after a final norm where there is one).

    Raises `UserError` for a layer that the model doesn't have.
    """
    if layer is None:
        return subject.encoder.hidden(inputs).float()
    states = subject.encoder.hidden_states(inputs)
    if not -len(states) <= layer < len(states):
        raise UserError(f"{subject.name} has layers 0 (embeddings) to {len(states) - 1}, not {layer}")
    return states[layer].float()


@torch.inference_mode()
def text_states(
    subject: Subject,
    features: Features,
    pooling: Pooling,
    layer: int | None,
    tokens: int,
    precision: Precision,
    progress: Progress = lambda done, total: None,
) -> np.ndarray:
    """(rows, hidden) float32: the mean over each row's tokens (special ones included), or its first token's state."""
    parts, order, done = [], [], 0
    for rows in passes(np.arange(len(features)), features.lengths, tokens, _ROWS_A_PASS):
        batch = features.batch(rows, subject.device)
        mask = batch.get("attention_mask")
        inputs = Inputs(
            batch["input_ids"], None if mask is None else mask.bool(), token_types=batch.get("token_type_ids")
        )
        with subject.autocast(precision):
            states = layer_states(subject, inputs, layer)  # (batch, length, hidden)
        parts.append(_pooled(states, inputs.attention_mask, pooling).cpu().numpy())
        order.append(rows)
        done += len(rows)
        progress(done, len(features))
    return np.concatenate(parts)[np.argsort(np.concatenate(order), kind="stable")]


def _pooled(states: Tensor, mask: Tensor | None, pooling: Pooling) -> Tensor:
    """(batch, hidden) of `states` (batch, length, hidden); `mask` (batch, length) is True at real tokens."""
    if pooling == "first":
        return states[:, 0]
    if mask is None:
        return states.mean(1)
    return (states * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)


@torch.inference_mode()
def word_states(
    subject: Subject,
    texts: Sequence[str],
    spans: Sequence[Sequence[tuple[int, int]]],
    layer: int | None,
    tokens: int,
    precision: Precision,
    progress: Progress = lambda done, total: None,
) -> tuple[np.ndarray, np.ndarray]:
    """The mean state of the tokens of each word.

    spans  for each text, the characters (start, end) of its words; a token belongs to each word that it overlaps.
    Returns (all words, hidden) float32 in the order of texts and words, and (all words,) bool: False, with a state of
    zeros, where no token belongs to the word, because the text was cut to the model's length or the letters are unknown
    to the tokenizer's normaliser.
    """
    batch = subject.tokenizer(
        list(texts),
        truncation=subject.room is not None,
        max_length=subject.room,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    lengths = np.array([len(ids) for ids in batch["input_ids"]])
    begins = np.concatenate([[0], np.cumsum([len(one) for one in spans])])
    out = np.zeros((begins[-1], subject.encoder.config.hidden_size), dtype=np.float32)
    found = np.zeros(begins[-1], dtype=bool)
    done = 0
    for rows in passes(np.arange(len(texts)), lengths, tokens, _ROWS_A_PASS):
        longest = int(lengths[rows].max())
        ids = np.full((len(rows), longest), subject.vocabulary.pad, dtype=np.int64)
        for place, row in enumerate(rows):
            ids[place, : lengths[row]] = batch["input_ids"][row]
        real = np.arange(longest) < lengths[rows, None]
        mask = None if real.all() else torch.from_numpy(real).to(subject.device)
        with subject.autocast(precision):
            states = layer_states(subject, Inputs(torch.from_numpy(ids).to(subject.device), mask), layer)
        values = states.cpu().numpy()  # (batch, length, hidden)
        for place, row in enumerate(rows):
            owned = _overlaps(batch["offset_mapping"][row], batch["special_tokens_mask"][row], spans[row])
            counts = owned.sum(1)
            words = slice(begins[row], begins[row + 1])
            out[words] = owned @ values[place, : lengths[row]] / np.maximum(counts, 1)[:, None]
            found[words] = counts > 0
        done += len(rows)
        progress(done, len(texts))
    return out, found


def _overlaps(
    offsets: Sequence[tuple[int, int]], special: Sequence[int], spans: Sequence[tuple[int, int]]
) -> np.ndarray:
    """(words, tokens) float32: 1 where a token's characters overlap a word's."""
    token = np.array(offsets).reshape(-1, 2)
    word = np.array(spans).reshape(-1, 2)
    inside = (token[None, :, 0] < word[:, None, 1]) & (token[None, :, 1] > word[:, None, 0])
    return (inside & (np.array(special) == 0)[None]).astype(np.float32)
