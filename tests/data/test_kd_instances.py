"""TAMT's distillation data. Rules: specs/self-evolution_tamt.md, B6."""

import numpy as np
import pytest

from mlpt.data.blocks import Blocks
from mlpt.data.kd_instances import (
    framed,
    kd_block_rows,
    kd_documents,
    kd_pairs,
    truncate_pair,
)
from mlpt.data.prepare import DataConfig, prepare

LONG = " ".join(f"w{n}" for n in range(25))


def words(text: str) -> list[str]:
    return text.split()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_headings_and_short_documents_are_dropped_and_an_unclosed_one_is_kept():
    lines = ["= Title =", "", LONG, "second paragraph", "", "too short to stay", "", "an unclosed short end"]
    found = list(kd_documents(lines, words, "="))
    assert found == [[words(LONG), ["second", "paragraph"]], [words("an unclosed short end")]]


def test_a_document_of_19_tokens_goes_and_one_of_20_stays():
    for count, stays in ((19, 0), (20, 1)):
        lines = [" ".join(["x"] * count), ""]
        assert len(list(kd_documents(lines, words, "="))) == stays


def test_paragraphs_are_gathered_to_the_target_and_split_at_a_paragraph():
    document = [[f"{p}.{n}" for n in range(10)] for p in range(7)]
    pairs = list(kd_pairs(document, 30, rng(1)))
    for first, second in pairs[:-1]:
        assert len(first) + len(second) == 30
        assert len(first) % 10 == 0
    joined = [token for first, second in pairs for token in first + second]
    assert joined == [token for paragraph in document for token in paragraph]


def test_a_lone_paragraph_has_no_second_part_and_no_pair_is_too_long():
    for seed in range(50):
        for first, second in kd_pairs([["x"] * 45, ["y"] * 3, ["z"] * 80], 40, rng(seed)):
            assert len(first) + len(second) <= 40
    assert all(second == [] for _, second in kd_pairs([["x"] * 60], 40, rng()))


def test_a_tenth_of_the_documents_gets_a_short_target():
    document = [["x"]] * 400
    lengths = [sum(map(len, next(kd_pairs(document, 100, rng(seed))))) for seed in range(2000)]
    assert sum(length < 100 for length in lengths) / 2000 == pytest.approx(0.1 * 98 / 99, abs=0.02)


def test_truncation_takes_from_the_longer_list_and_from_the_second_on_a_tie():
    first, second = list("abcd"), list("wxyz")
    truncate_pair(first, second, 7, rng())
    assert (len(first), len(second)) == (4, 3)
    truncate_pair(first, second, 6, rng())
    assert (len(first), len(second)) == (3, 3)
    assert "".join(first) in ("abc", "bcd")


def test_frames_of_bert_and_roberta():
    assert framed(["a"], ["b"], "[CLS]", "[SEP]", "bert") == (["[CLS]", "a", "[SEP]", "b", "[SEP]"], [0, 0, 0, 1, 1])
    assert framed(["a"], [], "[CLS]", "[SEP]", "bert") == (["[CLS]", "a", "[SEP]"], [0, 0, 0])
    assert framed(["a"], ["b"], "<s>", "</s>", "roberta")[0] == ["<s>", "a", "</s>", "</s>", "b", "</s>"]


def test_rows_are_framed_padded_and_follow_from_the_seed():
    documents = [[[5] * 12, [6] * 9], [[7] * 30]]
    rows = kd_block_rows(documents, 16, cls=2, sep=3, pad=0, style="bert", seed=1)
    assert rows.shape[1] == 16
    assert (rows[:, 0] == 2).all()
    assert ((rows == 3).sum(1) >= 1).all()
    assert np.array_equal(rows, kd_block_rows(documents, 16, 2, 3, 0, "bert", seed=1))


def test_blocks_can_be_packed_as_pairs(tmp_path):
    text = "\n\n".join(f"{LONG}\nmore words of document {n} follow here" for n in range(60))
    (tmp_path / "text.txt").write_text(text)
    config = DataConfig(source=str(tmp_path / "text.txt"), vocab_size=120, block_size=24, packing="kd", workers=1)
    prepare(config, str(tmp_path / "blocks"))
    blocks = Blocks.open(str(tmp_path / "blocks"), "train")
    tokens = blocks.tokens(np.arange(min(8, len(blocks))))
    vocabulary = blocks.vocabulary
    assert (tokens[:, 0] == vocabulary.cls).all()
    assert ((tokens == vocabulary.sep).sum(1) >= 1).all()
