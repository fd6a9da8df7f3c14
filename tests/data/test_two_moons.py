"""Two moons as text: the exact strings and points of the MetaLMO specification (1.12, 1.21)."""

import numpy as np
import pytest

from mlpt.data import two_moons
from mlpt.data.blocks import Blocks
from mlpt.data.prepare import DataConfig, prepare
from mlpt.data.vocabulary import Vocabulary


def points(seed, count):
    places, labels = two_moons.moons(seed, count)
    return [(two_moons.write_point(place), int(label)) for place, label in zip(places, labels, strict=True)]


def test_the_pretraining_texts_are_the_published_ones():
    train, dev = two_moons.pretraining_texts("train"), two_moons.pretraining_texts("dev")
    assert (len(train), len(dev)) == (32_000, 1_000)
    assert train[0] == (
        "10 39 11 42 23 40 24 36 26 30 36 36 36 37 36 45 37 9 37 14 39 32 40 14 48 17 50 19 55 14 57 35"
    )
    assert train[1] == (
        "10 33 12 43 16 44 23 24 25 34 26 51 28 48 30 20 31 21 38 31 39 22 45 20 53 33 54 32 55 36 56 39"
    )
    assert dev[0] == "10 39 19 50 20 50 20 55 21 30 21 31 21 48 30 46 31 16 37 24 37 38 37 39 42 13 46 12 46 15 53 35"


def test_ten_labelled_points_are_the_published_ones():
    assert points(43, 10) == [
        ("13 45", 0),
        ("55 38", 1),
        ("27 24", 1),
        ("50 22", 1),
        ("23 47", 0),
        ("23 37", 1),
        ("35 44", 0),
        ("39 13", 1),
        ("39 27", 0),
        ("7 26", 0),
    ]
    assert points(44, 10) == [
        ("22 48", 0),
        ("38 15", 1),
        ("57 39", 1),
        ("37 25", 0),
        ("29 18", 1),
        ("51 13", 1),
        ("23 36", 1),
        ("34 41", 0),
        ("13 44", 0),
        ("9 24", 0),
    ]


def test_a_million_points_stay_within_the_published_range():
    places, labels = two_moons.pretraining_points()
    assert len(places) == 1_000_000
    assert (places[:, 0].min(), places[:, 0].max()) == (0, 62)
    assert (places[:, 1].min(), places[:, 1].max()) == (1, 62)
    assert labels[slice(*two_moons.HELD_OUT)].sum() == 511


@pytest.fixture(scope="module")
def tokenizer():
    return two_moons.train_tokenizer()


def test_every_coordinate_is_one_token_at_the_beginning_and_after_a_space(tokenizer):
    for number in range(two_moons.GRID):
        for text in (str(number), f" {number}"):
            (token,) = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode([token]) == text


def test_every_text_of_sixteen_points_is_34_tokens_and_a_point_is_four(tokenizer):
    lengths = {len(ids) for ids in tokenizer(two_moons.pretraining_texts("train"))["input_ids"]}
    assert lengths == {two_moons.TOKENS}
    assert len(tokenizer("13 45")["input_ids"]) == 4


def test_the_vocabulary_has_its_special_tokens_bytes_and_coordinates_alone(tokenizer):
    # 33 special tokens, 256 bytes; of the 128 coordinates, ten are bytes already.
    assert len(tokenizer) == 33 + 256 + 128 - 10 == 407
    assert Vocabulary.of(tokenizer).special_ids == tuple(range(33))


def test_the_corpus_is_prepared_without_padding(tmp_path, tokenizer):
    sources, folder = two_moons.write_corpus(tmp_path / "corpus")
    config = DataConfig(
        source=sources, tokenizer=folder, packing="windows", block_size=two_moons.TOKENS, workers=1, test_share=0
    )
    prepare(config, str(tmp_path / "blocks"))
    train, dev = (Blocks.open(str(tmp_path / "blocks"), split) for split in ("train", "dev"))
    assert (len(train), len(dev)) == (32_000, 1_000)
    assert train.vocabulary == Vocabulary.of(tokenizer)
    tokens = train.tokens(np.arange(2))
    assert tokens.tolist() == tokenizer(two_moons.pretraining_texts("train")[:2])["input_ids"]
    assert bool((tokens != 0).all())
