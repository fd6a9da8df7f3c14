"""Span examples from SQuAD's files, and the tasks made of the embedded documentation."""

import json

import pytest

from mlpt.errors import UserError
from mlpt.tasks import TASKS, TaskSource, load_task
from mlpt.tasks.docs import make_docs


def write_squad(folder, version, *questions, context="Ann was born in Oslo."):
    document = {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(questions)}]}]}
    (folder / f"dev-{version}.json").write_text(json.dumps(document))


def test_questions_of_squad_v1_keep_all_gold_answers_and_the_place_of_the_first(tmp_path):
    answers = [{"text": "Oslo", "answer_start": 16}, {"text": "in Oslo", "answer_start": 13}]
    write_squad(tmp_path, "v1.1", {"id": "a", "question": "Where?", "answers": answers})
    (row,) = load_task("squad", TaskSource(data_dir=str(tmp_path))).splits["dev"]
    assert (row.first, row.answers, row.answer_start, row.label) == ("Where?", ("Oslo", "in Oslo"), 16, 1)


def test_unanswerable_questions_of_squad_v2_have_no_answer(tmp_path):
    question = {"id": "a", "question": "When?", "answers": [], "is_impossible": True}
    write_squad(tmp_path, "v2.0", question)
    (row,) = load_task("squad_v2", TaskSource(data_dir=str(tmp_path))).splits["dev"]
    assert (row.answers, row.answer_start, row.label) == ((), -1, 0)


def test_an_answer_that_does_not_stand_where_it_says_is_malformed(tmp_path):
    good = {"id": "a", "question": "Where?", "answers": [{"text": "Oslo", "answer_start": 16}]}
    bad = {"id": "b", "question": "Where?", "answers": [{"text": "Oslo", "answer_start": 15}]}
    write_squad(tmp_path, "v1.1", good, bad)
    with pytest.raises(UserError, match="answer 'Oslo' of question b does not stand at character 15"):
        load_task("squad", TaskSource(data_dir=str(tmp_path)))
    rows = load_task("squad", TaskSource(data_dir=str(tmp_path), max_malformed_share=0.5)).splits["dev"]
    assert [row.index for row in rows] == ["a"]


@pytest.mark.parametrize(
    "question",
    [
        {"answers": [{"text": "Oslo"}]},
        {"answers": [{"answer_start": 16}]},
        {"answers": [{"text": "Oslo", "answer_start": "16"}]},
        {"answers": [{"text": "Oslo", "answer_start": None}]},
        {"answers": [{"text": 5, "answer_start": 16}]},
        {"answers": [{"text": "Oslo", "answer_start": 16}, {"text": None, "answer_start": 0}]},
        {"answers": ["Oslo"]},
        {"answers": None},
        {"answers": 5},
        {"question": ["Where?"], "answers": [{"text": "Oslo", "answer_start": 16}]},
    ],
)
def test_a_question_of_another_form_is_malformed(tmp_path, question):
    good = {"id": "a", "question": "Where?", "answers": [{"text": "Oslo", "answer_start": 16}]}
    write_squad(tmp_path, "v1.1", good, {"id": "b", "question": "Where?", **question})
    data = load_task("squad", TaskSource(data_dir=str(tmp_path), max_malformed_share=0.5))
    assert [row.index for row in data.splits["dev"]] == ["a"]
    assert data.reports[0].malformed == 1
    assert "dev-v1.1.json:2: " in data.warnings()[0]


def test_a_file_that_is_not_squad_is_refused_in_one_line(tmp_path):
    (tmp_path / "dev-v1.1.json").write_text('{"articles": []}')
    with pytest.raises(UserError, match="is not a SQuAD file"):
        load_task("squad", TaskSource(data_dir=str(tmp_path)))


@pytest.mark.parametrize("name", ["docs_package", "docs_summary", "docs_span"])
def test_docs_tasks_are_real_text_with_every_split_and_more_than_one_label(name):
    data = load_task(name, TaskSource())
    assert {"train", "dev"} <= set(data.splits)
    assert len(data.splits["train"]) > 500
    assert len(data.splits["dev"]) > 50
    if data.task.kind == "classification":
        assert {row.label for row in data.splits["dev"]} == set(range(len(data.task.labels)))
    else:
        for row in data.splits["dev"]:
            assert row.second[row.answer_start :].startswith(row.answers[0])


def test_a_sentence_of_one_word_makes_no_row():
    documents = [
        ("a", "Paths/like/this/have/no/space/in/them. Others have some."),
        ("b", "This sentence has a first and a second half."),
    ]
    data = make_docs("docs_span", documents)
    rows = [row for split in data.splits.values() for row in split]
    assert rows
    for row in rows:
        assert row.first
        assert row.second[row.answer_start :].startswith(row.answers[0])


def test_docs_tasks_are_functions_of_their_documents_and_share_no_text_between_splits():
    documents = [
        (f"package{n % 3}", f"{n} is a number that this text of package speaks about at length. " * 3)
        for n in range(300)
    ]
    data = make_docs("docs_package", documents)
    assert make_docs("docs_package", documents).splits == data.splits
    train, dev = ({row.first for row in data.splits[split]} for split in ("train", "dev"))
    assert train
    assert dev
    assert not train & dev


def test_docs_tasks_are_named_so_that_nobody_takes_them_for_glue():
    assert {name for name, task in TASKS.items() if task.benchmark == "docs"} == {
        "docs_package",
        "docs_summary",
        "docs_span",
    }


# Official sizes of the whole files (README of the data; rows of the GLUE and SuperGLUE releases).
_SIZES = {
    "cola": {"train": 8551, "dev": 1043, "test": 1063},
    "sst2": {"train": 67349, "dev": 872},
    "mrpc": {"train": 3668, "dev": 408, "test": 1725},
    "stsb": {"train": 5749, "dev": 1500, "test": 1379},
    "rte": {"train": 2490, "dev": 277, "test": 3000},
    "boolq": {"train": 9427, "dev": 3270},
    "cb": {"train": 250, "dev": 56},
    "copa": {"train": 800, "dev": 200},
    "wsc": {"train": 554, "dev": 104},
}


@pytest.mark.parametrize("name", sorted(_SIZES))
def test_the_real_files_are_read_whole(name, shared_data):
    data = load_task(name, TaskSource(data_dir=str(shared_data), max_malformed_share=0))
    assert {split: len(rows) for split, rows in data.splits.items()} == _SIZES[name]
    assert not data.warnings()


@pytest.mark.parametrize("name", ["mnli", "qnli", "multirc", "record", "squad"])
def test_the_cut_real_files_are_read_without_a_malformed_row(name, shared_data):
    data = load_task(name, TaskSource(data_dir=str(shared_data), max_malformed_share=0))
    assert all(data.splits.values())
    assert not data.warnings()
