"""From text to a prepared folder: the same bytes whoever works, never half a folder, one line for what is wrong."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from data_texts import sentences

from mlpt.data import prepare as prepare_module
from mlpt.data.blocks import Blocks
from mlpt.data.packing import Layout, Stream, pack_full
from mlpt.data.prepare import DataConfig, input_digest, prepare
from mlpt.data.sampler import Sampler
from mlpt.data.shards import ShardFile
from mlpt.data.sources import Sources
from mlpt.data.splits import split_of
from mlpt.errors import UserError

ROOT = Path(prepare_module.__file__).parents[2]
SMALL: dict[str, Any] = {"vocab_size": 120, "block_size": 16, "tokenizer_bytes": 50_000}


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def all_tokens(blocks: Blocks) -> np.ndarray:
    return blocks.tokens(np.arange(len(blocks))).numpy()


@pytest.fixture
def large_text(tmp_path: Path) -> Path:
    """2.2 MB in two pieces, of two domains."""
    folder = tmp_path / "large"
    folder.mkdir()
    for name in ("hills", "rivers"):
        texts = sentences(1000, seed=len(name)) * 9
        (folder / f"{name}.txt").write_text("\n\n".join(f"{text} {number}" for number, text in enumerate(texts)))
    return folder


def test_any_number_of_workers_writes_the_same_bytes(large_text: Path, tmp_path: Path) -> None:
    def anywhere(function: Any, jobs: list[Any]) -> Iterator[Any]:
        return map(function, reversed(jobs))  # as tasks of a cluster that end in another order

    config = {"source": str(large_text), "documents": "blank", **SMALL}
    manifest = prepare(DataConfig(**config, workers=1), str(tmp_path / "one"))
    seen: list[tuple[int, int]] = []
    prepare(DataConfig(**config, workers=2), str(tmp_path / "two"), progress=lambda *done: seen.append(done))
    prepare(DataConfig(**config), str(tmp_path / "elsewhere"), run_shards=anywhere)
    assert len(manifest.splits["train"].shards) >= 2
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert [name for name in contents(tmp_path / "one") if "arrow" in name] == [
        name for name in contents(tmp_path / "elsewhere") if "arrow" in name
    ]
    shards = {name: one for name, one in contents(tmp_path / "one").items() if name != "manifest.json"}
    assert shards == {name: one for name, one in contents(tmp_path / "elsewhere").items() if name != "manifest.json"}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_blocks_hold_the_documents_in_order_without_padding(text_file: Path, tmp_path: Path) -> None:
    manifest = prepare(DataConfig(source=str(text_file), **SMALL), str(tmp_path / "out"))
    shares = {"dev": 0.05, "test": 0.05}
    for split in ("train", "dev"):
        blocks = Blocks.open(str(tmp_path / "out"), split)
        texts = [text for text in sentences(400) if split_of(text, shares, 0) == split]
        tokenizer, sep = blocks.tokenizer(), blocks.vocabulary.sep
        encoded = [np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.uint16) for text in texts]
        layout = Layout(16, blocks.vocabulary.cls, sep, blocks.vocabulary.pad)
        expected, _ = pack_full(Stream.of(encoded, range(len(texts)), sep), layout)
        tokens = all_tokens(blocks)
        assert tokens.dtype == np.int64
        assert (tokens == expected.tokens).all()
        assert not (tokens == blocks.vocabulary.pad).any()
        assert manifest.splits[split].documents == len(texts)
        assert manifest.splits[split].tokens == sum(map(len, encoded))
        shards = [pa.ipc.open_file(path).read_all() for path in sorted(tmp_path.glob(f"out/shards/{split}-*.arrow"))]
        assert pa.concat_tables(shards)["boundaries"].combine_chunks().flatten().equals(pa.array(expected.boundaries))
        assert blocks.domains == ["river"]


def test_one_document_a_block_is_the_other_packing(text_file: Path, tmp_path: Path) -> None:
    prepare(DataConfig(source=str(text_file), packing="document", **SMALL), str(tmp_path / "out"))
    blocks = Blocks.open(str(tmp_path / "out"), "train")
    assert len(blocks) == blocks.manifest.splits["train"].documents
    tokens, tokenizer = all_tokens(blocks), blocks.tokenizer()
    texts = [text for text in sentences(400) if split_of(text, {"dev": 0.05, "test": 0.05}, 0) == "train"]
    expected = tokenizer(texts, truncation=True, padding="max_length", max_length=16)["input_ids"]
    assert tokens.tolist() == expected


def test_domains_stay_apart_and_are_known_of_each_block(two_domains: Path, tmp_path: Path) -> None:
    prepare(DataConfig(source=str(two_domains), **SMALL), str(tmp_path / "out"))
    blocks = Blocks.open(str(tmp_path / "out"), "train")
    assert blocks.domains == ["hills", "rivers"]
    rows = np.arange(len(blocks))
    domains, documents = blocks.domain_of(rows), blocks.documents_of(rows)
    assert 0.4 < domains.mean() < 0.6
    # The i-th training document is of domain i % 2 in the file; count which of them went to train.
    order = [
        n % 2 for n, text in enumerate(sentences(400)) if split_of(text, {"dev": 0.05, "test": 0.05}, 0) == "train"
    ]
    assert domains[:-1].tolist() == [order[number] for number in documents[:-1]]


def test_a_block_that_holds_several_domains_belongs_to_none(tmp_path: Path) -> None:
    words = [{"hills": "north", "rivers": "east", "junk": "zz"}[name] for name in ("hills", "rivers", "junk")]
    path = tmp_path / "rows.jsonl"
    rows = [("hills", 30), ("rivers", 30), ("junk", 5)]
    made = [{"text": " ".join([word] * n), "domain": name} for word, (name, n) in zip(words, rows, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    settings = {"tokenizer": str(tmp_path / "vocab.txt"), "block_size": 10, "dev_share": 0, "test_share": 0}
    prepare(DataConfig(source=str(path), documents="lines", **settings), str(tmp_path / "out"))
    blocks = Blocks.open(str(tmp_path / "out"), "train")
    tokens = blocks.tokens(np.arange(len(blocks))).numpy()
    held = [set(row[row > 4].tolist()) for row in tokens]  # words of a block
    assert blocks.domains == ["hills", "rivers"]
    labels = blocks.domain_of(np.arange(len(blocks))).tolist()
    assert labels == [-1 if len(words) > 1 else min(words) - 5 for words in held]
    assert labels.count(-1) == 2  # nothing is lost to a run that tells no domains apart
    sources = Sources(blocks, blocks, blocks, "uniform")
    taken = sources.walk("all", 2, seed=0).take(0, 100)
    assert {labels[row] for row in taken} == {0, 1}


def test_blocks_of_an_earlier_version_are_not_taken_for_a_run_that_tells_domains_apart(
    two_domains: Path, tmp_path: Path
) -> None:
    config, out = DataConfig(source=str(two_domains), **SMALL), tmp_path / "out"
    mixed = config.model_copy(update={"mix": "uniform"})
    assert input_digest(config) != input_digest(mixed)
    prepare(config, str(out))
    assert prepare(mixed, str(out)).reused
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["apart"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert prepare(config, str(out)).reused
    with pytest.raises(UserError, match=r"of an earlier mlpt.*--overwrite"):
        prepare(mixed, str(out))


def test_the_same_document_never_stands_in_two_splits(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(sentences(200) * 3))
    out = tmp_path / "out"
    prepare(DataConfig(source=str(path), packing="document", vocab_size=120, block_size=64, dev_share=0.3), str(out))
    train, dev = (
        {tuple(row) for row in all_tokens(Blocks.open(str(out), split)).tolist()} for split in ("train", "dev")
    )
    assert not train & dev
    assert 0.15 < len(dev) / (len(train) + len(dev)) < 0.45


def test_separators_written_in_a_text_are_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"{text} [SEP] [MASK] sep" for text in sentences(300)))
    prepare(DataConfig(source=str(path), packing="document", vocab_size=120, block_size=128), str(tmp_path / "out"))
    blocks = Blocks.open(str(tmp_path / "out"), "train")
    tokens = all_tokens(blocks)
    assert ((tokens == blocks.vocabulary.sep).sum(1) == 1).all()
    assert not (tokens == blocks.vocabulary.mask).any()


def test_wikitext_goes_through_with_berts_vocabulary(shared_data: Path, tmp_path: Path) -> None:
    tokenizer = str(shared_data / "tokenizers/bert-base-uncased/vocab.txt")
    config = DataConfig(source=str(shared_data / "wikitext-2"), tokenizer=tokenizer, max_bytes=300_000, workers=1)
    manifest = prepare(config, str(tmp_path / "out"))
    assert (manifest.dtype, manifest.vocabulary["size"]) == ("uint16", 30522)
    assert "vocab_size" not in manifest.settings
    for split in ("train", "dev", "test"):
        blocks = Blocks.open(str(tmp_path / "out"), split)
        assert (all_tokens(blocks)[:, [0, -1]] == [101, 102]).all()
    assert all_tokens(Blocks.open(str(tmp_path / "out"), "test"))[0, 1] == 1027  # "=" of the first heading


def test_the_default_corpus_prepares_itself(tmp_path: Path) -> None:
    manifest = prepare(DataConfig(max_bytes=200_000, vocab_size=1000, block_size=32), str(tmp_path / "out"))
    assert len(manifest.splits["train"].domains) > 20
    assert manifest.splits["dev"].rows > 0


def test_a_prepared_folder_is_reused_and_never_overwritten(text_file: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    config = DataConfig(source=str(text_file), **SMALL)
    assert not prepare(config, out).reused
    before = contents(tmp_path / "out")
    assert prepare(config.model_copy(update={"workers": 2}), out).reused
    with pytest.raises(UserError, match="block_size=16, not 32"):
        prepare(config.model_copy(update={"block_size": 32}), out)
    text_file.write_text(text_file.read_text() + "\n\nmore")
    with pytest.raises(UserError, match="other text"):
        prepare(config, out)
    assert contents(tmp_path / "out") == before


def test_a_folder_of_something_else_is_left_alone(text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds thesis\.tex"):
        prepare(DataConfig(source=str(text_file), **SMALL), str(tmp_path / "mine"))
    with pytest.raises(UserError, match="is a file"):
        prepare(DataConfig(source=str(text_file), **SMALL), str(text_file))


def test_a_killed_prepare_leaves_no_folder_that_opens_and_the_next_one_completes_it(
    large_text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    config = {"source": str(large_text), "documents": "blank", **SMALL, "workers": 1, "max_bytes": 1_500_000}
    program = (
        "import os, signal\n"
        "from mlpt.data.prepare import *\n"
        "def run(function, jobs):\n"
        "    yield function(jobs[0])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"prepare(DataConfig(**{config!r}), {str(out)!r}, run_shards=run)"
    )
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(out.glob("shards/*.arrow"))
    with pytest.raises(UserError, match="not a prepared folder"):
        Blocks.open(str(out))
    prepare(DataConfig(**config), str(out))
    prepare(DataConfig(**config), str(tmp_path / "whole"))
    assert contents(out) == contents(tmp_path / "whole")


def test_an_object_store_gets_the_same_folder(text_file: Path, tmp_path: Path) -> None:
    config = DataConfig(source=str(text_file), **SMALL)
    prepare(config, str(tmp_path / "out"))
    prepare(config, "memory://prepared")
    fs = fsspec.filesystem("memory")
    remote = {path.removeprefix("/prepared/"): fs.cat_file(path) for path in fs.find("/prepared")}
    assert {name: hashlib.sha256(raw).hexdigest() for name, raw in remote.items()} == contents(tmp_path / "out")
    near, far = Blocks.open(str(tmp_path / "out")), Blocks.open("memory://prepared")
    assert (all_tokens(near) == all_tokens(far)).all()
    assert far.tokenizer()("river")["input_ids"] == near.tokenizer()("river")["input_ids"]


@pytest.mark.parametrize(
    ("count", "words"),
    [(1, "the text is one document, .*documents=blank or documents=lines"), (6, "0 of 6 documents went to dev")],
)
def test_too_little_text_is_one_line(tmp_path: Path, count: int, words: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(sentences(count)))
    with pytest.raises(UserError, match=words):
        prepare(DataConfig(source=str(path), vocab_size=100, block_size=16), str(tmp_path / "out"))
    with pytest.raises(UserError, match="not a prepared folder"):
        Blocks.open(str(tmp_path / "out"))


def test_a_split_that_a_run_will_need_is_missed_at_once(text_file: Path, tmp_path: Path) -> None:
    config = DataConfig(source=str(text_file), **SMALL, test_share=1e-6)
    with pytest.raises(
        UserError, match=r"0 of 400 documents went to test .* set a larger test_share, or name a file test"
    ):
        prepare(config, str(tmp_path / "out"))
    assert prepare(config.model_copy(update={"test_share": 0.0}), str(tmp_path / "out")).splits["dev"].rows


def test_errors_of_a_worker_process_arrive_as_one_line(large_text: Path, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in sentences(30_000))
    (large_text / "broken.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-10])
    tokenizer = tmp_path / "vocab.txt"
    tokenizer.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the"]))
    config = DataConfig(source=str(large_text), tokenizer=str(tokenizer), max_unknown=1, block_size=16, workers=2)
    with pytest.raises(UserError, match=r"broken\.jsonl\.gz is a damaged or truncated gzip"):
        prepare(config, str(tmp_path / "out"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, the full disk of Linux")
def test_a_full_disk_is_one_line() -> None:
    file = ShardFile("/dev/full", block_size=16, dtype="uint16")
    packed, _ = pack_full(Stream.of([np.full(200_000, 7, np.uint16)], [0], 2), Layout(16, 1, 2, 0))
    file.write(packed, "a")
    with pytest.raises(UserError, match="cannot write /dev/full: the disk is full"):
        file.close()


@pytest.mark.parametrize(
    "values",
    [{"dev_share": 0.5, "test_share": 0.5}, {"block_size": 3}, {"source": []}, {"packing": "tight"}, {"sauce": "x"}],
)
def test_impossible_settings_are_refused(values: dict[str, Any]) -> None:
    from mlpt.settings import load_settings

    with pytest.raises(UserError) as caught:
        load_settings(DataConfig, values, "data")
    assert "\n" not in str(caught.value)


def test_training_reads_each_block_once_an_epoch(text_file: Path, tmp_path: Path) -> None:
    prepare(DataConfig(source=str(text_file), **SMALL), str(tmp_path / "out"))
    blocks = Blocks.open(str(tmp_path / "out"))
    sampler = Sampler(len(blocks), 8, seed=1)
    read = np.concatenate([blocks.tokens(sampler.rows(step)).numpy() for step in range(len(blocks) // 8 + 1)])
    expected = all_tokens(blocks)
    assert sorted(map(tuple, read[: len(blocks)].tolist())) == sorted(map(tuple, expected.tolist()))


def test_blocks_keep_their_name_when_they_are_found_again(text_file: Path, tmp_path: Path) -> None:
    config = DataConfig(source=str(text_file), vocab_size=300, block_size=16)
    made = prepare(config, str(tmp_path / "out"))
    found = prepare(config, str(tmp_path / "out"))
    assert (made.reused, found.reused) == (False, True)
    assert made.digest == found.digest
