"""Answers out of start and end scores: best allowed pair, over windows, and the empty answer of SQuAD v2."""

import numpy as np

from mlpt.downstream.spans import best_answers
from mlpt.tasks import Example
from mlpt.tasks.features import Features, SpanConfig

CONTEXT = "ab cd ef gh"
WORDS = [(0, 2), (3, 5), (6, 8), (9, 11)]
OUTSIDE = (-1, -1)


def features(*windows):
    """Windows of [CLS] question [SEP] and the given words of the context."""
    rows = [[OUTSIDE, OUTSIDE, OUTSIDE, *(WORDS[word] for word in words)] for words in windows]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    characters = np.array([pair for row in rows for pair in row])
    return Features(np.zeros(len(characters)), None, offsets, None, np.zeros(len(rows), int), 0, characters)


def scores(length, starts, ends):
    both = np.zeros((length, 2), dtype=np.float32)
    for side, given in ((0, starts), (1, ends)):
        for place, value in given.items():
            both[place, side] = value
    return both


def answers(features, outputs, empty=False, **settings):
    example = Example("q", "?", CONTEXT, 1)
    return best_answers([example], features, outputs, SpanConfig(**settings), empty)[0]


def test_the_answer_is_the_best_pair_of_start_and_end():
    outputs = scores(7, {4: 5.0}, {5: 4.0})
    assert answers(features([0, 1, 2, 3]), outputs)[0] == ("cd ef", 9.0)


def test_an_end_before_its_start_and_places_outside_the_context_are_never_answers():
    outputs = scores(7, {1: 50.0, 5: 5.0}, {0: 50.0, 4: 4.0, 6: 1.0})
    assert answers(features([0, 1, 2, 3]), outputs)[0] == ("ef gh", 6.0)


def test_answers_are_no_longer_than_allowed():
    outputs = scores(7, {3: 5.0, 4: 1.0}, {6: 5.0, 5: 1.0})
    assert answers(features([0, 1, 2, 3]), outputs, answer_length=4)[0][0] == CONTEXT
    assert answers(features([0, 1, 2, 3]), outputs, answer_length=3)[0][0] in ("ab cd ef", "cd ef gh")


def test_the_best_window_answers():
    outputs = np.concatenate([scores(5, {3: 1.0}, {3: 1.0}), scores(5, {4: 3.0}, {4: 3.0})])
    assert answers(features([0, 1], [2, 3]), outputs)[0] == ("gh", 6.0)


def test_there_are_at_most_n_best_answers_and_each_text_once():
    outputs = np.concatenate([scores(5, {3: 1.0}, {3: 1.0})] * 2)
    found = answers(features([0, 1], [0, 1]), outputs, n_best=3)
    assert len(found) == 3
    assert len({text for text, _ in found}) == 3


def test_no_answer_wins_where_its_least_window_score_beats_the_best_span_by_the_threshold():
    outputs = np.concatenate([scores(5, {0: 9.0, 3: 1.0}, {0: 9.0, 3: 1.0}), scores(5, {0: 2.0}, {0: 2.0})])
    two = features([0, 1], [2, 3])
    assert answers(two, outputs, empty=True)[0] == ("", 4.0)  # the lesser of 18 and 4, against 2
    assert answers(two, outputs, empty=True, null_threshold=2.5)[0] == ("ab", 2.0)
    assert answers(two, outputs, empty=False)[0] == ("ab", 2.0)
