"""Cloze questions from a user's JSONL and from LAMA's files."""

import json

import pytest

from mlpt.errors import UserError
from mlpt.tasks.cloze import ClozeQuestion, read_cloze, read_words


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_of_ones_own_and_lamas_rows_are_read(tmp_path):
    file = write(
        tmp_path / "mixed.jsonl",
        {"text": "A [MASK] barks.", "answer": "dog"},
        {"text": "A [MASK] mews.", "answer": "cat ", "relation": "sound"},
        {"masked_sentences": ["Paris is in [MASK] ."], "obj_label": "France", "sub_label": "Paris", "pred": "in"},
        {"masked_sentence": "[MASK] is wet.", "obj_label": "Rain", "predicate_id": "P1", "uuid": "x"},
    )
    assert read_cloze(file) == [
        ClozeQuestion("A [MASK] barks.", "dog", ""),
        ClozeQuestion("A [MASK] mews.", "cat", "sound"),
        ClozeQuestion("Paris is in [MASK] .", "France", "in"),
        ClozeQuestion("[MASK] is wet.", "Rain", "P1"),
    ]


def test_lamas_templates_make_texts_of_subjects_and_a_folders_files_name_relations(tmp_path):
    folder = tmp_path / "TREx"
    folder.mkdir()
    row = {"sub_label": "Ada", "obj_label": "London", "evidences": []}
    write(folder / "P19.jsonl", row)
    write(folder / "P20.jsonl", {**row, "predicate_id": "P20"})
    templates = write(
        tmp_path / "relations.jsonl",
        {"relation": "P19", "template": "[X] was born in [Y] ."},
        {"relation": "P20", "template": "In [Y] died [X] ."},
    )
    assert read_cloze(str(folder), templates) == [
        ClozeQuestion("Ada was born in [MASK] .", "London", "P19"),
        ClozeQuestion("In [MASK] died Ada .", "London", "P20"),
    ]
    with pytest.raises(UserError, match="templates=FILE"):
        read_cloze(str(folder))


def test_a_vocabulary_is_one_word_a_line(tmp_path):
    (tmp_path / "common.txt").write_text("dog\nCat\n\nmouse \n")
    assert read_words(str(tmp_path / "common.txt")) == ["dog", "Cat", "mouse"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "no blank", "answer": "x"}, "own.jsonl:2: has 0 blanks"),
        ({"text": "[MASK] and [MASK]", "answer": "x"}, "own.jsonl:2: has 2 blanks"),
        ({"text": "a [MASK]"}, "own.jsonl:2: has no text in 'answer'"),
        ({"answer": "x"}, "own.jsonl:2: has no text in 'text'"),
        (["a"], "own.jsonl:2: is not a JSON object"),
    ],
)
def test_bad_rows_are_told_by_file_and_line(tmp_path, row, says):
    file = write(tmp_path / "own.jsonl", {"text": "a [MASK]", "answer": "b"}, row)
    with pytest.raises(UserError) as error:
        read_cloze(file)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert len(read_cloze(file, max_malformed_share=0.5)) == 1


def test_a_place_without_questions_gets_one_line(tmp_path):
    for place in (str(tmp_path), str(tmp_path / "nowhere.jsonl"), str(tmp_path / "own.csv")):
        with pytest.raises(UserError):
            read_cloze(place)
