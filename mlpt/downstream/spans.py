"""Answers out of start and end scores, as BERT's SQuAD script reads them: best pairs over all windows of a context."""

from collections.abc import Sequence

import numpy as np

from mlpt.tasks import Example
from mlpt.tasks.features import Features, SpanConfig

Scored = tuple[str, float]  # an answer and its score, the sum of a start and an end logit


def best_answers(
    examples: Sequence[Example], features: Features, outputs: np.ndarray, config: SpanConfig, may_be_empty: bool
) -> list[list[Scored]]:
    """For each example its answers, best first, at most `n_best`; there is always one.

    `outputs` are start and end logits, (all tokens, 2) float32, in the order of `features.tokens`.
    `may_be_empty` (SQuAD v2): the empty answer, scored by the [CLS] position of its least certain window, comes first
    where it exceeds the best span by more than `null_threshold`.
    """
    found: list[list[Scored]] = [[] for _ in examples]
    null = np.full(len(examples), np.inf)
    assert features.characters is not None
    for row, example in enumerate(features.example):
        window = slice(features.offsets[row], features.offsets[row + 1])
        scores, characters = outputs[window], features.characters[window]
        found[example] += _in_window(examples[example].second or "", scores, characters, config)
        null[example] = min(null[example], float(scores[0].sum()))
    return [_ranked(spans, float(empty), config, may_be_empty) for spans, empty in zip(found, null, strict=True)]


def _in_window(context: str, scores: np.ndarray, characters: np.ndarray, config: SpanConfig) -> list[Scored]:
    inside = characters[:, 0] >= 0
    starts, ends = (np.where(inside, scores[:, side], -np.inf) for side in (0, 1))
    count = min(config.n_best, int(inside.sum()))
    first = np.argsort(-starts, kind="stable")[:count]
    last = np.argsort(-ends, kind="stable")[:count]
    length = last[None, :] - first[:, None] + 1  # (starts, ends)
    total = np.where((length >= 1) & (length <= config.answer_length), starts[first][:, None] + ends[last], -np.inf)
    best = np.argsort(-total, axis=None, kind="stable")[: config.n_best]
    pairs = [divmod(int(at), count) for at in best if np.isfinite(total.flat[at])]
    return [(context[characters[first[s], 0] : characters[last[e], 1]], float(total[s, e])) for s, e in pairs]


def _ranked(spans: list[Scored], empty: float, config: SpanConfig, may_be_empty: bool) -> list[Scored]:
    """Different texts only, each with its best score."""
    best: dict[str, float] = {}
    for text, score in sorted(spans, key=lambda one: -one[1]):
        best.setdefault(text, score)
    ranked = list(best.items())[: config.n_best]
    if may_be_empty and (not ranked or empty - ranked[0][1] > config.null_threshold):
        return [("", empty), *ranked][: config.n_best]
    return ranked or [("", empty)]
