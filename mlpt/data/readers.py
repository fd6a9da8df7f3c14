"""Documents out of files: text, JSON lines and parquet, plain or gzipped, read in bounded memory.

A `Segment` is a part of one file that holds whole documents; `read_segment` streams them. Whatever is wrong with a
file becomes one UserError line that names it.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlpt.data.articles import articles, row_style
from mlpt.data.document import Document
from mlpt.errors import UserError
from mlpt.storage.files import filesystem, one_line, readable_errors

READ_BYTES = 1 << 20  # how much is read at a time
DOCUMENT_BYTES = 1 << 20  # a longer text document is cut at a line end, so that memory stays bounded
LINE_BYTES = 1 << 26  # a longer JSON line is refused: it is one document, and must fit in memory
HEAD_ROWS = 2000  # that show whether rows are documents or lines

# WikiText: ` = Title = ` between blank lines opens an article; ` = = Section = = ` doesn't.
_HEADING = rb"[ \t]*= (?![= ])[^\n]*[^=\s] =[ \t]*\r?\n[ \t]*\r?\n"
_BLANK = rb"\n[ \t]*\r?\n"
_STARTS = {
    "heading": re.compile(_BLANK + rb"(?=" + _HEADING + rb")"),
    "blank": re.compile(_BLANK + rb"(?=[ \t]*[^\s])"),
    "line": re.compile(rb"\n"),
    "file": re.compile(rb"(?!)"),  # nowhere
}
_FIRST_HEADING = re.compile(rb"(?:\A\s*|" + _BLANK + rb")" + _HEADING)


@dataclass(frozen=True)
class Segment:
    """A part of one file, holding whole documents; picklable.

    `kind` is "text", "jsonl" or "parquet". `start` and `stop` are byte offsets (row groups of a parquet file);
    `stop` None means to the end. `limit` ends the segment after that many bytes of text. `style` says what a document
    is: of a text file what `text_style` found, or "file" for all of it; of rows what `head_style` found. `named`: all
    of it is of `domain`, whatever its rows say.
    """

    path: str
    kind: str
    domain: str
    start: int = 0
    stop: int | None = None
    limit: int | None = None
    gzipped: bool = False
    style: str = "blank"
    named: bool = False

    def domain_of(self, said: object) -> str:
        """The domain of a row that says `said` (None: nothing)."""
        return self.domain if said is None or self.named else str(said)


def read_segment(segment: Segment) -> Iterator[Document]:
    """The documents of a segment, in order, none of them blank.

    Raises UserError, naming the file, for bytes that are no UTF-8 text, a truncated gzip, a bad JSON line
    (with its number), a parquet file that can't be read or has no `text` column.
    """
    joined = segment.kind != "text" and segment.style in ("heading", "bare heading")
    documents = _articles(segment) if joined else _READERS[segment.kind](segment)
    left = segment.limit
    with readable_errors(segment.path, "read"):
        for document in documents:
            if left is not None and left <= 0:
                return
            if not document.text.strip():
                continue
            if left is not None:
                left -= len(document.text.encode("utf-8", "surrogatepass"))
            yield document


def text_style(head: bytes) -> str:
    """What separates documents in a text file that begins with `head`.

    "heading": WikiText's ` = Title = ` lines, where one is found; else "blank": blank lines; else "line": a file
    without any blank line near its beginning holds one document a line.
    """
    if _FIRST_HEADING.search(head):
        return "heading"
    return "blank" if re.search(_BLANK, head.strip()) else "line"


def head_style(segment: Segment) -> str:
    """The style of the file that `segment` begins: `text_style` of a text file, `row_style` of others."""
    if segment.kind == "text":
        with open_bytes(segment.path, segment.gzipped) as stream:
            try:
                return text_style(stream.read(READ_BYTES))
            except (EOFError, OSError, zlib.error):
                return "blank"  # a damaged gzip: reading the segment says so
    return row_style(_head(row.text for row in islice(_READERS[segment.kind](segment), HEAD_ROWS)))


def _head(texts: Iterator[str]) -> Iterator[str]:
    left = READ_BYTES
    for text in texts:
        yield text
        left -= len(text)
        if left < 0:
            return


def next_start(path: str, style: str, offset: int) -> int | None:
    """Byte offset of the first document that begins after `offset` in a plain text or JSON-lines file, None if none."""
    boundary = _STARTS[style]
    with open_bytes(path) as stream:
        stream.seek(offset)
        buffer = b""
        while chunk := stream.read(READ_BYTES):
            buffer += chunk
            found = boundary.search(buffer)
            if found and found.end() < len(buffer):
                return offset + found.end()
            keep = buffer[-4096:]  # a heading is shorter than this
            offset += len(buffer) - len(keep)
            buffer = keep
    return None


def open_bytes(path: str, gzipped: bool = False) -> Any:
    """Open a local or remote file for reading bytes, unpacked if `gzipped`."""
    fs, inner = filesystem(path)
    raw = fs.open(inner, "rb")
    return gzip.GzipFile(fileobj=raw) if gzipped else raw


def _chunks(segment: Segment) -> Iterator[bytes]:
    """The bytes of a segment, READ_BYTES at a time."""
    with open_bytes(segment.path, segment.gzipped) as stream:
        if segment.start:
            stream.seek(segment.start)
        left = None if segment.stop is None else segment.stop - segment.start
        while left is None or left > 0:
            try:
                chunk = stream.read(READ_BYTES if left is None else min(READ_BYTES, left))
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise UserError(
                    f"{segment.path} is a damaged or truncated gzip file ({one_line(error)}); fetch it again"
                ) from error
            if not chunk:
                return
            if left is not None:
                left -= len(chunk)
            yield chunk


def _text(segment: Segment) -> Iterator[Document]:
    boundary = _STARTS[segment.style]
    buffer, opening = b"", ""
    for chunk in _chunks(segment):
        buffer += chunk
        at = 0
        for found in boundary.finditer(buffer):
            if found.end() < len(buffer):
                yield _text_document(segment, buffer[at : found.end()], opening)
                at, opening = found.end(), ""
        buffer = buffer[at:]
        while len(buffer) > DOCUMENT_BYTES:
            cut = _safe_cut(buffer)
            part = _text_document(segment, buffer[:cut], opening)
            yield part
            buffer, opening = buffer[cut:], opening or part.text
    yield _text_document(segment, buffer, opening)


def _safe_cut(buffer: bytes) -> int:
    """Where to cut an over-long document: after its last line end or space before the limit, never inside a word."""
    for separator in (b"\n", b" "):
        cut = buffer.rfind(separator, 1, DOCUMENT_BYTES)
        if cut > 0:
            return cut + 1
    cut = DOCUMENT_BYTES
    while buffer[cut] & 0xC0 == 0x80:  # not inside a UTF-8 character
        cut -= 1
    return cut


def _text_document(segment: Segment, raw: bytes, opening: str) -> Document:
    return Document(_decode(segment.path, raw).strip(), segment.domain, opening)


def _decode(path: str, raw: bytes) -> str:
    if b"\0" in raw:
        raise UserError(f"{path} is binary, not text; give .txt, .jsonl or .parquet files")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {raw[error.start]:#04x}); convert it, for example with iconv -t UTF-8"
        ) from error


def _jsonl(segment: Segment) -> Iterator[Document]:
    number = 0
    rest = b""
    for chunk in _chunks(segment):
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        if len(rest) > LINE_BYTES:
            raise UserError(
                f"{segment.path} has a line longer than {LINE_BYTES >> 20} MB; is it one JSON object a line?"
            )
        for line in lines:
            number += 1
            if line.strip():
                yield _json_document(segment, line, number)
    if rest.strip():
        yield _json_document(segment, rest, number + 1)


def _json_document(segment: Segment, line: bytes, number: int) -> Document:
    try:
        record = json.loads(_decode(segment.path, line))
    except (ValueError, RecursionError) as error:
        where = _line(segment, number)
        raise UserError(f"{segment.path}, line {where} is not JSON ({one_line(error)}); mend or remove it") from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        where = _line(segment, number)
        raise UserError(f"{segment.path}, line {where} has no string 'text'; each line is an object with \"text\"")
    return Document(_without_lone_surrogates(text), segment.domain_of(record.get("domain")))


def _without_lone_surrogates(text: str) -> str:
    """JSON can spell half of a surrogate pair, which is no character and which tokenizers refuse."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _line(segment: Segment, number: int) -> int:
    """The number in its file of line `number` of a segment; the lines before are only counted when needed."""
    if segment.start == 0:
        return number
    before = Segment(segment.path, segment.kind, segment.domain, 0, segment.start, gzipped=segment.gzipped)
    return number + sum(chunk.count(b"\n") for chunk in _chunks(before))


