"""Metrics against the vectors of the MetaLMO specification (1.21), hand-computed values and degenerate input."""

import numpy as np
import pytest

from mlpt.tasks import metrics
from mlpt.tasks.text_metrics import best_exact_match, best_f1, normalised, token_f1


def test_macro_f1_of_cb_is_the_vector():
    labels, predicted = np.array([0, 2, 1, 2]), np.array([0, 1, 1, 0])
    assert metrics.macro_f1(labels, predicted) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_record_scores_are_the_vector():
    golds, predicted = [["hello world"], ["a b c"], ["d e"]], ["hello", "a b c", "d e f"]
    scores = metrics.score_texts(("f1", "exact_match"), golds, predicted)
    assert scores["f1"] == pytest.approx((2 / 3 + 1 + 4 / 5) / 3)
    assert scores["exact_match"] == pytest.approx(1 / 3)


def test_multirc_scores_are_the_vector():
    labels, predicted = np.array([1, 0, 1, 0, 0, 1, 0]), np.array([1, 0, 0, 0, 0, 1, 1])
    groups = [(0, 0)] * 3 + [(0, 1)] * 2 + [(1, 0)] * 2
    scores = metrics.score_rows(("f1a", "exact_match"), labels, predicted, groups)
    assert scores == {"f1a": pytest.approx(4 / 6), "exact_match": pytest.approx(1 / 3)}


def test_matthews_and_f1_follow_their_equations():
    # tp 3, tn 1, fp 2, fn 1
    labels, predicted = np.array([1, 1, 1, 1, 0, 0, 0]), np.array([1, 1, 1, 0, 1, 1, 0])
    assert metrics.matthews(labels, predicted) == pytest.approx((3 * 1 - 2 * 1) / np.sqrt(5 * 4 * 3 * 2))
    assert metrics.f1(labels, predicted) == pytest.approx(2 * 3 / (2 * 3 + 2 + 1))
    both = metrics.score_ids(("accuracy", "f1", "accuracy_and_f1"), labels, predicted)
    assert both["accuracy_and_f1"] == pytest.approx((4 / 7 + 6 / 9) / 2)


def test_correlations_follow_their_equations():
    labels, predicted = np.array([0.0, 1.0, 2.0, 5.0]), np.array([0.0, 2.0, 1.0, 3.0])
    assert metrics.pearson(labels, predicted) == pytest.approx(np.corrcoef(labels, predicted)[0, 1])
    assert metrics.spearman(labels, predicted) == pytest.approx(1 - 6 * 2 / (4 * 15))


@pytest.mark.parametrize("constant", [0.0, 2.5, np.nan, np.inf])
def test_constant_and_not_finite_predictions_score_zero_not_nan(constant):
    labels = np.array([0.0, 1.0, 2.0])
    scores = metrics.score_numbers(("pearson", "spearman", "pearson_and_spearman"), labels, np.full(3, constant))
    assert set(scores.values()) == {0.0}


def test_predicting_one_class_scores_zero_matthews_and_no_crash():
    labels = np.array([0, 1, 1])
    assert metrics.matthews(labels, np.ones(3, dtype=int)) == 0.0
    assert metrics.f1(labels, np.zeros(3, dtype=int)) == 0.0
    assert metrics.macro_f1(labels, np.zeros(3, dtype=int)) == pytest.approx(0.25)  # (1/2 + 0) / 2


@pytest.mark.parametrize("kind", ["classification", "regression", "span", "multiple_rows"])
def test_every_metric_of_no_rows_is_zero(kind):
    none = np.array([])
    for name in metrics.known_metrics(kind):
        if kind == "regression":
            scores = metrics.score_numbers((name,), none, none)
        elif kind == "span":
            scores = metrics.score_texts((name,), [], [])
        elif kind == "multiple_rows":
            scores = metrics.score_rows((name,), none, none, [])
        else:
            scores = metrics.score_ids((name,), none, none)
        assert scores == {name: 0.0}


def test_answers_are_compared_without_case_articles_and_punctuation():
    assert normalised("The  U.S. Navy, an army!") == "us navy army"
    assert best_exact_match(["A dog."], "dog") == 1.0


def test_token_f1_counts_repeated_words():
    assert token_f1("b b c", "b b b") == pytest.approx(2 * 2 / 6)


def test_an_unanswerable_question_is_right_only_without_an_answer():
    assert (best_f1([], ""), best_exact_match([], "")) == (1.0, 1.0)
    assert (best_f1([], "word"), best_exact_match([], "word")) == (0.0, 0.0)
    assert best_f1(["word"], "") == 0.0


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_a_correlation_does_not_depend_on_where_its_numbers_lie(name):
    draws = np.random.default_rng(0).normal(size=(2, 57))
    found = set()
    for place in range(8):
        room = np.zeros((2, 65))
        moved = room[:, place : place + 57]
        moved[:] = draws
        found.add(getattr(metrics, name)(*moved))
        found.add(getattr(metrics, name)(*moved[:, ::-1]))  # nor on the order in which they are added
    assert len(found) == 1


def test_correlations_of_numbers_of_any_size_are_those_of_numpy():
    labels, predicted = np.random.default_rng(1).normal(size=(2, 40))
    expected = np.corrcoef(labels, predicted)[0, 1]
    for size in (1e-200, 1.0, 1e200):
        assert metrics.pearson(labels, predicted * size) == pytest.approx(expected, rel=1e-12)
    assert metrics.pearson(labels, labels * 3) == 1.0
