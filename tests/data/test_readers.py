"""Documents out of files, whole and in the right order; bad files give one line that names them."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlpt.data.corpora import Documents, find_files, plan
from mlpt.data.readers import READ_BYTES, Segment, read_segment, text_style
from mlpt.errors import UserError


def documents(path: Path, style: Documents = "auto") -> list[str]:
    files = find_files([str(path)])
    return [
        one.text
        for piece in plan(files, documents=style)
        for segment in piece.segments
        for one in read_segment(segment)
    ]


def error_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        documents(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


def test_blank_lines_separate_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\nstill one\n\n\n \t\ntwo\r\n\r\nthree \xc3\xa9\n")
    assert documents(path) == ["one\nstill one", "two", "three é"]


def test_headings_of_the_first_level_open_documents(tmp_path: Path) -> None:
    path = tmp_path / "wiki.train.tokens"
    text = " \n = First = \n \n Text = more . \n \n = = Part = = \n \n Rest \n \n \n = Second One = \n \n End \n"
    path.write_text(text)
    found = documents(path)
    assert [one.split("\n")[0].strip() for one in found] == ["= First =", "= Second One ="]
    assert "= = Part = =" in found[0]


def test_what_a_document_of_a_text_file_is_can_be_said(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("first\nsecond\n\nthird")
    assert documents(path, "lines") == ["first", "second", "third"]
    assert documents(path, "blank") == documents(path) == ["first\nsecond", "third"]
    assert documents(path, "files") == ["first\nsecond\n\nthird"]
    path.write_text("first\nsecond")
    assert documents(path) == ["first\nsecond"]  # its lines may be one text


@pytest.mark.parametrize(
    ("head", "style"),
    [(b"= A =\n\nx", "heading"), (b"= = A = =\n\nx", "blank"), (b"a = b = c\n\nd", "blank"), (b"a\nb\n", "line")],
)
def test_the_style_of_a_text_is_found(head: bytes, style: str) -> None:
    assert text_style(head) == style


def test_documents_across_the_reading_buffer_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    expected = [f"{number} " + "word " * 30_000 for number in range(20)]  # 150 kB each
    path.write_text("\n\n".join(expected))
    assert path.stat().st_size > 2 * READ_BYTES
    assert documents(path) == [one.strip() for one in expected]


def test_an_endless_document_is_cut_between_words(tmp_path: Path) -> None:
    path = tmp_path / "endless.txt"
    path.write_text("a\n\n" + "naïve " * 500_000)
    found = documents(path)
    assert len(found) > 2
    assert set(" ".join(found[1:]).split()) == {"naïve"}
    assert sum(len(one.split()) for one in found[1:]) == 500_000


def test_gzip_jsonl_and_parquet_give_the_same_documents(tmp_path: Path) -> None:
    texts = ["one", "two\n\nlines", "three é 😀"]
    lines = "".join(json.dumps({"text": text, "domain": "d"}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.table({"text": texts, "other": [1, 2, 3]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        assert documents(tmp_path / name) == texts


def test_a_json_line_without_text_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n\n{"txt": "no"}\n')
    assert "line 3" in error_of(path)


def test_a_line_that_is_no_json_is_numbered_from_the_start_of_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    line = json.dumps({"text": "word " * 2000}) + "\n"
    path.write_text(line * 299 + "{broken\n" + line * 50)
    files = find_files([str(path)])
    assert len(plan(files)) > 1
    assert "line 300 is not JSON" in error_of(path)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(range(256)) * 10)
    assert "binary" in error_of(path)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("caf\xe9 au lait".encode("latin-1"))
    assert "UTF-8" in error_of(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.touch()
    assert "empty" in error_of(path)


@pytest.mark.parametrize("keep", [5, 60, -9, -3])
def test_a_truncated_gzip_is_refused(tmp_path: Path, keep: int) -> None:
    whole = gzip.compress("\n\n".join(f"document {number * 7919}" for number in range(500)).encode())
    path = tmp_path / "a.txt.gz"
    path.write_bytes(whole[:keep])
    assert "gzip" in error_of(path)


def test_a_file_that_only_claims_to_be_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_text('{"text": "plain"}')
    assert "gzip" in error_of(path)


def test_a_parquet_without_text_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["x"]}), path)
    assert "no column 'text'" in error_of(path)
    pq.write_table(pa.table({"text": [1, 2]}), path)
    assert "not string" in error_of(path)
    pq.write_table(pa.table({"text": [f"{number * 7919} words" for number in range(2000)]}), path)
    raw = bytearray(path.read_bytes())
    path.write_bytes(raw[:-20])
    assert "parquet" in error_of(path)
    raw[8:4000] = bytes(3992)
    path.write_bytes(raw)
    assert "parquet" in error_of(path)


def test_half_a_surrogate_pair_in_json_becomes_a_question_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "odd \\ud800 end", "domain": "half \\ud83d"}\n')
    (document,) = read_segment(Segment(str(path), "jsonl", "a"))
    assert (document.text, document.domain) == ("odd ? end", "half ?")


def test_a_number_too_long_for_python_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n{"text": "odd", "id": 1' + "0" * 5000 + "}\n")
    assert "line 2 is not JSON" in error_of(path)
