"""What a document is, and that it stands in one split: whole files, long documents, rows that are lines."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_texts import sentences

from mlpt.config import load_run_config
from mlpt.data.blocks import Blocks
from mlpt.data.config import DataConfig
from mlpt.data.corpora import find_files, plan
from mlpt.data.describe import describe
from mlpt.data.document import Document
from mlpt.data.prepare import prepare
from mlpt.data.readers import DOCUMENT_BYTES, read_segment
from mlpt.errors import UserError

SMALL: dict[str, Any] = {"vocab_size": 200, "block_size": 16, "tokenizer_bytes": 50_000, "workers": 1}


def read(*sources: object, **settings: Any) -> list[Document]:
    pieces = plan(find_files([str(source) for source in sources]), **settings)
    return [document for piece in pieces for segment in piece.segments for document in read_segment(segment)]


def texts(*sources: object, **settings: Any) -> list[str]:
    return [document.text for document in read(*sources, **settings)]


def splits_of_words(out: Path) -> dict[str, set[str]]:
    """Word -> splits in which it stands, of the blocks in `out`."""
    found: dict[str, set[str]] = {}
    for split in ("train", "dev", "test"):
        blocks = Blocks.open(str(out), split)
        for word in blocks.tokenizer().decode(blocks.tokens(np.arange(len(blocks))).flatten()).split():
            found.setdefault(word, set()).add(split)
    return found


@pytest.fixture
def articles(tmp_path: Path) -> Path:
    """A folder of 60 files of one article each, every line of which begins with the article's own word."""
    folder = tmp_path / "articles"
    folder.mkdir()
    for number, name in enumerate(article_names()):
        lines = [f"{name} {line}" for line in sentences(8, seed=number)]
        (folder / f"{number:03d}.txt").write_text("\n".join(lines) + "\n")
    return folder


def article_names() -> list[str]:
    return ["own" + "".join("abcdefghij"[int(digit)] for digit in f"{number:02d}") for number in range(60)]


@pytest.mark.parametrize("separator", ["\n", "\n\n"])
def test_files_of_one_document_each_never_stand_in_two_splits(articles: Path, tmp_path: Path, separator: str) -> None:
    for path in articles.iterdir():
        path.write_text(path.read_text().replace("\n", separator))
    config = DataConfig(
        source=str(articles), dev_share=0.3, test_share=0.2, tokenizer=whole_words(tmp_path), block_size=16
    )
    manifest = prepare(config, str(tmp_path / "out"))
    assert sum(entry.documents for entry in manifest.splits.values()) == 60
    found = splits_of_words(tmp_path / "out")
    assert [len(found[name]) for name in article_names()] == [1] * 60


def whole_words(folder: Path) -> str:
    """A BERT vocabulary that knows the articles' words."""
    from data_texts import WORDS

    numbers = [*map(str, range(10)), *(f"##{digit}" for digit in range(10))]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *article_names(), ".", *numbers]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    return str(folder / "vocab.txt")


def test_what_was_read_is_said(articles: Path, tmp_path: Path) -> None:
    for name in ("notes.md", "more.md", "table.csv", "LICENSE"):
        (articles / name).write_text("no text of ours")
    config = DataConfig(source=str(articles), dev_share=0.3, **SMALL)
    manifest = prepare(config, str(tmp_path / "out"))
    said, blocks = describe(manifest, "out").splitlines()
    assert said.startswith(
        "text: 60 files, each a document: 60 documents (documents=blank or documents=lines cuts them)"
    )
    assert said.endswith("skipped 1 .csv, 2 .md, 1 without suffix")
    assert blocks.startswith("blocks of 16 tokens (made)")
    lines = prepare(config.model_copy(update={"documents": "lines"}), str(tmp_path / "lines"))
    assert describe(lines, "out").startswith("text: 60 files, each line a document: 480 documents; skipped")


def test_a_domain_of_one_file_is_cut_as_that_file_alone_is(tmp_path: Path, articles: Path) -> None:
    """`data.sources={few: few.txt, many: many.txt, articles: FOLDER}`: each of the two is no single document."""
    for name, blanks in (("few", 3), ("many", 5)):
        paragraphs = [f"{name} {line}" for line in sentences(blanks)]
        (tmp_path / f"{name}.txt").write_text("\n\n".join(paragraphs))
    sources = [("few", str(tmp_path / "few.txt")), ("many", str(tmp_path / "many.txt")), ("articles", str(articles))]
    read = [
        (document.domain, document.text)
        for piece in plan(find_files(sources))
        for segment in piece.segments
        for document in read_segment(segment)
    ]
    assert [sum(domain == name for domain, _ in read) for name in ("few", "many", "articles")] == [3, 5, 60]


