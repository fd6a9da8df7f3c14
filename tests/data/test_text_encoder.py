"""Remembered words give the ids that the tokenizer itself gives, for any text."""

import json
from typing import Any

import numpy as np
import pytest
from data_texts import sentences
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from mlpt.data import encoder
from mlpt.data.encoder import TextEncoder
from mlpt.data.tokenizers import encoder_json, train_tokenizer

# All that decides where words end: spaces of every kind, marks that combine, controls, contractions, letters of others.
_TEXT = [
    *("the river", "don't", "I'll", "'s", "x1", "1x", "[SEP]", "<mask>", "=", "-", "...", "(", "é", "É", "İ", "ß", "Σ"),
    *(
        " ",
        "  ",
        "\n",
        "\t",
        "\r\n",
        " \n ",
        "\x85",
        "\xa0",
        "\u2028",
        "\u3000",
        "\x1c",
        "\x1f",
        "\0",
        "\x7f",
        "\ufffd",
    ),
    *(
        "e\u0301",
        "\u0301",
        " \u0301",
        "\u200b",
        "\u00ad",
        "中文",
        "ไทย",
        "한국",
        "²",
        "½",
        "Ⅷ",
        "_",
        "😀",
        "\u0345",
        "`",
    ),
]
PIECES = st.one_of(st.sampled_from(_TEXT), st.text(st.characters(exclude_categories=["Cs"]), max_size=5))
TEXT = st.lists(PIECES, max_size=30).map("".join)


def described(kind: str, **normalizer: Any) -> str:
    texts = [*sentences(200), "".join(_TEXT), "Don't stop, I'll (not) be 1x 2y - é É ß 中文 ไทย"] * 3
    tokenizer = train_tokenizer(kind, lambda: iter(texts), 600)
    if normalizer:
        tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(**normalizer)
    return encoder_json(tokenizer)


TOKENIZERS = {
    "uncased": described("wordpiece"),
    "cased": described("wordpiece", lowercase=False, strip_accents=False, handle_chinese_chars=False),
    "uncleaned": described("wordpiece", clean_text=False, lowercase=True, strip_accents=False),
    "byte level": described("bpe"),
}


def by_tokenizer(description: str, texts: list[str]) -> list[list[int]]:
    tokenizer = Tokenizer.from_str(description)
    tokenizer.encode_special_tokens = True
    return [one.ids for one in tokenizer.encode_batch(texts, add_special_tokens=False)]


def by_words(description: str, texts: list[str]) -> list[list[int]]:
    made = TextEncoder(description, "uint16")
    assert made._words_of is not None
    made.encode(texts[::2])  # some words are known, some new
    return [ids.tolist() for ids in made.encode(texts)]


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(texts=st.lists(TEXT, max_size=8))
@settings(max_examples=400, deadline=None)
def test_the_ids_are_the_tokenizers_own(kind: str, texts: list[str]) -> None:
    assert by_words(TOKENIZERS[kind], texts) == by_tokenizer(TOKENIZERS[kind], texts)


@pytest.mark.parametrize("name", ["bert-base-uncased/vocab.txt", "roberta-base"])
def test_published_vocabularies_give_their_ids_of_real_text(name: str, shared_data: Any) -> None:
    from mlpt.data.tokenizers import load_tokenizer

    description = encoder_json(load_tokenizer(str(shared_data / "tokenizers" / name)))
    lines = (shared_data / "wikitext-2" / "wiki.valid.tokens").read_text().split("\n \n")
    assert by_words(description, lines) == by_tokenizer(description, lines)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_neither_forgetting_nor_words_that_do_not_come_again_change_the_ids(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = sentences(400, seed=1)
    expected = by_tokenizer(TOKENIZERS[kind], texts)
    monkeypatch.setattr(encoder, "REMEMBERED", 50)
    made = TextEncoder(TOKENIZERS[kind], "uint16")
    assert [ids.tolist() for start in range(0, 400, 20) for ids in made.encode(texts[start : start + 20])] == expected
    monkeypatch.setattr(encoder, "NEW_FEW", 0)
    monkeypatch.setattr(encoder, "NEW_SHARE", 0)
    made = TextEncoder(TOKENIZERS[kind], "uint16")
    assert [ids.tolist() for ids in made.encode(texts)] == expected
    assert len(made._places) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}},
        {"added_tokens": [{"id": 5, "content": "the river", "single_word": False, "lstrip": False, "rstrip": False}]},
    ],
)
def test_a_tokenizer_of_another_make_encodes_whole_texts(changes: dict[str, Any]) -> None:
    description = json.loads(TOKENIZERS["uncased"])
    for token in changes.get("added_tokens", []):
        token.update(normalized=False, special=False)
    text = json.dumps({**description, **changes})
    made = TextEncoder(text, "int32")
    assert made._words_of is None
    texts = ["the river runs. [SEP] the  river", ""]
    assert [ids.tolist() for ids in made.encode(texts)] == by_tokenizer(text, texts)
    assert all(ids.dtype == np.int32 for ids in made.encode(texts))
