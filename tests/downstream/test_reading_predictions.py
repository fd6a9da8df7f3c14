"""Reading predictions (MetaLMO specification 1.14, 1.15, 1.21): classes over windows, copied answers, scores, best."""

import json
import math

import numpy as np
import pytest
import torch

from mlpt.data.task_tokenizer import train_task_tokenizer
from mlpt.downstream.submission import write_submission
from mlpt.downstream.text_to_text import (
    Best,
    Reader,
    copied_answers,
    in_order,
    label_scores,
    masked_accuracy,
    overall,
    part_of,
    score_found,
)
from mlpt.errors import UserError
from mlpt.tasks import TASKS, Example
from mlpt.tasks.text_to_text import Format, TextToTextConfig, format_of

PAD, SEP = 0, 2


@pytest.fixture(scope="module")
def tokenizer():
    return train_task_tokenizer(lambda: iter(["Ann met Bob in Rome"] * 4), 320)


def reader(name, tokenizer=None):
    return Reader(format_of(TASKS[name], TextToTextConfig()), tokenizer)


def two_windows():
    """The published vector: width 4; the first window is real everywhere with logit 1 of token 2, the second has two
    positions of padding and logit 1.5 of token 5 at its real ones."""
    inputs = torch.tensor([[5, 40, 41, 2], [5, 42, 0, 0]])
    logits = torch.zeros(2, 4, 50)
    logits[0, :, 2] = 1.0
    logits[1, :, 5] = 1.5
    return logits, inputs


def test_windows_with_more_padding_weigh_less_as_in_the_published_vector():
    logits, inputs = two_windows()
    task = reader("boolq")
    task.add(logits, inputs, [0, 0])
    assert task.scores(0).tolist() == pytest.approx([0.5, 0.375])
    assert task.predictions() == {0: 0}  # token 2: False


def test_windows_of_one_example_may_come_in_several_batches_of_other_widths():
    logits, inputs = two_windows()
    task = reader("boolq")
    task.add(logits[1:, :], inputs[1:], [7])
    task.add(logits[:1], inputs[:1], [7])
    assert task.scores(7).tolist() == pytest.approx([0.5, 0.375])


def test_padding_has_no_say_in_a_class():
    logits, inputs = two_windows()
    logits[1, 2:, 2] = 1000.0
    assert label_scores(logits, inputs, (2, 5)).tolist() == [[1.0, 0.0], [0.0, pytest.approx(0.75)]]


def test_equal_scores_go_to_the_label_that_is_listed_first():
    task = Reader(Format(task=10, labels=(10, 2), tie_order=(1, 0)), None)
    task.add(torch.zeros(1, 3, 50), torch.tensor([[10, 40, 2]]), [0])
    assert task.predictions() == {0: 1}


def copying(tokens, sure, size=60):
    """Logits (1, length, size) of which each position says its token, more or less surely."""
    logits = torch.zeros(1, len(tokens), size)
    for place, (token, weight) in enumerate(zip(tokens, sure, strict=True)):
        logits[0, place, token] = weight
    return logits


def test_an_answer_is_the_run_that_holds_the_single_likeliest_token():
    inputs = torch.tensor([[9, 40, 41, 42, 43, 44, 2, 0]])
    logits = copying([SEP, 40, 41, SEP, 43, 44, SEP, 50], [9.0, 3, 3, 9, 2, 4, 9, 20])
    ((sure, ids),) = copied_answers(logits, inputs)
    assert ids == [43, 44]  # what is said at padding, and "nothing", are no answers however sure
    assert sure == pytest.approx(4 - math.log(math.exp(4) + 59), rel=1e-5)


def test_no_run_is_no_answer():
    inputs = torch.tensor([[9, 40, 2]])
    assert copied_answers(copying([SEP] * 3, [1.0] * 3), inputs) == [(-math.inf, [])]


