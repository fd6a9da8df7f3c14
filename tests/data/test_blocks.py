"""Prepared folders open mapped, know their tokenizer, and say in one line when they are damaged."""

import os
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pytest
from data_texts import sentences

from mlpt.data.blocks import Blocks
from mlpt.data.prepare import DataConfig, prepare
from mlpt.data.tokenizers import load_tokenizer, train_tokenizer
from mlpt.errors import UserError


@pytest.fixture
def prepared(two_domains: Path, tmp_path: Path) -> Path:
    prepare(DataConfig(source=str(two_domains), vocab_size=120, block_size=16), str(tmp_path / "out"))
    return tmp_path / "out"


def test_rows_come_in_the_order_asked_for(prepared: Path) -> None:
    blocks = Blocks.open(str(prepared), "train")
    whole = blocks.tokens(np.arange(len(blocks)))
    rows = np.array([5, 0, len(blocks) - 1, 5])
    assert (blocks.tokens(rows) == whole[rows]).all()
    assert blocks.tokens(np.array([], dtype=np.int64)).shape == (0, 16)
    with pytest.raises(IndexError):
        blocks.tokens(np.array([len(blocks)]))


def test_nothing_is_copied_from_the_map(prepared: Path) -> None:
    blocks = Blocks.open(str(prepared), "train")
    tokens = blocks._shard(0).tokens[0]
    assert tokens.dtype == np.uint16
    assert not tokens.flags.owndata
    assert not tokens.flags.writeable


def test_the_unigram_entropy_is_that_of_the_counted_tokens(prepared: Path) -> None:
    blocks = Blocks.open(str(prepared), "dev")
    tokens = blocks.tokens(np.arange(len(blocks))).flatten().tolist()
    counted: dict[int, int] = {}
    for token in tokens:
        if token not in blocks.vocabulary.special_ids:
            counted[token] = counted.get(token, 0) + 1
    total = sum(counted.values())
    assert blocks.unigram_entropy() == pytest.approx(-sum(n / total * np.log(n / total) for n in counted.values()))
    assert 0 < blocks.unigram_entropy() < np.log(len(counted))


def test_a_truncated_shard_is_one_line(prepared: Path) -> None:
    path = next(prepared.glob("shards/train-*.arrow"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"{path.name} has .* truncated"):
        Blocks.open(str(prepared), "train")


def test_a_corrupt_shard_is_one_line(prepared: Path) -> None:
    path = next(prepared.glob("shards/train-*.arrow"))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match=f"{path.name} is corrupt"):
        Blocks.open(str(prepared), "train")


def test_a_missing_shard_is_one_line(prepared: Path) -> None:
    path = next(prepared.glob("shards/dev-*.arrow"))
    path.unlink()
    with pytest.raises(UserError, match=f"cannot read .*{path.name}: there is no such file"):
        Blocks.open(str(prepared), "dev")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 1}'])
def test_a_damaged_manifest_is_one_line(prepared: Path, damage: str) -> None:
    (prepared / "manifest.json").write_text(damage)
    with pytest.raises(UserError, match=r"manifest\.json is damaged") as caught:
        Blocks.open(str(prepared), "train")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_changed_behind_the_blocks_is_noticed(prepared: Path) -> None:
    train_tokenizer("wordpiece", lambda: iter(sentences(50)), 100).save_pretrained(prepared / "tokenizer")
    with pytest.raises(UserError, match="does not match the blocks"):
        Blocks.open(str(prepared), "train")


def test_a_model_with_another_tokenizer_is_refused(prepared: Path) -> None:
    blocks = Blocks.open(str(prepared), "train")
    blocks.require_tokenizer(blocks.tokenizer())
    blocks.require_tokenizer(load_tokenizer(str(prepared / "tokenizer")))
    other = train_tokenizer("wordpiece", lambda: iter(sentences(50)), 100)
    with pytest.raises(UserError, match=r"\(100 tokens\) does not match the blocks .* \(120 tokens\)"):
        blocks.require_tokenizer(other)


def test_a_split_without_blocks_is_one_line(two_domains: Path, tmp_path: Path) -> None:
    config = DataConfig(source=str(two_domains), vocab_size=120, block_size=16, test_share=0)
    prepare(config, str(tmp_path / "out"))
    with pytest.raises(UserError, match="no blocks in its test split"):
        Blocks.open(str(tmp_path / "out"), "test")


def test_blocks_travel_to_other_processes_without_their_rows(prepared: Path) -> None:
    blocks = Blocks.open(str(prepared), "train")
    rows = np.arange(10)
    expected = blocks.tokens(rows)
    sent = pickle.dumps(blocks)
    assert len(sent) < 5000
    assert (pickle.loads(sent).tokens(rows) == expected).all()


def test_remote_shards_go_through_a_bounded_cache(tmp_path: Path) -> None:
    source = tmp_path / "input"
    source.mkdir()
    texts = sentences(1000)
    for name in "abc":  # each fills a piece, and so a shard, of its own
        (source / f"{name}.txt").write_text("\n\n".join(f"{text} {n}" for n in range(8) for text in texts))
    small = {"vocab_size": 120, "block_size": 16, "tokenizer_bytes": 50_000}
    config = DataConfig(source=str(source), documents="blank", workers=1, test_share=0, **small)
    manifest = prepare(config, "memory://cached")
    shards = manifest.splits["train"].shards
    assert len(shards) >= 3
    most = max(one.bytes for one in shards) + min(one.bytes for one in shards)
    blocks = Blocks.open("memory://cached", "train", cache_bytes=most)
    prepare(config, str(tmp_path / "near"))
    near = Blocks.open(str(tmp_path / "near"), "train")
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "mlpt" / "shards"
    random = np.random.default_rng(0)
    for _ in range(5):
        rows = random.integers(0, len(blocks), 20)
        assert (blocks.tokens(rows) == near.tokens(rows)).all()
        assert sum(path.stat().st_size for path in cache.iterdir()) <= most


def test_a_damaged_remote_shard_is_one_line(two_domains: Path) -> None:
    prepare(DataConfig(source=str(two_domains), vocab_size=120, block_size=16), "memory://damaged")
    fs = fsspec.filesystem("memory")
    path = fs.glob("/damaged/shards/train-*.arrow")[0]
    fs.pipe_file(path, fs.cat_file(path)[:-50])
    with pytest.raises(UserError, match="truncated or corrupt"):
        Blocks.open("memory://damaged", "train").tokens(np.array([0]))
