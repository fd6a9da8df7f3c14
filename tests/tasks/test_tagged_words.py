"""The user's own sentences with a label a word, in each format, and what is wrong with them in one line."""

import json

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from mlpt.errors import UserError
from mlpt.tasks import OwnTask, TaskSource, load_task

SENTENCES = [(["Ann", "saw", "New York", "."], ["B-PER", "O", "B-LOC", "O"]), (["Rain"], ["O"])]
CONLL = "Ann B-PER\nsaw O\nNew\tB-LOC\nYork\tI-LOC\n\n\nRain O\n"


def task(tmp_path, files: dict[str, str], share: float = 0.01, **settings):
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode())
    splits = {name.partition(".")[0]: str(tmp_path / name) for name in files}
    own = OwnTask(name="ner", kind="token_classification", **splits, **settings)
    return load_task("ner", TaskSource(own=(own,), max_malformed_share=share))


def jsonl(*rows) -> str:
    return "".join(json.dumps({"words": words, "tags": tags}) + "\n" for words, tags in rows)


def read_back(data, split):
    rows = data.splits[split]
    return [
        ([row.first[a:b] for a, b in row.spans], [data.task.labels[one] for one in row.label or ()]) for row in rows
    ]


def test_rows_of_lists_are_read_from_jsonl_and_parquet(tmp_path):
    table = arrow.Table.from_pylist([{"words": words, "tags": tags} for words, tags in SENTENCES])
    parquet.write_table(table, tmp_path / "dev.parquet")
    files = {"train.jsonl": jsonl(*SENTENCES)}
    own = {"first": "words", "label": "tags", "dev": str(tmp_path / "dev.parquet")}
    data = task(tmp_path, files, **own)
    assert data.task.labels == ("B-LOC", "B-PER", "O")
    assert data.task.metrics == ("entity_f1", "accuracy")
    assert data.splits["train"][0].first == "Ann saw New York ."
    assert read_back(data, "train") == read_back(data, "dev") == SENTENCES


@pytest.mark.parametrize("suffix", ["conll", "txt", "tsv"])
def test_one_word_a_line_with_blank_lines_between_sentences(tmp_path, suffix):
    data = task(tmp_path, {f"train.{suffix}": CONLL, f"test.{suffix}": "Bob\nwaits\n\nHere\n"})
    expected = [(["Ann", "saw", "New", "York"], ["B-PER", "O", "B-LOC", "I-LOC"]), (["Rain"], ["O"])]
    assert read_back(data, "train") == expected
    assert read_back(data, "test") == [(["Bob", "waits"], []), (["Here"], [])]
    assert [row.label for row in data.splits["test"]] == [None, None]


def test_conll_2003_has_its_label_last_and_signs_between_documents(tmp_path):
    text = "-DOCSTART- -X- -X- O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\n"
    data = task(tmp_path, {"train.txt": text})
    assert read_back(data, "train") == [(["EU", "rejects"], ["I-ORG", "O"])]


def test_numbers_are_places_among_labels_that_are_given(tmp_path):
    data = task(
        tmp_path, {"train.jsonl": jsonl((["a", "b"], [2, 0]))}, first="words", label="tags", labels=["O", "B-X", "I-X"]
    )
    assert data.splits["train"][0].label == (2, 0)


def test_plain_labels_have_accuracy(tmp_path):
    data = task(tmp_path, {"train.jsonl": jsonl((["a", "b"], ["DET", "NOUN"]))}, first="words", label="tags")
    assert data.task.metrics == ("accuracy", "macro_f1")
    with pytest.raises(UserError, match=r"asks for entity_f1, and its labels \(DET, NOUN\) are none like B-PER"):
        task(
            tmp_path,
            {"train.jsonl": jsonl((["a", "b"], ["DET", "NOUN"]))},
            first="words",
            label="tags",
            metrics=("accuracy", "entity_f1"),
        )


COLUMNS = {"first": "words", "label": "tags"}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ((["a", "b"], ["O"]), "train.jsonl:2: has 2 words and 1 labels"),
        (([], []), "train.jsonl:2: has no words"),
        ((["a", " "], ["O", "O"]), "train.jsonl:2: has a word in 'words' that is empty or no text"),
        ((["a", 3], ["O", "O"]), "train.jsonl:2: has a word in 'words' that is empty or no text"),
        (("a b", ["O", "O"]), "train.jsonl:2: has no list in 'words'"),
        ((["a"], "O"), "train.jsonl:2: has no list in 'tags'"),
    ],
)
def test_a_malformed_row_is_told_by_its_line(tmp_path, rows, says):
    with pytest.raises(UserError) as caught:
        task(tmp_path, {"train.jsonl": jsonl(SENTENCES[0], rows)}, **COLUMNS)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_few_malformed_rows_are_left_out_and_told(tmp_path):
    rows = [SENTENCES[0]] * 99 + [(["a"], [])]
    data = task(tmp_path, {"train.jsonl": jsonl(*rows)}, **COLUMNS)
    assert len(data.splits["train"]) == 99
    assert "1 of 100 rows" in data.warnings()[0]


def test_an_unknown_label_in_dev_is_told(tmp_path):
    files = {"train.jsonl": jsonl(*SENTENCES), "dev.jsonl": jsonl((["Oslo"], ["B-CITY"]))}
    with pytest.raises(UserError, match=r"dev.jsonl:1: has label 'B-CITY', expected one of B-LOC, B-PER, O"):
        task(tmp_path, files, **COLUMNS)


def test_a_line_without_a_label_costs_its_sentence(tmp_path):
    with pytest.raises(UserError, match=r"train.conll:4: line 5 has no word and label"):
        task(tmp_path, {"train.conll": "a O\nb B-X\n\nc O\nd\n"})


@pytest.mark.parametrize(
    ("files", "settings", "says"),
    [
        ({"train.csv": "words,tags\n"}, COLUMNS, "cannot tell the format of"),
        ({"train.jsonl": jsonl(*SENTENCES)}, {"label": "tags"}, "name the one of the words by 'first'"),
        (
            {"train.jsonl": jsonl(*SENTENCES)},
            {"first": "text", "label": "tags"},
            "no column 'text'; its columns: words, tags",
        ),
        ({"train.jsonl": jsonl((["a"], ["O"]))}, COLUMNS, "have 1 different labels; two are needed"),
        ({"train.conll": ""}, {}, "have 0 different labels"),
        ({"train.conll": ""}, {"labels": ["O", "B-X"]}, "has no rows; give a file with data"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_in_one_line(tmp_path, files, settings, says):
    with pytest.raises(UserError) as caught:
        task(tmp_path, files, **settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["\u00a0\nAnn B-PER\n\n", "\u00a0\n\n", "Ann B-PER\n\u00a0\n\n"])
def test_a_line_without_a_word_makes_its_sentence_malformed(tmp_path, place):
    data = task(tmp_path, {"train.conll": place + CONLL}, share=0.5)
    assert len(data.splits["train"]) == 2
    assert data.reports[0].malformed == 1