def test_the_surest_answer_over_all_windows_is_the_examples(tokenizer):
    bob, ann = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in (" Bob", "Ann"))
    assert len(bob) == len(ann) == 1
    inputs = torch.tensor([[9, 40, 41, 2]])
    size = len(tokenizer)
    task = reader("record_span", tokenizer)
    task.add(copying([SEP, *ann, SEP, SEP], [9.0, 2, 9, 9], size), inputs, [3])
    task.add(copying([SEP, SEP, *bob, SEP], [9.0, 9, 4, 9], size), inputs, [3])
    task.add(copying([SEP] * 4, [9.0] * 4, size), inputs, [3])
    task.add(copying([SEP] * 4, [9.0] * 4, size), inputs, [4])
    assert task.predictions() == {3: "Bob", 4: ""}


def test_masked_accuracy_is_a_mean_over_sequences_and_one_where_nothing_is_asked():
    inputs = torch.tensor([[4, 1, 9, 1, 2], [4, 1, 9, 2, 0], [4, 8, 9, 2, 0]])
    labels = torch.tensor([[0, 8, 0, 7, 0], [0, 6, 0, 0, 0], [0, 0, 0, 0, 0]])
    logits = copying([4, 8, 9, 9, 2], [1.0] * 5).repeat(3, 1, 1)  # right once, wrong once; wrong; nothing asked
    assert masked_accuracy(logits, inputs, labels) == pytest.approx((0.5 + 0.0 + 1.0) / 3)


def rows(count, **fields):
    return [Example(n, "a", "b", label=n % 2, **fields) for n in range(count)]


def test_a_whole_set_must_be_predicted_and_a_part_need_not_be():
    examples, found = rows(4), {0: 0, 1: 1, 3: 0}
    with pytest.raises(UserError, match=r"1 of 4 rows have no prediction \(the first is row 2\)"):
        score_found(TASKS["boolq"], examples, found, strict=True)
    assert score_found(TASKS["boolq"], examples, found, strict=False) == {"accuracy": pytest.approx(2 / 3)}
    with pytest.raises(UserError, match="no prediction"):
        in_order(TASKS["boolq"], examples, found)
    assert in_order(TASKS["boolq"], examples, found | {2: 1}).values == [0, 1, 1, 0]


def test_multirc_and_record_are_scored_by_their_published_vectors():
    groups = [(0, 0)] * 3 + [(0, 1)] * 2 + [(1, 0)] * 2
    labels = [1, 0, 1, 0, 0, 1, 0]
    answers = [Example(n, "q", "p", labels[n], group=groups[n]) for n in range(7)]
    scores = score_found(TASKS["multirc"], answers, dict(enumerate([1, 0, 0, 0, 0, 1, 1])), strict=True)
    assert scores == {"f1a": pytest.approx(4 / 6), "exact_match": pytest.approx(1 / 3)}
    golds = [("hello world",), ("a b c",), ("d e",)]
    queries = [Example(n, "q", "p", 1, answers=golds[n]) for n in range(3)]
    scores = score_found(TASKS["record_span"], queries, {0: "hello", 1: "a b c", 2: "d e f"}, strict=True)
    assert scores["f1"] == pytest.approx((2 / 3 + 1 + 4 / 5) / 3)
    assert scores["exact_match"] == pytest.approx(1 / 3)


def test_copied_answers_and_nested_answers_are_written_as_the_server_wants_them(tmp_path):
    queries = [Example(n, "q", "p", group=(1, n)) for n in (5, 6)]
    found = in_order(TASKS["record_span"], queries, {0: "Bob", 1: ""})
    path = write_submission(tmp_path, TASKS["record_span"], "test", queries, found)
    assert path.name == "ReCoRD.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"idx": 5, "label": "Bob"}, {"idx": 6, "label": ""}]
    answers = [Example(8, "q", "p", group=(1, 2)), Example(9, "q", "p", group=(1, 2))]
    found = in_order(TASKS["multirc"], answers, {0: 1, 1: 0})
    path = write_submission(tmp_path, TASKS["multirc"], "test", answers, found)
    (line,) = [json.loads(line) for line in path.read_text().splitlines()]
    question = {"idx": 2, "answers": [{"idx": 8, "label": 1}, {"idx": 9, "label": 0}]}
    assert line == {"idx": 1, "passage": {"questions": [question]}}


