"""Windows drawn by characters, against the published procedure character by character (MetaLMO specification 1.12)."""

from collections import Counter

import numpy as np
import pytest
from data_texts import sentences

from mlpt.arms import arms_of
from mlpt.config import RunConfig
from mlpt.data.blocks import Blocks
from mlpt.data.character_sampler import CharacterSampler, character_counts, token_characters
from mlpt.data.prepare import DataConfig, prepare
from mlpt.data.sources import ALL, Sources
from mlpt.data.tokenizers import train_tokenizer
from mlpt.errors import UserError
from mlpt.settings import load_settings

LENGTH = 12
# Characters of two, three and four bytes, some of them cut in the middle by the window's edge.
ARTICLES = [
    " ".join(sentences(3)),
    "Übung: ﬂößen im März 😀😀😀😀😀😀😀😀 geht",
    "短い文章です。" * 4,
    "tiny",
    " ".join(sentences(9)[4:]),
]


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("articles")
    (folder / "articles.txt").write_text("\n".join(ARTICLES), encoding="utf-8")
    config = DataConfig(
        source=str(folder / "articles.txt"),
        tokenizer="task_bpe",
        vocab_size=330,
        packing="windows",
        block_size=LENGTH,
        dev_share=0,
        test_share=0,
        workers=1,
    )
    prepare(config, str(folder / "blocks"))
    return Blocks.open(str(folder / "blocks"))


def characters_by_window(blocks):
    """The published procedure: of every character of every article, the window whose offsets contain it (the first)."""
    backend = blocks.tokenizer().backend_tokenizer
    backend.enable_truncation(LENGTH, stride=0, strategy="only_first")
    found, row = Counter(), 0
    for article in ARTICLES:
        encoding = backend.encode(article)
        windows = [encoding, *encoding.overflowing]
        for character in range(len(article)):
            contains = (any(start <= character < end for start, end in window.offsets) for window in windows)
            found[row + next(number for number, one in enumerate(contains) if one)] += 1
        row += len(windows)
    return [found[number] for number in range(row)]


def test_a_windows_share_is_the_number_of_characters_that_lead_to_it(blocks, tmp_path):
    counts = character_counts(blocks, tmp_path)
    assert counts.tolist() == characters_by_window(blocks)
    assert int(counts.sum()) == sum(map(len, ARTICLES))


def test_counts_are_made_once_and_mapped(blocks, tmp_path):
    first = character_counts(blocks, tmp_path)
    (file,) = tmp_path.iterdir()
    changed = file.stat().st_mtime_ns
    again = character_counts(blocks, tmp_path)
    assert file.stat().st_mtime_ns == changed
    assert isinstance(again, np.memmap)
    assert np.array_equal(first, again)


def test_every_character_leads_to_its_row():
    # More rows than one chunk, some without characters at all.
    counts = np.random.default_rng(0).integers(0, 4, size=3000).astype(np.uint32)
    sampler = CharacterSampler(counts, 8, seed=0)
    expected = np.repeat(np.arange(3000), counts)
    assert sampler.characters == len(expected)
    assert [sampler.row_of(character) for character in range(len(expected))] == expected.tolist()


def test_rows_are_drawn_in_proportion_to_their_characters():
    counts = np.array([10, 0, 30, 60], dtype=np.uint32)
    sampler = CharacterSampler(counts, 1000, seed=0)
    drawn = sampler.take(0, 50_000)
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    assert shares == pytest.approx(counts / 100, abs=0.01)
    assert shares[1] == 0


def test_the_place_in_the_stream_is_all_there_is_to_a_row():
    counts = np.arange(1, 2000, dtype=np.uint32)
    sampler, other = CharacterSampler(counts, 10, seed=0), CharacterSampler(counts, 10, seed=1)
    whole = sampler.take(0, 40)
    assert np.array_equal(np.concatenate([sampler.take(0, 13), sampler.take(13, 27)]), whole)
    assert np.array_equal(CharacterSampler(counts, 10, seed=0).take(25, 9), whole[25:34])
    assert not np.array_equal(other.take(0, 40), whole)


def test_a_run_draws_its_rows_by_their_characters(blocks, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    walk = Sources(blocks, blocks, blocks, "characters").walk(ALL, 8, seed=3)
    shares = np.bincount(walk.take(0, 20_000), minlength=len(blocks)) / 20_000
    counts = np.array(characters_by_window(blocks))
    assert shares == pytest.approx(counts / counts.sum(), abs=0.02)
    config = load_settings(RunConfig, {"data": {"source": "docs", "mix": "characters"}, "objectives": ["mlm", "dtd"]})
    arms = arms_of(list(config.objectives), blocks.domains, config.data.mix, texts=False)
    assert list(arms.every) == arms.trained == ["mlm", "dtd"]  # one domain is not measured twice
    with pytest.raises(UserError, match="max_repeats is of domains"):
        load_settings(RunConfig, {"data": {"source": "docs", "mix": "characters", "max_repeats": 2}})


def test_letters_are_counted_for_word_pieces():
    tokenizer = train_tokenizer("wordpiece", lambda: iter(sentences(100)), 150)
    lengths = token_characters(tokenizer)
    ids = tokenizer("the red house")["input_ids"]
    assert lengths[ids].sum() == len("theredhouse")
    assert lengths[ids[0]] == lengths[ids[-1]] == 0


def test_no_text_and_no_batch_are_refused():
    with pytest.raises(UserError, match="no text to draw"):
        CharacterSampler(np.zeros(3, dtype=np.uint32), 2, seed=0)
    with pytest.raises(UserError, match="batch_size 0"):
        CharacterSampler(np.ones(3, dtype=np.uint32), 0, seed=0)
