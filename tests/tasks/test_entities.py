"""Entities of BIO labels against the definition, enumerated, and against published examples."""

import itertools

import numpy as np
import pytest

from mlpt.tasks.entities import are_entity_labels, entities
from mlpt.tasks.metrics import entity_scores, score_words


def by_definition(labels: list[str]) -> set[tuple[str, int, int]]:
    """Every stretch of words is looked at: it is an entity where it begins one, goes on inside and does not go on."""

    def begins(at: int) -> bool:
        before = labels[at - 1] if at else "O"
        return labels[at].startswith("B-") or (labels[at] != "O" and before[2:] != labels[at][2:])

    found = set()
    for first, last in itertools.combinations(range(len(labels) + 1), 2):
        whole = labels[first] != "O" and begins(first)
        inside = all(labels[at] == f"I-{labels[first][2:]}" for at in range(first + 1, last))
        goes_on = last < len(labels) and labels[last] == f"I-{labels[first][2:]}"
        if whole and inside and not goes_on:
            found.add((labels[first][2:], first, last))
    return found


def test_entities_are_those_of_the_definition_for_every_short_sentence():
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    for length in range(6):
        for labels in itertools.product(names, repeat=length):
            assert entities(labels) == by_definition(list(labels)), labels


def test_other_schemes_mark_the_same_entities():
    iob2 = ["B-PER", "I-PER", "B-PER", "O", "B-LOC", "I-LOC", "I-LOC"]
    iob1 = ["I-PER", "I-PER", "B-PER", "O", "I-LOC", "I-LOC", "I-LOC"]
    iobes = ["B-PER", "E-PER", "S-PER", "O", "B-LOC", "I-LOC", "E-LOC"]
    assert entities(iob1) == entities(iob2) == entities(iobes) == {("PER", 0, 2), ("PER", 2, 3), ("LOC", 4, 7)}


def test_a_half_found_entity_and_one_of_another_type_count_as_wrong():
    # The example of the seqeval package: two gold entities, two predicted, one of them with both ends right.
    gold = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    said = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    assert entity_scores(gold, said) == {"entity_precision": 0.5, "entity_recall": 0.5, "entity_f1": 0.5}
    assert entity_scores([["B-PER"]], [["B-LOC"]])["entity_f1"] == 0
    assert entity_scores([["O"]], [["O"]])["entity_f1"] == 0


def test_scores_are_over_all_sentences_together():
    generator = np.random.default_rng(0)
    names = ("B-A", "B-B", "I-A", "I-B", "O")
    gold = [generator.integers(0, 5, n).tolist() for n in generator.integers(1, 12, 60)]
    said = [[one if generator.random() < 0.6 else int(generator.integers(0, 5)) for one in row] for row in gold]
    sets = [
        {(n, *one) for n, row in enumerate(rows) for one in by_definition([names[i] for i in row])}
        for rows in (gold, said)
    ]
    right = len(sets[0] & sets[1])
    precision, recall = right / len(sets[1]), right / len(sets[0])
    scores = score_words(("entity_f1", "entity_precision", "entity_recall", "accuracy"), names, gold, said)
    assert scores["entity_precision"] == pytest.approx(precision)
    assert scores["entity_recall"] == pytest.approx(recall)
    assert scores["entity_f1"] == pytest.approx(2 / (1 / precision + 1 / recall))
    pairs = [pair for rows in zip(gold, said, strict=True) for pair in zip(*rows, strict=True)]
    assert scores["accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


def test_words_that_the_model_did_not_see_are_wrong_and_in_no_entity():
    names = ("B-A", "I-A", "O")
    scores = score_words(("entity_recall", "entity_precision", "accuracy"), names, [[2, 0, 1, 0]], [[2, 0, 1, -1]])
    assert scores == {"entity_recall": 0.5, "entity_precision": 1.0, "accuracy": 0.75}


def test_macro_f1_is_over_labels_and_not_over_what_was_not_seen():
    # DET: 1 of 1 right, F1 1; NOUN: 1 of 2 found, F1 2/3.
    scores = score_words(("macro_f1",), ("DET", "NOUN"), [[0, 1], [1]], [[0, 1], [-1]])
    assert scores["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize(
    ("labels", "are"),
    [
        (("B-PER", "I-PER", "O"), True),
        (("I-LOC", "O"), True),
        (("NOUN", "O"), False),
        (("O",), False),
        (("B-",), False),
    ],
)
def test_label_names_tell_whether_they_mark_entities(labels, are):
    assert are_entity_labels(labels) == are
