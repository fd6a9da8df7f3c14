"""From logits to predictions and scores, for each kind of task, and the baseline of saying the same of every row."""

import numpy as np
import pytest

from mlpt.downstream.evaluate import check_metric, majority, predict, score
from mlpt.errors import UserError
from mlpt.tasks import TASKS, Example
from mlpt.tasks.features import SpanConfig


def predicted(name, examples, logits):
    return predict(TASKS[name], examples, None, np.array(logits, dtype=np.float32), SpanConfig()).values


def copa(*labels):
    return [
        Example(choice, "p", "c", label=int(choice == label), group=(n,), choice=f"c{choice}")
        for n, label in enumerate(labels)
        for choice in (0, 1)
    ]


def test_classes_are_the_largest_logit_and_scores_the_output():
    rows = [Example(0, "a", label=1), Example(1, "a", label=0)]
    assert predicted("sst2", rows, [[0, 1], [2, -1]]) == [1, 0]
    assert predicted("stsb", rows, [[2.5], [-1.0]]) == [2.5, -1.0]


def test_exactly_one_choice_of_a_question_is_chosen_even_if_both_or_none_look_right():
    rows = copa(1, 0)
    values = predicted("copa", rows, [[0, 3], [0, 5], [4, 0], [9, 0]])
    assert values == [1, 2]
    assert score(TASKS["copa"], rows, values) == {"accuracy": 1.0}
    assert score(TASKS["copa"], rows, [0, 2]) == {"accuracy": 0.5}


def test_multirc_rows_are_decided_one_by_one():
    rows = [Example(n, "q", "p", label, group=(0, n // 2)) for n, label in enumerate((1, 1, 0, 0))]
    values = predicted("multirc", rows, [[0, 1], [0, 2], [1, 0], [0, 1]])
    assert values == [1, 1, 0, 1]
    assert score(TASKS["multirc"], rows, values) == {"f1a": pytest.approx(4 / 5), "exact_match": 0.5}


def test_record_is_scored_by_the_text_of_the_chosen_entity():
    rows = [
        Example(n, "q", "p", int(choice == "Ann Lee"), group=(0, 0), choice=choice, answers=("Ann Lee",))
        for n, choice in enumerate(("Bob", "Lee", "Ann Lee"))
    ]
    values = predicted("record", rows, [[0, 1], [0, 3], [0, 2]])
    assert score(TASKS["record"], rows, values) == {"f1": pytest.approx(2 / 3), "exact_match": 0.0}


def test_the_majority_baseline_of_each_kind():
    train = [Example(n, "a", label=label) for n, label in enumerate((1, 1, 0))]
    assert majority(TASKS["sst2"], train, [Example(0, "a", label=1), Example(1, "a", label=0)]) == {"accuracy": 0.5}
    assert majority(TASKS["stsb"], train, train)["pearson"] == 0.0
    assert majority(TASKS["copa"], copa(0), copa(0, 0, 1)) == {"accuracy": pytest.approx(2 / 3)}
    spans = [Example("q", "?", "text", 1, answers=("text",))]
    assert majority(TASKS["squad"], spans, spans) == {"f1": 0.0, "exact_match": 0.0}


def test_the_metric_that_selects_must_be_the_tasks():
    assert check_metric(TASKS["mrpc"], None) == "accuracy_and_f1"
    assert check_metric(TASKS["mrpc"], "f1") == "f1"
    with pytest.raises(UserError, match="has no metric 'matthews'"):
        check_metric(TASKS["mrpc"], "matthews")