def published_row(boolq, cb, copa, multirc, record, rte, wic, wsc):
    accuracies = {"boolq": boolq, "copa_pair": copa, "superglue_rte": rte, "wic": wic, "wsc": wsc}
    scores = {name: {"accuracy": value / 100} for name, value in accuracies.items()}
    pairs = {"cb": (("macro_f1", "accuracy"), cb), "multirc": (("f1a", "exact_match"), multirc)}
    pairs["record_span"] = (("f1", "exact_match"), record)
    return scores | {
        name: {key: value / 100 for key, value in zip(keys, values, strict=True)}
        for name, (keys, values) in pairs.items()
    }


def test_the_average_of_superglue_is_that_of_the_published_table():
    masked = published_row(66.1, (67.3, 71.4), 57.0, (52.0, 10.4), (12.7, 10.6), 56.0, 56.1, 72.1)
    soft = published_row(60.0, (48.3, 69.6), 57.0, (42.4, 4.9), (2.2, 1.2), 54.2, 53.6, 63.5)
    assert overall(masked, {})["SuperGLUE"] == pytest.approx(52.4375)
    assert overall(soft, {})["SuperGLUE"] == pytest.approx(46.575)
    vector = published_row(91, (98.6, 99.2), 97.4, (88.6, 63.2), (94.7, 94.2), 92.6, 77.4, 97.3)
    assert overall(vector, {})["SuperGLUE"] == pytest.approx(90.61875)


def test_overall_is_the_mean_of_what_there_is():
    scores = {"mlm": {"accuracy": 0.2}, "boolq": {"accuracy": 0.6}, "two_moons_10": {"accuracy": 0.9}}
    found = overall(scores, {"mlm": 3.0, "boolq": 1.0, "cb": 2.0})
    assert found == pytest.approx(
        {
            "MLM": 20,
            "SuperGLUE": 60,
            "Overall": 40,
            "two_moons_10": 90,
            "MLM_loss": 3.0,
            "SuperGLUE_loss": 1.5,
            "loss": 2.25,
        }
    )
    alone = overall({"boolq": {"accuracy": 0.6}}, {})
    assert alone == {"SuperGLUE": pytest.approx(60), "Overall": pytest.approx(60)}


def test_only_what_is_strictly_better_is_kept_and_losses_are_better_lower():
    best = Best()
    assert best.update({"Overall": 40.0, "loss": 2.0, "MLM": math.nan}, 1) == ["Overall", "loss"]
    assert best.update({"Overall": 40.0, "loss": 2.0, "MLM": 5.0}, 2) == ["MLM"]
    assert best.update({"Overall": 39.0, "loss": 1.5, "MLM": math.nan}, 3) == ["loss"]
    assert best.update({"Overall": 41.0, "loss": 1.6}, 4) == ["Overall"]
    assert best.steps == {"Overall": 4, "loss": 3, "MLM": 2}
    assert best.values == {"Overall": 41.0, "loss": 1.5, "MLM": 5.0}


def test_a_part_of_a_split_has_whole_questions_and_is_drawn_again_the_same():
    answers = [Example(n, "q", "p", 1, group=(0, n // 3)) for n in range(30)]
    part = part_of(answers, 8, np.random.default_rng(0))
    assert len(part) == 9
    taken = {answers[number].group for number in part}
    assert sorted(part) == [number for number, one in enumerate(answers) if one.group in taken]
    assert part == part_of(answers, 8, np.random.default_rng(0))
    assert sorted(part_of(rows(5), 100, np.random.default_rng(0))) == list(range(5))
