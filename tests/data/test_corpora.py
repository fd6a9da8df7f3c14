"""What a source's name means: files, splits, domains, pieces."""

import gzip
import json
import os
import tempfile
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlpt.data import text_sizes
from mlpt.data.corpora import LARGEST_PIECE, SMALLEST_PIECE, find_files, fingerprint, missing_splits, plan
from mlpt.data.readers import read_segment
from mlpt.errors import UserError


def write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}")
    return folder


def splits(*sources: object) -> dict[str, str | None]:
    return {file.path.rsplit("/", 1)[1]: file.split for file in find_files([str(one) for one in sources])}


def test_wikitext_names_give_the_splits(shared_data: Path) -> None:
    files = find_files([str(shared_data / "wikitext-2")])
    assert [file.split for file in files] == ["test", "train", "dev"]
    assert {file.domain for file in files} == {"wiki"}
    assert missing_splits(files) == ()
    counts = Counter(piece.split for piece in plan(files) for segment in piece.segments for _ in read_segment(segment))
    assert counts == {"train": 600, "dev": 60, "test": 60}  # the articles that WikiText-2 is published with


def test_names_only_count_when_one_says_train(tmp_path: Path) -> None:
    write(tmp_path, "a/test.txt", "a/latest.txt", "b/train.txt", "b/val.txt", "b/other.txt")
    assert splits(tmp_path / "a") == {"test.txt": None, "latest.txt": None}
    assert splits(tmp_path / "b") == {"train.txt": "train", "val.txt": "dev", "other.txt": None}
    assert missing_splits(find_files([str(tmp_path / "b")])) == ("test",)


def test_folders_below_the_source_carry_splits_but_not_those_above(tmp_path: Path) -> None:
    write(tmp_path / "test", "train/x.txt", "validation/y.txt")
    assert splits(tmp_path / "test") == {"x.txt": "train", "y.txt": "dev"}


def test_globs_folders_and_files_are_found_once_each(tmp_path: Path) -> None:
    write(tmp_path, "x.txt", "sub/y.txt", ".hidden/z.txt", "notes.md")
    assert splits(tmp_path) == {"x.txt": None, "y.txt": None}
    assert splits(tmp_path / "*.txt", tmp_path / "x.txt") == {"x.txt": None}


def test_links_to_folders_are_followed_and_each_folder_is_read_once(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", "far/b.txt", "c.txt", ".hidden/d.txt")
    folder = write(tmp_path / "folder", "a.txt", "inside/e.txt")
    links = {"link": outside, "again": outside / "far", "back": folder, "up": tmp_path, "twice": folder / "inside"}
    for name, to in links.items():
        (folder / name).symlink_to(to)
    (folder / "c_too.txt").symlink_to(outside / "c.txt")
    skipped: Counter[str] = Counter()
    found = [Path(file.path).relative_to(folder).as_posix() for file in find_files([str(folder)], skipped=skipped)]
    assert found == ["a.txt", "again/b.txt", "c_too.txt", "inside/e.txt", "link/c.txt"]
    assert not skipped


def test_a_folder_that_cannot_be_read_is_one_line() -> None:
    nobody = 65534 if os.geteuid() == 0 else os.geteuid()  # root may read everything
    with tempfile.TemporaryDirectory() as name:
        folder = write(Path(name), "a.txt", "closed/b.txt")
        folder.chmod(0o755)
        (folder / "closed").chmod(0)
        before = os.geteuid()
        os.seteuid(nobody)
        try:
            with pytest.raises(UserError, match=r"cannot read .*closed: permission denied") as error:
                find_files([name])
        finally:
            os.seteuid(before)
            (folder / "closed").chmod(0o700)
    assert "\n" not in str(error.value)


def test_a_file_of_two_named_domains_is_one_line(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b.txt")
    both: list[tuple[str | None, str]] = [("a", str(tmp_path / "a.txt")), ("b", str(tmp_path))]
    with pytest.raises(UserError, match=r"both a and b name .*a\.txt; name each text once"):
        find_files(both)
    assert len(find_files([("a", str(tmp_path / "a.txt")), ("a", str(tmp_path))])) == 2


def test_any_fsspec_uri_is_read() -> None:
    with fsspec.open("memory://corpus/a.txt", "w") as file:
        file.write("one\n\ntwo")
    files = find_files(["memory://corpus"])
    found = [one.text for piece in plan(files) for segment in piece.segments for one in read_segment(segment)]
    assert found == ["one", "two"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.txt", "no such file"),
        ("empty", "holds no"),
        ("notes.md", "only .txt"),
        ("nope://x/y", "protocol"),
        ("*.jsonl", "holds no"),
    ],
)
def test_a_source_that_gives_nothing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "notes.md")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        find_files([source])
    assert words.lower() in str(caught.value).lower()
    assert "\n" not in str(caught.value)


