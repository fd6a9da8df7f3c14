"""Token ids of examples: padding only where needed, label types by the task, answers found inside windows."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mlpt.downstream.loading import load_tokenizer
from mlpt.errors import UserError
from mlpt.tasks import TASKS, Example, OwnTask, TaskSource, load_task
from mlpt.tasks.features import SpanConfig, lost_answers, make_features, window_stride

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(str(tiny_model))


def make(task, examples, tokenizer, max_length=64, **span):
    return make_features(task, examples, tokenizer, max_length, True, SpanConfig(**span))


def test_rows_are_what_the_tokenizer_says_of_each_alone(tokenizer):
    pairs = [("the file", "is open"), ("a", "the value of the option " * 3)]
    features = make(TASKS["rte"], [Example(n, a, b, 0) for n, (a, b) in enumerate(pairs)], tokenizer)
    batch = features.batch(np.array([0, 1]), CPU)
    expected = tokenizer([a for a, _ in pairs], [b for _, b in pairs], padding=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(batch[name], expected[name]), name


def test_half_a_surrogate_pair_in_a_labelled_file_becomes_a_question_mark(tokenizer, tmp_path):
    rows = [{"text": "the \ud83d file \u00e9 \U0001f600", "label": "\udc00x"}, {"text": "a", "label": "y"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = OwnTask(name="odd", train=str(tmp_path / "a.jsonl"), first="text")
    data = load_task("odd", TaskSource(own=(own,)))
    assert data.splits["train"][0].first == "the ? file \u00e9 \U0001f600"
    assert data.task.labels == ("?x", "y")
    assert make(data.task, data.splits["train"], tokenizer).labels is not None
    answers = [{"text": "\ud83d Oslo", "answer_start": 4}]
    question = {"id": "a", "question": "Where \ud83d", "answers": answers}
    document = {"data": [{"paragraphs": [{"context": "Ann \ud83d Oslo", "qas": [question]}]}]}
    (tmp_path / "train-v1.1.json").write_text(json.dumps(document))
    squad = load_task("squad", TaskSource(data_dir=str(tmp_path)))
    assert (squad.splits["train"][0].answers, squad.splits["train"][0].answer_start) == (("? Oslo",), 4)
    make(squad.task, squad.splits["train"], tokenizer)


def test_there_is_no_mask_where_nothing_is_padded(tokenizer):
    features = make(TASKS["sst2"], [Example(n, "the file", label=0) for n in range(3)], tokenizer)
    assert set(features.batch(np.array([0, 2]), CPU)) == {"input_ids"}


def test_scores_stay_floats_whatever_the_first_label_is(tokenizer):
    # CA-1: the published collator truncates 3.8 to 3 when a batch begins with an integer label.
    features = make(TASKS["stsb"], [Example(0, "a", "b", 1), Example(1, "a", "b", 3.8)], tokenizer)
    assert torch.equal(features.targets(np.array([0, 1]), CPU), torch.tensor([1.0, 3.8]))


def test_the_longer_text_of_a_pair_is_cut_first(tokenizer):
    features = make(TASKS["rte"], [Example(0, "the file", "the value " * 40, 0)], tokenizer, max_length=20)
    expected = tokenizer("the file", "the value " * 40, truncation="longest_first", max_length=20)["input_ids"]
    assert features.tokens.tolist() == expected
    assert len(expected) == 20


def test_windows_begin_doc_stride_tokens_apart_and_cover_the_context(tokenizer):
    context = " ".join(f"the value {number} of" for number in range(30))
    example = Example("q", "which value", context, 1, answers=("value 17",), answer_start=context.index("value 17"))
    features = make(TASKS["squad"], [example], tokenizer, max_length=32, doc_stride=10)
    first = [int(features.characters[start:end, 0].max()) for start, end in windows(features)]
    assert len(first) > 3
    plain = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    begins = [next(c[0] for c in features.characters[start:end] if c[0] >= 0) for start, end in windows(features)]
    places = [next(n for n, (left, _) in enumerate(plain) if left == begin) for begin in begins]
    assert set(np.diff(places)) == {10}
    assert max(first) == plain[-1][0]


def test_span_labels_point_at_the_answer_or_at_cls(tokenizer):
    context = " ".join(f"the value {number} of" for number in range(30))
    example = Example("q", "which value", context, 1, answers=("value 17",), answer_start=context.index("value 17"))
    features = make(TASKS["squad"], [example], tokenizer, max_length=32, doc_stride=10)
    found = []
    for (begin, end), (start, stop) in zip(windows(features), features.labels, strict=True):
        characters = features.characters[begin:end]
        if (start, stop) == (0, 0):
            continue
        found.append(context[characters[start, 0] : characters[stop, 1]])
    assert found
    assert set(found) == {"value 17"}


def test_unanswerable_questions_point_at_cls_in_every_window(tokenizer):
    features = make(TASKS["squad_v2"], [Example("q", "which", "the value " * 40, 0)], tokenizer, max_length=32)
    assert not features.labels.any()


def test_long_questions_are_cut_to_their_limit(tokenizer):
    example = Example("q", "the file " * 30, "the value", 0)
    features = make(TASKS["squad_v2"], [example], tokenizer, max_length=64, question_length=12)
    assert len(features.tokens) == 12 + 2 + 3


@pytest.mark.parametrize(
    ("room", "stride"),
    [
        (317, 128),  # BERT's SQuAD settings stay as they are
        (150, 120),  # an answer of 30 tokens fits into what two windows share
        (100, 70),
        (40, 20),  # no room for that: half of a window is shared
        (9, 5),
    ],
)
def test_windows_of_little_room_are_laid_closer(room, stride):
    assert window_stride(room, SpanConfig()) == stride


def test_no_answer_is_lost_between_windows_that_are_shorter_than_doc_stride(tokenizer):
    """Every answer of up to `answer_length` tokens, wherever it lies, is whole in some window."""
    words = [f"the value {number} of" for number in range(40)]
    context = " ".join(words)
    answers = [" ".join(words[at : at + 2]) for at in range(39)]
    examples = [Example(n, "which", context, 1, (), "", (text,), context.index(text)) for n, text in enumerate(answers)]
    tokens = max(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in answers)
    features = make(TASKS["squad"], examples, tokenizer, max_length=48, doc_stride=128, answer_length=tokens)
    assert lost_answers(features, examples) == (0, 39)
    assert features.stride < 48
    assert features.examples == 39
    assert len(features) > 39


def test_answers_that_no_window_holds_are_counted(tokenizer):
    context = "the value " * 60
    long = Example("long", "which", context, 1, answers=(context[:400].strip(),), answer_start=0)
    short = Example("short", "which", context, 1, answers=("the value",), answer_start=0)
    none = Example("none", "which", context, 0)
    features = make(TASKS["squad"], [long, short, none], tokenizer, max_length=32)
    assert lost_answers(features, [long, short, none]) == (1, 2)


def test_too_short_windows_are_refused(tokenizer):
    with pytest.raises(UserError, match="leave no room for the text beside a question"):
        make(TASKS["squad"], [Example("q", "the file " * 30, "the value", 0)], tokenizer, max_length=40)


def test_taking_examples_keeps_their_rows_and_counts_them_anew(tokenizer):
    examples = [Example(n, "which", "the value " * (10 + 20 * n), 0) for n in range(4)]
    features = make(TASKS["squad_v2"], examples, tokenizer, max_length=32)
    some = features.take(np.array([1, 3]))
    again = make(TASKS["squad_v2"], [replace(examples[1]), replace(examples[3])], tokenizer, max_length=32)
    order = np.argsort(some.example, kind="stable")
    assert sorted(some.example.tolist()) == sorted(again.example.tolist())
    assert some.lengths[order].tolist() == again.lengths[np.argsort(again.example, kind="stable")].tolist()


def windows(features):
    return list(zip(features.offsets, features.offsets[1:], strict=False))