def test_text_that_one_file_is_named_after_keeps_its_documents(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("one\ntwo")
    (tmp_path / "valid.txt").write_text("three\n\nfour")
    assert texts(tmp_path, by_hash=False) == ["one", "two", "three", "four"]


def test_titles_in_small_files_of_a_folder_are_their_own(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(wikitext(3))
    assert len(texts(tmp_path)) == 2
    assert len(texts(tmp_path, by_hash=False)) == 6
    (tmp_path / "b.txt").write_text(wikitext(1000))  # larger than a document may be
    assert len(texts(tmp_path)) == 1001


def test_a_cap_takes_whole_files_where_files_are_documents(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number:03d}.txt").write_text(f"{number:03d} " + "x" * 996)
    found = texts(tmp_path, max_bytes=20_000)
    assert all(len(text) == 1000 for text in found)
    assert 19 <= len(found) <= 21
    assert {text[0] for text in found} == {"0"}  # of every tenth of the files
    assert len({text[:2] for text in found}) == 10


@pytest.mark.parametrize("kind", ["text", "rows"])
def test_all_parts_of_a_document_that_is_too_long_share_a_split(tmp_path: Path, kind: str) -> None:
    long = [f"line {number} of a long text" for number in range(DOCUMENT_BYTES // 10)]
    if kind == "text":
        (tmp_path / "a.txt").write_text("short\n\n" + "\n".join(long) + "\n\nend")
        first, *parts, last = read(tmp_path / "a.txt")
        assert (first.opening, last.opening) == ("", "")
    else:
        rows = ["", " = Title = \n", "", *(f" {line} \n" for line in long)]
        pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet")
        parts = read(tmp_path / "a.parquet")
    assert len(parts) > 2
    assert [part.opening for part in parts] == ["", *[parts[0].text] * (len(parts) - 1)]
    words = " ".join(part.text for part in parts).replace("= Title =", "").split()
    assert words == " ".join(long).split()


def test_a_text_of_a_named_test_is_in_no_split_made_by_hash(tmp_path: Path) -> None:
    shared, own = sentences(150, seed=1), sentences(300, seed=2)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "train.txt").write_text("\n\n".join([*own, *shared]))
    (tmp_path / "in" / "test.txt").write_text("\n\n".join(shared))
    config = DataConfig(source=str(tmp_path / "in"), packing="document", dev_share=0.4, **{**SMALL, "block_size": 64})
    manifest = prepare(config, str(tmp_path / "out"))
    rows = {}
    for split in ("train", "dev", "test"):
        blocks = Blocks.open(str(tmp_path / "out"), split)
        rows[split] = {tuple(row) for row in blocks.tokens(np.arange(len(blocks))).tolist()}
    assert len(rows["test"]) == 150
    assert not rows["dev"] & rows["test"]
    assert not rows["train"] & rows["test"]
    assert manifest.input is not None
    assert manifest.input.repeated == 150
    assert "150 left out that dev or test has too" in describe(manifest, "out")


# Rows as the hub's WikiText has them: a line each, "" for a blank one.


def wikitext(articles: int) -> str:
    """A file in WikiText's layout: a space before and after each line, blank lines around headings only."""
    lines = []
    for number in range(articles):
        paragraphs = [f" {text} " for text in sentences(12, seed=number)]
        lines += [" ", f" = Title {number} = ", " ", *paragraphs[:5], " ", " = = Part = = ", " ", *paragraphs[5:]]
    return "\n".join([*lines, " "]) + "\n"


def rows_of(text: str) -> list[str]:
    return [f"{line}\n" if line.strip() else "" for line in text.removesuffix("\n").split("\n")]


def write_parquet(rows: list[str], folder: Path) -> str:
    pq.write_table(pa.table({"text": rows}), folder / "rows.parquet", row_group_size=7)
    return str(folder / "rows.parquet")


def write_jsonl(rows: list[str], folder: Path) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


def write_gzip(rows: list[str], folder: Path) -> str:
    content = "".join(json.dumps({"text": row}) + "\n" for row in rows)
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    return str(folder / "rows.jsonl.gz")


def write_hub(rows: list[str], folder: Path) -> str:
    (folder / "hub").mkdir()
    write_jsonl(rows, folder / "hub")
    return f"hub:{folder / 'hub'}"


WRITERS = [write_parquet, write_jsonl, write_gzip, write_hub]


@pytest.mark.parametrize("write", WRITERS)
def test_rows_that_are_lines_give_the_articles_of_the_file(
    write: Callable[[list[str], Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = wikitext(40)
    (tmp_path / "wiki.tokens").write_text(text)
    expected = texts(tmp_path / "wiki.tokens")
    assert len(expected) == 40
    monkeypatch.setattr("mlpt.data.corpora.SMALLEST_PIECE", 500)  # cut within articles, titles and blank lines
    source = write(rows_of(text), tmp_path)
    assert texts(source) == expected
    if write in (write_parquet, write_jsonl):
        assert len(plan(find_files([source]))) > 20


@pytest.mark.parametrize("size", range(1, 12))
def test_no_cut_of_the_rows_loses_or_repeats_a_line(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = wikitext(6)
    (tmp_path / "wiki.tokens").write_text(text)
    pq.write_table(pa.table({"text": rows_of(text)}), tmp_path / "rows.parquet", row_group_size=size)
    monkeypatch.setattr("mlpt.data.corpora.SMALLEST_PIECE", 1)  # each group of rows is a piece
    assert texts(tmp_path / "rows.parquet") == texts(tmp_path / "wiki.tokens")


def test_rows_without_the_blank_lines_give_the_same_articles(tmp_path: Path) -> None:
    text = wikitext(20)
    (tmp_path / "wiki.tokens").write_text(text)
    source = write_parquet([row for row in rows_of(text) if row], tmp_path)
    assert texts(source) == texts(tmp_path / "wiki.tokens")


def test_pairs_and_separators_are_those_of_the_file(tmp_path: Path) -> None:
    text = wikitext(60)
    (tmp_path / "wiki.tokens").write_text(text)
    sources = [str(tmp_path / "wiki.tokens"), *(write(rows_of(text), tmp_path) for write in (write_parquet, write_hub))]
    for packing in ("kd", "full"):
        made = []
        for number, source in enumerate(sources):
            out = str(tmp_path / f"{packing}-{number}")
            prepare(DataConfig(source=source, packing=packing, **{**SMALL, "block_size": 96}), out)
            blocks = Blocks.open(out, "train")
            made.append(blocks.tokens(np.arange(len(blocks))).numpy())
        separators = (made[0] == blocks.vocabulary.sep).sum(1)
        if packing == "kd":
            assert (separators == 2).mean() > 0.3  # a pair: [CLS] A [SEP] B [SEP]
        assert all(np.array_equal(tokens, made[0]) for tokens in made[1:])


def test_rows_that_are_documents_stay_documents(tmp_path: Path) -> None:
    rows = ["one\ntwo", " = Title = \n", "", "three"]
    assert texts(write_jsonl(rows, tmp_path)) == ["one\ntwo", " = Title = \n", "three"]
    lines = rows_of(wikitext(2))
    assert texts(write_parquet(lines, tmp_path), documents="lines") == [line for line in lines if line]


def test_a_long_row_between_equal_signs_is_no_title(tmp_path: Path) -> None:
    passage = " = Title = " + "word " * 300 + "= Section = "  # of a text cut without regard to its lines
    rows = ["first", passage, "third"]
    assert texts(write_jsonl(rows, tmp_path)) == rows


def test_real_wikitext_is_the_same_from_rows(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "wikitext-2" / "wiki.valid.tokens"
    source = write_parquet(rows_of(path.read_text()), tmp_path)
    assert texts(source) == texts(path)


# How much of a text the tokenizer knows.


def test_the_share_of_unknown_tokens_is_said_and_a_large_one_is_refused(tmp_path: Path) -> None:
    words = ["known"] * 7 + ["strange"]
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(" ".join([*words, str(number)]) for number in range(200)))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "known", *map(str, range(200))]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    config = DataConfig(source=str(path), tokenizer=str(tmp_path / "vocab.txt"), block_size=16, workers=1)
    with pytest.raises(UserError, match=r"does not know this text: 11\.1% .* max_unknown=0\.12") as caught:
        prepare(config, str(tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.arrow"))
    manifest = prepare(config.model_copy(update={"max_unknown": 0.12}), str(tmp_path / "out"))
    assert manifest.unknown_share == pytest.approx(1 / 9)
    assert "(11.11% unknown)" in describe(manifest, "out")
    with pytest.raises(UserError, match="does not know this text"):
        prepare(config, str(tmp_path / "out"))
    prepared = {"source": str(tmp_path / "out")}
    with pytest.raises(UserError, match="does not know this text"):
        load_run_config(None, {"data": {**prepared, "max_unknown": 0.05}})
    assert load_run_config(None, {"data": prepared}).data.block_size == 16


def test_strange_text_past_the_beginning_is_noticed_too(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    known, strange = "\n\n".join(sentences(15_000)), "\n\n".join(f"Ω{number}Ω" * 3 for number in range(60_000))
    path.write_text(f"{known}\n\n{strange}")
    config = DataConfig(source=str(path), tokenizer=whole_words(tmp_path), block_size=16, workers=1)
    with pytest.raises(UserError, match="does not know this text"):
        prepare(config, str(tmp_path / "out"))
    with pytest.raises(UserError, match="not a prepared folder"):
        Blocks.open(str(tmp_path / "out"))