def test_pieces_hold_every_document_once_whatever_the_cut(tmp_path: Path) -> None:
    texts = [f"document {number} " + "word " * (number % 97) for number in range(20_000)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    with (tmp_path / "b.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    for name in ("a.txt", "b.jsonl"):
        pieces = plan(find_files([str(tmp_path / name)]))
        assert len(pieces) > 2
        assert all(piece.size <= 2 * SMALLEST_PIECE for piece in pieces)
        found = [one.text for piece in pieces for segment in piece.segments for one in read_segment(segment)]
        assert [text.strip() for text in found] == [text.strip() for text in texts]


def test_small_files_share_a_piece(tmp_path: Path) -> None:
    write(tmp_path, *(f"{number:03d}.txt" for number in range(300)))
    pieces = plan(find_files([str(tmp_path)]))
    assert [len(piece.segments) for piece in pieces] == [300]
    assert LARGEST_PIECE > SMALLEST_PIECE > pieces[0].size


def test_a_cap_takes_a_share_of_every_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"{name} {number:04d} " + "x" * 90 for number in range(1000)))
    files = find_files([str(tmp_path)])
    pieces = plan(files, max_bytes=20_000, documents="blank")
    found = [one for piece in pieces for segment in piece.segments for one in read_segment(segment)]
    assert Counter(one.domain for one in found).keys() == {"a", "b"}
    assert 19_000 <= sum(len(one.text) for one in found) <= 20_300


@pytest.mark.parametrize("most", [100_000, 1_000_000, 10_000_000])
@pytest.mark.parametrize("kind", ["txt.gz", "jsonl.gz", "parquet"])
def test_a_cap_counts_the_text_of_packed_files(tmp_path: Path, kind: str, most: int) -> None:
    texts = [f"{number:05d} " + "x y " * 24 for number in range(20_000)]  # 2 MB, packed to a fraction
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": texts, "more": ["z" * 50] * 20_000}), path, row_group_size=1000)
    else:
        lines = texts if kind == "txt.gz" else [json.dumps({"text": text}) for text in texts]
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
    write(tmp_path, "b.txt")
    files = find_files([str(tmp_path)])
    pieces = plan(files, max_bytes=most, documents="lines")
    found = [one.text for piece in pieces for segment in piece.segments for one in read_segment(segment)]
    assert "text of b.txt"[:5] in found[-1]
    assert most > 2_000_000 or 0.85 * most < sum(map(len, found)) < 1.02 * most + 1000
    if most > 2_000_000:
        assert found[:-1] == [text.strip() if kind == "txt.gz" else text for text in texts]


def test_the_text_of_a_long_gzip_file_is_told_from_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_sizes, "SAMPLED", 1 << 20)
    random = np.random.default_rng(0)
    lines = "\n".join(" ".join(map(str, random.integers(0, 1000, 20))) for _ in range(100_000))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(lines.encode()))
    (file,) = find_files([str(tmp_path / "a.txt.gz")])
    assert file.size < len(lines) / 2
    assert file.text_size() == pytest.approx(len(lines), rel=0.05)


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b.txt")
    first = fingerprint(find_files([str(tmp_path)]))
    assert fingerprint(find_files([str(tmp_path)])) == first
    (tmp_path / "a.txt").write_text("text of A.txt")
    assert fingerprint(find_files([str(tmp_path)])) != first


def test_a_hub_dataset_that_cannot_be_loaded_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot load hub:no-such-name-at-all:plain") as caught:
        find_files(["hub:no-such-name-at-all:plain"])
    assert "\n" not in str(caught.value)


def test_a_dataset_goes_through_datasets_with_its_splits(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(f'{{"text": "{split} {n}"}}\n' for n in range(3)))
    files = find_files([f"hub:{tmp_path}"])
    assert [(file.split, file.kind) for file in files] == [("train", "parquet"), ("dev", "parquet")]
    found = [one.text for piece in plan(files) for segment in piece.segments for one in read_segment(segment)]
    assert found == [f"{split} {n}" for split in ("train", "validation") for n in range(3)]


def test_the_capped_embedded_corpus_is_read_to_its_end(tmp_path: Path) -> None:
    write(tmp_path, "train.txt")
    files = find_files(["docs", str(tmp_path)], max_bytes=100_000)
    path = Path(files[0].path)
    found = [
        one
        for piece in plan(files[:1], max_bytes=50_000)
        for segment in piece.segments
        for one in read_segment(segment)
    ]
    assert len(found) == len(path.read_text().splitlines())
    assert 40_000 < sum(len(one.text.encode()) for one in found) <= 50_000
