"""Tasks as sequences (MetaLMO specification 1.2, 1.12, 1.13): task and label tokens, targets, windows, copied spans."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from mlpt.data import two_moons
from mlpt.data.task_tokenizer import train_task_tokenizer
from mlpt.data.tokenizers import train_tokenizer
from mlpt.errors import UserError
from mlpt.settings import load_settings
from mlpt.tasks import TASKS, Example, TaskSource, load_task
from mlpt.tasks.text_to_text import (
    MLM_TOKEN,
    TEXT_TOKEN,
    TextToTextConfig,
    Writer,
    format_of,
    random_windows,
    stack_windows,
)

PAD, SEP = 0, 2


@pytest.fixture(scope="module")
def tokenizer():
    return train_task_tokenizer(lambda: iter(["Ann met Bob in Rome. Ann left the old house at once."] * 4), 340)


@pytest.fixture(scope="module")
def numbers():
    """Every number up to 63 is one token: texts can be counted."""
    return two_moons.train_tokenizer()


def writer(name, tokenizer, **settings):
    return Writer(TASKS[name], tokenizer, TextToTextConfig(**settings))


def text_of_length(count, start=0):
    return " ".join(str(start + number) for number in range(count))


def test_task_and_label_tokens_are_the_published_ones():
    assert (TEXT_TOKEN, MLM_TOKEN) == (3, 4)
    published = {
        "boolq": (5, {"False": 2, "True": 5}),
        "cb": (6, {"contradiction": 2, "entailment": 7, "neutral": 1}),
        "copa_pair": (7, {"0": 2, "1": 7}),
        "multirc": (8, {"0": 2, "1": 8}),
        "record_span": (9, {}),
        "superglue_rte": (10, {"not_entailment": 2, "entailment": 10}),
        "wic": (11, {"False": 2, "True": 11}),
        "wsc": (12, {"False": 2, "True": 12}),
        "two_moons_40": (5, {"0": 2, "1": 5}),
    }
    for name, (own, labels) in published.items():
        task = TASKS[name]
        found = format_of(task, TextToTextConfig(cb_entailment_of_copa=True))
        assert found.task == own
        assert dict(zip(task.labels, found.labels, strict=True)) == labels
        # Ties go to the label that stands first in the published table.
        assert [task.labels[one] for one in found.tie_order] == list(labels)


def test_entailment_has_the_token_of_its_own_task_unless_the_published_one_is_wanted():
    assert format_of(TASKS["cb"], TextToTextConfig()).labels == (2, 6, 1)
    assert format_of(TASKS["cb"], TextToTextConfig(cb_entailment_of_copa=True)).labels == (2, 7, 1)


def test_a_class_is_its_token_at_every_position_that_is_not_padding(tokenizer):
    examples = [Example(0, "Ann met Bob", "Ann left", 1), Example(1, "Ann", "Bob", 0)]
    written, rows = stack_windows(writer("boolq", tokenizer).write(examples))
    first, second = (tokenizer(one.first, one.second) for one in examples)
    assert written.inputs[0].tolist() == [5, *first["input_ids"][1:]]
    assert written.types[0].tolist() == first["token_type_ids"]
    length = len(second["input_ids"])
    assert written.inputs[1].tolist() == [5, *second["input_ids"][1:], *[PAD] * (len(first["input_ids"]) - length)]
    assert written.targets[0].tolist() == [5] * len(first["input_ids"])
    assert written.targets[1].tolist() == [2] * length + [PAD] * (len(first["input_ids"]) - length)
    assert rows.tolist() == [0, 1]


def test_a_row_without_a_label_asks_for_nothing(tokenizer):
    written = writer("boolq", tokenizer).write([Example(0, "Ann", "Bob")])
    assert not written[0].targets.any()
    span = Example(0, "who?", "*Ann*")
    assert not writer("record_span", tokenizer).write([span])[0].targets.any()


def test_special_tokens_in_a_text_are_text(tokenizer):
    (written,) = writer("boolq", tokenizer).write([Example(0, "[MASK] [CLS3]", "[SEP]", 1)])
    specials = written.inputs[written.inputs < 33]
    assert specials.tolist() == [5, SEP, SEP]


def test_a_point_is_four_tokens_and_its_moon_one_of_two(numbers):
    (written,) = writer("two_moons_10", numbers).write([Example(0, "13 45", label=1)])
    assert written.inputs.tolist() == [[5, *numbers("13 45")["input_ids"][1:]]]
    assert written.targets.tolist() == [[5, 5, 5, 5]]


@pytest.mark.parametrize(
    ("first", "second", "max_length", "overlap"),
    [(3, 20, 12, 2), (3, 20, 12, 5), (20, None, 10, 3), (20, 3, 14, 4), (2, 40, 9, 1), (3, 3, 12, 2), (3, 6, 12, 2)],
)
def test_windows_are_those_of_the_tokenizer_itself_where_one_text_is_too_long(
    numbers, first, second, max_length, overlap
):
    backend = Tokenizer.from_str(numbers.backend_tokenizer.to_str())
    backend.enable_truncation(max_length, stride=overlap, strategy="longest_first")
    texts = text_of_length(first), None if second is None else text_of_length(second, 20)
    encoding = backend.encode(*texts)
    expected = [encoding, *encoding.overflowing]
    settings = {"max_length": max_length, "overlap": overlap}
    (written,) = writer("boolq", numbers, **settings).write([Example(0, *texts, 1)])
    assert len(written.inputs) == len(expected)
    for row, one in enumerate(expected):
        size = len(one.ids)
        assert written.inputs[row, 1:size].tolist() == one.ids[1:]
        assert written.types[row, :size].tolist() == one.type_ids
        assert not written.inputs[row, size:].any()


def test_where_both_texts_are_too_long_windows_run_over_the_second_beside_the_beginning_of_the_first(numbers):
    examples = [Example(0, text_of_length(30), text_of_length(30, 30), 1)]
    (written,) = writer("boolq", numbers, max_length=13, overlap=2).write(examples)
    rows = [[numbers.decode(int(one)).strip() for one in row[row > 32]] for row in written.inputs]
    assert all(row[:5] == ["0", "1", "2", "3", "4"] for row in rows)
    assert [row[5:] for row in rows[:2]] == [["30", "31", "32", "33", "34"], ["33", "34", "35", "36", "37"]]
    assert {number for row in rows for number in row[5:]} == set(map(str, range(30, 60)))


def test_an_overlap_longer_than_what_is_left_for_a_text_becomes_half_of_it(numbers):
    examples = [Example(0, text_of_length(30), text_of_length(30, 30), 1)]
    (written,) = writer("boolq", numbers, max_length=13, overlap=12).write(examples)
    assert len(written.inputs) == 10  # 30 tokens in windows of 5 that begin 3 apart


def test_an_overlap_that_would_never_advance_is_refused():
    with pytest.raises(UserError, match="overlap 20 is not below max_length 20"):
        load_settings(TextToTextConfig, {"max_length": 20, "overlap": 20})


def record(tmp_path, text, answers, query="@placeholder left."):
    spans = [{"start": text.index(one), "end": text.index(one) + len(one) - 1} for one in ("Ann", "Bob", "X")]
    golds = [{"start": text.index(one), "end": text.index(one) + len(one) - 1, "text": one} for one in answers]
    line = {"idx": 2, "passage": {"text": text, "entities": spans}, "qas": [{"idx": 5, "query": query}]}
    if answers:
        line["qas"][0]["answers"] = golds
    (tmp_path / "ReCoRD").mkdir(exist_ok=True)
    (tmp_path / "ReCoRD" / "val.jsonl").write_text(json.dumps(line))
    data = load_task("record_span", TaskSource(data_dir=str(tmp_path), max_malformed_share=0))
    return data.splits["dev"]


TEXT = "Ann met Bob near X today."


def test_record_is_a_query_and_a_passage_with_stars_and_its_answers_in_place(tmp_path):
    (example,) = record(tmp_path, TEXT, ["Bob", "X"])
    assert (example.first, example.second) == ("@placeholder left.", "*Ann* met *Bob* near *X* today.")
    assert [example.second[slice(*span)] for span in example.spans] == ["Bob", "X"]
    assert example.answers == ("Bob", "X")
    assert example.second[example.answer_start :].startswith("Bob")
    assert (example.index, example.group, example.label) == (5, (2, 5), 1)
    (unlabelled,) = record(tmp_path, TEXT, [])
    assert (unlabelled.label, unlabelled.spans) == (None, ())


def copied(tokenizer, written, row=0):
    targets = written.targets[row]
    return tokenizer.decode(targets[(targets != SEP) & (targets != PAD)])


def test_the_tokens_of_the_answers_are_copied_and_everything_else_is_nothing(tmp_path, tokenizer):
    examples = record(tmp_path, TEXT, ["Bob", "X"])
    task = writer("record_span", tokenizer)
    (written,) = task.write(examples)
    inputs, targets = written.inputs[0], written.targets[0]
    assert inputs[0] == 9
    assert copied(tokenizer, written) == "BobX"
    kept = targets != SEP
    assert np.array_equal(targets[kept], inputs[kept])
    assert (written.types[0][kept] == 1).all()
    assert task.without_answer([written]) == 0


def test_as_published_an_answers_last_character_is_not_labelled_and_one_letter_answers_never(tmp_path, tokenizer):
    task = writer("record_span", tokenizer, cut_last_characters=True)
    (both,) = task.write(record(tmp_path, TEXT, ["Ann", "X"]))
    assert copied(tokenizer, both) == "Ann"  # "Ann" is one token, which its first letters overlap
    (one,) = task.write(record(tmp_path, TEXT, ["X"]))
    assert copied(tokenizer, one) == ""
    assert task.without_answer([both, one]) == 1
    fixed = writer("record_span", tokenizer)
    assert copied(tokenizer, *fixed.write(record(tmp_path, TEXT, ["X"]))) == "X"


def test_a_window_without_the_answer_asks_for_nothing_but_the_separator(tmp_path, tokenizer):
    (example,) = record(tmp_path, TEXT + " Ann left the old house at once." * 6, ["X"])
    (written,) = writer("record_span", tokenizer, max_length=40, overlap=4).write([example])
    found = [copied(tokenizer, written, row) for row in range(len(written.inputs))]
    assert "X" in found
    assert "" in found
    last = written.targets[-1][written.inputs[-1] != PAD]
    assert (last == SEP).all()


def test_a_row_of_the_hub_gives_the_same_example(tmp_path):
    from mlpt.tasks.record import record_spans

    (expected,) = record(tmp_path, TEXT, ["Bob"])
    starts = [TEXT.index(one) for one in ("Ann", "Bob", "X")]
    row = {
        "idx": {"passage": 2, "query": 5},
        "passage": TEXT,
        "query": "@placeholder left.",
        "entities": ["Ann", "Bob", "X"],
        "entity_spans": {"text": ["Ann", "Bob", "X"], "start": starts, "end": [starts[0] + 3, starts[1] + 3, 18]},
        "answers": ["Bob"],
    }
    assert list(record_spans(row)) == [expected]


def test_an_answer_that_does_not_stand_where_it_says_is_a_malformed_row(tmp_path):
    line = {
        "idx": 0,
        "passage": {"text": TEXT, "entities": []},
        "qas": [{"idx": 0, "query": "@placeholder", "answers": [{"start": 4, "end": 6, "text": "Bob"}]}],
    }
    (tmp_path / "ReCoRD").mkdir()
    (tmp_path / "ReCoRD" / "val.jsonl").write_text(json.dumps(line))
    with pytest.raises(UserError, match="has the answer 'Bob' where the passage has 'met'"):
        load_task("record_span", TaskSource(data_dir=str(tmp_path), max_malformed_share=0))


def test_training_takes_one_random_window_of_each_example(numbers):
    examples = [Example(0, "1", text_of_length(40), 1), Example(1, "2", "3", 0)]
    written = writer("boolq", numbers, max_length=12, overlap=0).write(examples)
    draws = [random_windows(written, np.random.default_rng(seed)).tolist() for seed in range(200)]
    assert {first for first, _ in draws} == set(range(len(written[0].inputs))) == set(range(5))
    assert {second for _, second in draws} == {0}
    batch, rows = stack_windows(written, [3, 0])
    assert batch.inputs[0].tolist() == written[0].inputs[3].tolist()
    assert rows.tolist() == [0, 1]
    everything, rows = stack_windows(written)
    assert rows.tolist() == [0] * 5 + [1]
    assert everything.inputs.shape == (6, 12)
    # Padding that no row needs is left out.
    alone, _ = stack_windows(written[1:])
    assert alone.inputs.shape == (1, 5)


def test_a_task_without_a_format_and_a_tokenizer_without_task_tokens_are_refused(tokenizer):
    with pytest.raises(UserError, match="task 'mnli' has no text-to-text format; those that have: boolq"):
        writer("mnli", tokenizer)
    stock = train_tokenizer("bpe", lambda: iter(["text"] * 3), 300)
    with pytest.raises(UserError, match="no task tokens; prepare the text with tokenizer=task_bpe"):
        writer("boolq", stock)


def test_every_official_task_can_be_written(shared_data, tokenizer):
    source = TaskSource(data_dir=str(shared_data))
    for name in ("boolq", "cb", "copa_pair", "multirc", "record_span", "wsc"):
        data = load_task(name, source, ["dev"])
        task = Writer(data.task, tokenizer, TextToTextConfig(max_length=128, overlap=32))
        examples = data.splits["dev"][:30]
        written = task.write(examples)
        batch, rows = stack_windows(written)
        assert sorted(set(rows.tolist())) == list(range(len(examples)))
        assert batch.inputs.shape[1] <= 128
        assert np.array_equal(batch.targets != PAD, batch.inputs != PAD)
        assert (batch.inputs[:, 0] == task.format.task).all()
        assert task.without_answer(written) == 0
