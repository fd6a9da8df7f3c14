"""Labelled words: where they stand in the text that a tokenizer reads."""

import pytest

from mlpt.errors import UserError
from mlpt.tasks.token_labels import read_token_labels


def conllu(*words):
    return "".join("\t".join(word) + "\n" for word in words) + "\n"


def word(number, form, upos, misc="_", xpos="X", deprel="dep"):
    return (number, form, form.lower(), upos, xpos, "_", "0", deprel, "_", misc)


ENGLISH = "# text = I don't go.\n" + conllu(
    word("1", "I", "PRON"),
    ("2-3", "don't", *["_"] * 8),
    word("2", "do", "AUX"),
    word("3", "n't", "PART"),
    word("4", "go", "VERB", "SpaceAfter=No"),
    ("4.1", "home", *["_"] * 8),
    word("5", ".", "PUNCT"),
)


def words_of(sentence):
    return [
        (sentence.text[start:end], label) for (start, end), label in zip(sentence.spans, sentence.labels, strict=True)
    ]


def test_a_treebanks_words_are_found_in_the_text_as_it_was_written(tmp_path):
    (tmp_path / "en.conllu").write_text(ENGLISH)
    (sentence,) = read_token_labels(str(tmp_path / "en.conllu")).train
    assert sentence.text == "I don't go."
    expected = [("I", "PRON"), ("do", "AUX"), ("n't", "PART"), ("go", "VERB"), (".", "PUNCT")]
    assert words_of(sentence) == expected


def test_words_that_are_not_parts_of_their_surface_each_have_all_of_it(tmp_path):
    french = conllu(
        ("1-2", "au", *["_"] * 7, "SpaceAfter=No"),
        word("1", "à", "ADP"),
        word("2", "le", "DET"),
        word("3", ",", "PUNCT"),
    )
    (tmp_path / "fr.conllu").write_text(french)
    (sentence,) = read_token_labels(str(tmp_path / "fr.conllu")).train
    assert sentence.text == "au,"
    assert words_of(sentence) == [("au", "ADP"), ("au", "DET"), (",", "PUNCT")]


def test_another_column_may_label_and_words_without_a_label_stay_context(tmp_path):
    text = conllu(word("1", "Go", "VERB", xpos="_"), word("2", "home", "ADV", xpos="RB"))
    (tmp_path / "a.conllu").write_text(text)
    (sentence,) = read_token_labels(str(tmp_path / "a.conllu"), "xpos").train
    assert (sentence.text, words_of(sentence)) == ("Go home", [("home", "RB")])


def test_plain_files_have_a_word_first_and_its_label_last(tmp_path):
    (tmp_path / "ner.tsv").write_text("# NN B\nAda NNP B-PER\n\n\nis\tO\nhere\tO\n")
    first, second = read_token_labels(str(tmp_path / "ner.tsv")).train
    assert (first.text, words_of(first)) == ("# Ada", [("#", "B"), ("Ada", "B-PER")])
    assert words_of(second) == [("is", "O"), ("here", "O")]


def test_a_treebanks_folder_keeps_its_own_test_sentences(tmp_path):
    for role, form in (("train", "a"), ("dev", "b"), ("test", "c")):
        (tmp_path / f"en_x-ud-{role}.conllu").write_text(conllu(word("1", form, "X")))
    read = read_token_labels(str(tmp_path))
    assert [sentence.text for sentence in read.train] == ["a"]
    assert [sentence.text for sentence in read.held_out] == ["c"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.conllu", "1\tword\tX\n", "a.conllu:1: has 3 columns instead of 10"),
        ("a.conllu", conllu(word("one", "word", "X")), "a.conllu:1: has 'one' instead of a word's number"),
        ("a.tsv", "word\tX\nlonely\n", "a.tsv:2: has no word and label"),
        ("a.conllu", "# nothing\n", "a.conllu has no rows"),
        ("a.conllu", conllu(word("1", "word", "_")), "has no words with labels in column upos"),
    ],
)
def test_bad_lines_are_told_by_file_and_line(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_token_labels(str(tmp_path / name))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_train_and_test_is_refused(tmp_path):
    (tmp_path / "train.conllu").write_text(ENGLISH)
    with pytest.raises(UserError, match="train and one named test"):
        read_token_labels(str(tmp_path))


def test_lines_between_documents_are_no_sentences(tmp_path):
    (tmp_path / "a.txt").write_text("-DOCSTART- -X- O\n\nEU NNP B-ORG\n\n-DOCSTART- -X- O\nwe PRP O\n")
    read = read_token_labels(str(tmp_path / "a.txt")).train
    assert [sentence.text for sentence in read] == ["EU", "we"]


def test_a_treebank_in_several_files_is_read_whole(tmp_path):
    for name in ("train-a", "train-b", "test", "dev"):
        (tmp_path / f"de_contest-ud-{name}.conllu").write_text(conllu(word("1", name, "NOUN")))
    (tmp_path / "de_contest-ud-train-a.txt").write_text("The plain text of it.\n")
    read = read_token_labels(str(tmp_path))
    assert [sentence.text for sentence in read.train] == ["train-a", "train-b"]
    assert [sentence.text for sentence in read.held_out or []] == ["test"]
