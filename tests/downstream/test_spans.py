"""Answers out of start and end scores: best allowed pair, over windows, and the empty answer of SQuAD v2."""

import numpy as np

from mlpt.downstream.spans import best_answers, most_context
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


# BERT's SQuAD script (run_squad.py): a token that several windows have may begin an answer only in the one with the
# greatest min(tokens before, tokens after) + 0.01 * length, the first of equals.
LETTERS = "a b c d e f g h"


def windows(*ranges):
    """Windows of [CLS] and the given letters of the context."""
    rows = [[OUTSIDE, *((2 * letter, 2 * letter + 1) for letter in letters)] for letters in ranges]
    characters = np.array([pair for row in rows for pair in row])
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Features(np.zeros(len(characters)), None, offsets, None, np.zeros(len(rows), int), 0, characters)


def starting(features):
    """Of each window the letters that may begin an answer there."""
    may = most_context(features)
    spans = [slice(*one) for one in zip(features.offsets[:-1], features.offsets[1:], strict=True)]
    return ["".join(LETTERS[at] for at, _ in features.characters[one][may[one]]) for one in spans]


def test_an_answer_begins_in_the_window_that_has_most_of_the_text_around_it():
    two = windows(range(0, 4), range(2, 6))  # a b c d, c d e f
    example = Example("q", "?", "a b c d e f", 1)
    outputs = np.concatenate([scores(5, {4: 5.0}, {4: 5.0}), scores(5, {3: 3.0}, {3: 3.0})])
    assert best_answers([example], two, outputs, SpanConfig(), False)[0][0] == ("e", 6.0)  # not d, 10 in the first


def test_context_is_the_lesser_side_then_the_length_then_the_order():
    # c: 1.04 against .04, d: .04 against 1.04
    assert starting(windows(range(0, 4), range(2, 6))) == ["abc", "def"]
    # c: 2.05, 1.05, .04; d: 1.05, 2.05, 1.04; e: .05, 1.05, 1.04; f: -, .05, .04
    assert starting(windows(range(0, 5), range(1, 6), range(2, 6))) == ["abc", "def", ""]
    # d: 0.04 in both windows, of which the first has it; a shorter last window loses what the longer one has at its end
    assert starting(windows(range(0, 4), range(3, 7))) == ["abcd", "efg"]
    assert starting(windows(range(0, 4), range(3, 5))) == ["abcd", "e"]


def test_windows_of_other_questions_say_nothing_about_context():
    both = windows(range(0, 4), range(2, 6))
    both.example = np.array([0, 1])
    assert starting(both) == ["abcd", "cdef"]


def test_tokens_of_one_letter_are_told_apart():
    # Three byte tokens of one letter: the windows are x y (b1 b2 b3), and (b2 b3) z w, which begins inside of it.
    rows = [[(0, 1), (1, 2), (2, 3), (2, 3), (2, 3)], [(2, 3), (2, 3), (3, 4), (4, 5)]]
    characters = np.array([pair for row in rows for pair in row])
    made = Features(np.zeros(9), None, np.array([0, 5, 9]), None, np.zeros(2, int), 0, characters)
    # b2: 1.05 against .04, b3: .05 against 1.04
    assert most_context(made).tolist() == [True, True, True, True, False, False, True, True, True]


def test_no_windows_have_no_answers():
    none = Features(np.zeros(0), None, np.zeros(1, int), None, np.zeros(0, int), 0, np.zeros((0, 2), int))
    assert most_context(none).tolist() == []
    assert best_answers([], none, np.zeros((0, 2)), SpanConfig(), False) == []