def open_parquet(path: str) -> pq.ParquetFile:
    """Open a parquet file that has a string column `text`; UserError otherwise."""
    fs, inner = filesystem(path)
    try:
        file = pq.ParquetFile(fs.open(inner, "rb"))
    except pa.ArrowException as error:
        raise UserError(f"{path} is not a whole parquet file ({one_line(error)}); fetch it again") from error
    names = file.schema_arrow.names
    if "text" not in names:
        raise UserError(f"{path} has no column 'text' (it has: {', '.join(names)}); rename the column of documents")
    kind = file.schema_arrow.field("text").type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise UserError(f"{path}: column 'text' is {kind}, not string; convert it")
    return file


def _parquet(segment: Segment) -> Iterator[Document]:
    file = open_parquet(segment.path)
    columns = ["text", "domain"] if "domain" in file.schema_arrow.names else ["text"]
    groups = range(segment.start, file.num_row_groups if segment.stop is None else segment.stop)
    try:
        for batch in file.iter_batches(batch_size=256, row_groups=list(groups), columns=columns):
            domains = batch.column(1).to_pylist() if len(columns) == 2 else [None] * len(batch)
            for text, domain in zip(batch.column(0).to_pylist(), domains, strict=True):
                if text is not None:
                    yield Document(text, segment.domain_of(domain))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{segment.path} is a damaged parquet file ({one_line(error)}); fetch it again") from error


def _articles(segment: Segment) -> Iterator[Document]:
    """The articles that begin in a segment of rows that are lines."""
    read = _READERS[segment.kind]
    after = iter(()) if segment.stop is None else read(replace(segment, start=segment.stop, stop=None))
    bare = segment.style == "bare heading"
    return articles(read(segment), after, segment.start == 0, bare, DOCUMENT_BYTES)


_READERS = {"text": _text, "jsonl": _jsonl, "parquet": _parquet}
