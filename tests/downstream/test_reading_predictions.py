"""Reading predictions (MetaLMO specification 1.14, 1.15, 1.21): classes over windows, copied answers."""

import json
import math

import pytest
import torch

from mlpt.data.task_tokenizer import train_task_tokenizer
from mlpt.downstream.submission import write_submission
from mlpt.downstream.text_to_text import Reader, copied_answers, in_order, label_scores
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
    narrow, whole = (logits[1:, :2], inputs[1:, :2]), (logits[:1], inputs[:1])
    for batches in ((narrow, whole), (whole, narrow)):
        task = reader("boolq")
        for batch in batches:
            task.add(*batch, [7])
        assert task.scores(7).tolist() == pytest.approx([0.5, 0.375])
        assert task.predictions() == {7: 0}


def test_batches_that_pad_beyond_an_examples_windows_change_nothing():
    logits, inputs = two_windows()
    task = reader("boolq")
    task.add(torch.nn.functional.pad(logits, (0, 0, 0, 3)), torch.nn.functional.pad(inputs, (0, 3)), [0, 0])
    assert task.scores(0).tolist() == pytest.approx([0.5, 0.375])


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


def test_every_row_must_be_predicted():
    examples, found = [Example(n, "a", "b", label=n % 2) for n in range(4)], {0: 0, 1: 1, 3: 0}
    with pytest.raises(UserError, match=r"1 of 4 rows have no prediction \(the first is row 2\)"):
        in_order(TASKS["boolq"], examples, found)
    assert in_order(TASKS["boolq"], examples, found | {2: 1}).values == [0, 1, 1, 0]


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
