"""Answers out of start and end scores, as BERT's SQuAD script reads them: best pairs over all windows of a context.

An answer begins in the window that has the most of the text around its first token ("max context", Devlin et al. 2019).
One difference: places that can begin or end no answer take none of the `n_best` places; there they do.
"""

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
    may_start = most_context(features)
    for row, example in enumerate(features.example):
        window = slice(features.offsets[row], features.offsets[row + 1])
        scores, characters = outputs[window], features.characters[window]
        found[example] += _in_window(examples[example].second or "", scores, characters, may_start[window], config)
        null[example] = min(null[example], float(scores[0].sum()))
    return [_ranked(spans, float(empty), config, may_be_empty) for spans, empty in zip(found, null, strict=True)]


def most_context(features: Features) -> np.ndarray:
    """(all tokens,) bool: the token is one of the context, and no other window has more of the text around it.

    A window counts min(tokens before, tokens after) within its part of the context, and .01 for each of its tokens of
    the context; among equals the first.
    """
    assert features.characters is not None
    last: dict[int, tuple[int, np.ndarray]] = {}  # of each example's last window: its first token, its characters
    seen = []  # (4, tokens of the context) of each window: example, token's number in the context, context, place
    for row, example in enumerate(features.example.tolist()):
        places = np.arange(features.offsets[row], features.offsets[row + 1])
        places = places[features.characters[places, 0] >= 0]
        characters, at = features.characters[places], np.arange(len(places))
        before, earlier = last.get(example, (0, characters))
        first = before + _shift(earlier, characters)
        last[example] = first, characters
        context = np.minimum(at, len(at) - 1 - at) + 0.01 * len(at)
        seen.append(np.stack([np.full(len(at), example), first + at, context, places]))
    examples, tokens, contexts, places = np.concatenate([np.empty((4, 0)), *seen], axis=1)
    order = np.lexsort((places, -contexts, tokens, examples))
    of = np.stack([examples, tokens])[:, order]  # each token's windows are now together, the best first
    best = np.append(True, (of[:, 1:] != of[:, :-1]).any(axis=0))[: len(order)]
    chosen = np.zeros(len(features.characters), dtype=bool)
    chosen[places[order][best].astype(np.int64)] = True
    return chosen


def _shift(earlier: np.ndarray, later: np.ndarray) -> int:
    """How many tokens after `earlier` the window `later` of the same context begins; both (tokens, 2) characters.

    Several tokens may be of the same characters (bytes of one letter), so that all of the overlap is compared.
    """
    for shift in np.flatnonzero((earlier == later[:1]).all(axis=1)).tolist():
        shared = min(len(earlier) - shift, len(later))
        if np.array_equal(earlier[shift : shift + shared], later[:shared]):
            return int(shift)
    return len(earlier)


def _in_window(
    context: str, scores: np.ndarray, characters: np.ndarray, may_start: np.ndarray, config: SpanConfig
) -> list[Scored]:
    inside = characters[:, 0] >= 0
    starts = np.where(may_start, scores[:, 0], -np.inf)
    ends = np.where(inside, scores[:, 1], -np.inf)
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
