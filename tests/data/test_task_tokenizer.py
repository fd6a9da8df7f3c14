"""MetaLMO's tokenizer (specification 1.2): its special ids, what it puts around texts, and what it can write."""

from pathlib import Path

import pytest
from data_texts import sentences

from mlpt.data.task_tokenizer import task_token, train_task_tokenizer
from mlpt.data.tokenizers import load_tokenizer, train_tokenizer, vocabulary_hash
from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return train_task_tokenizer(lambda: iter(sentences(200)), 400)


def test_the_first_ids_are_padding_mask_separator_and_thirty_task_tokens(tokenizer) -> None:
    expected = ["[PAD]", "[MASK]", "[SEP]", *(f"[CLS{number}]" for number in range(30))]
    assert tokenizer.convert_ids_to_tokens(range(33)) == expected
    assert [task_token(number) for number in (0, 1, 9, 29)] == [3, 4, 12, 32]
    with pytest.raises(ValueError, match="30 is none"):
        task_token(30)


def test_the_vocabulary_knows_all_of_them_as_special(tokenizer) -> None:
    vocabulary = Vocabulary.of(tokenizer)
    assert vocabulary == Vocabulary(len(tokenizer), pad=0, mask=1, cls=3, sep=2, unk=1, extra=tuple(range(4, 33)))
    assert vocabulary.special_ids == tuple(range(33))
    assert Vocabulary(**vocabulary.as_json()) == vocabulary


def test_texts_and_pairs_are_framed_and_typed(tokenizer) -> None:
    alone, pair = tokenizer("the red house"), tokenizer("the", "red house")
    assert (alone["input_ids"][0], alone["input_ids"][-1]) == (3, 2)
    first, second = (len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("the", "red house"))
    assert pair["token_type_ids"] == [0] * (first + 2) + [1] * (second + 1)
    assert [place for place, token in enumerate(pair["input_ids"]) if token == 2] == [first + 1, first + second + 2]


def test_case_spaces_and_any_letter_survive_and_a_first_word_is_no_word_after_a_space(tokenizer) -> None:
    text = " Übung 😀  two  Spaces\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text
    assert tokenizer.tokenize("house")[0] != tokenizer.tokenize(" house")[0]


def test_it_comes_back_from_its_folder_and_is_a_kind_to_train(tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert Vocabulary.of(again) == Vocabulary.of(tokenizer)
    assert vocabulary_hash(again) == vocabulary_hash(tokenizer)
    assert again("a", "b")["token_type_ids"] == tokenizer("a", "b")["token_type_ids"]
    trained = train_tokenizer("task_bpe", lambda: iter(sentences(200)), 400)
    assert vocabulary_hash(trained) == vocabulary_hash(tokenizer)


def test_a_pair_of_letters_that_occurs_once_is_a_token_only_if_it_may_be() -> None:
    once = lambda: iter(["xq"])  # noqa: E731
    assert "xq" not in train_task_tokenizer(once, 400).get_vocab()
    assert "xq" in train_task_tokenizer(once, 400, min_frequency=1).get_vocab()


def test_a_vocabulary_without_room_for_bytes_and_task_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="no room for the 256 bytes and 33 special tokens"):
        train_task_tokenizer(lambda: iter(["text"]), 289)
