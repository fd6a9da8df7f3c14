"""One shard job: read a piece of the corpus, tokenise, pack, write Arrow files. A pure, picklable function.

It runs wherever it is sent (this process, a pool's, a Ray task) and writes the same bytes there. Neither torch nor
transformers is imported here: a worker starts in a fraction of a second.
"""

import hashlib
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any

import numpy as np
import pyarrow as pa

from mlpt.data.corpora import SPLITS, Piece
from mlpt.data.document import Document
from mlpt.data.encoder import TextEncoder
from mlpt.data.kd_instances import Style, kd_block_rows, kd_documents
from mlpt.data.packing import Ids, Layout, Packed, Stream, pack_documents, pack_full, pack_windows
from mlpt.data.readers import read_segment
from mlpt.data.splits import Splitting
from mlpt.storage.files import filesystem, readable_errors

BATCH_CHARACTERS, BATCH_DOCUMENTS = 1 << 19, 1024  # documents encoded together
ROWS_BYTES = 8 << 20  # token ids in a record batch
_BY_DOCUMENT = {"document": pack_documents, "windows": pack_windows}


@dataclass(frozen=True)
class ShardJob:
    """All that one piece needs; `number` is its place in the plan.

    `tokenizer` is the JSON of a `tokenizers.Tokenizer`, `unknown` the id of its unknown token. `dtype` is "uint16" or
    "int32".
    """

    number: int
    piece: Piece
    out: str
    tokenizer: str
    unknown: int
    layout: Layout
    packing: str
    splitting: Splitting
    dtype: str


@dataclass(frozen=True)
class Shard:
    """One written file: its name in the prepared folder, what it holds and its hash."""

    file: str
    split: str
    rows: int
    bytes: int
    sha256: str
    domains: tuple[str, ...]


@dataclass(frozen=True)
class ShardResult:
    """What a job wrote, and what it read by split: documents, tokens (special ids left out, dropped tails not), and
    unknown ones of these. `repeated`: documents left out because they stand in a split that a file is named after."""

    number: int
    shards: tuple[Shard, ...]
    documents: dict[str, int]
    tokens: dict[str, int]
    unknown: dict[str, int]
    repeated: int
    size: int


def write_shards(job: ShardJob) -> ShardResult:
    """Write the shards of one piece, at most one a split.

    A split's remainder that doesn't fill a block is dropped. Raises UserError for unreadable input or a full disk.
    """
    writers = {split: _SplitWriter(job, split) for split in SPLITS}
    repeated = 0
    for batch in _batches(document for segment in job.piece.segments for document in read_segment(segment)):
        groups = _by_split(job, batch)
        repeated += len(groups.pop(None, []))
        for split, documents in groups.items():
            writers[str(split)].add(documents)
    shards = [shard for writer in writers.values() if (shard := writer.close())]
    return ShardResult(
        job.number,
        tuple(shards),
        {split: writer.documents for split, writer in writers.items()},
        {split: writer.tokens for split, writer in writers.items()},
        {split: writer.unknown for split, writer in writers.items()},
        repeated,
        job.piece.size,
    )


@lru_cache(maxsize=2)
def _encoder(json_text: str, dtype: str) -> TextEncoder:
    return TextEncoder(json_text, dtype)  # one for all jobs of a process: it remembers words


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _by_split(job: ShardJob, documents: list[Document]) -> dict[str | None, list[Document]]:
    if job.piece.split not in (None, "train"):
        return {job.piece.split: documents}
    groups: dict[str | None, list[Document]] = {}
    for document in documents:
        groups.setdefault(job.splitting.split_of(document), []).append(document)
    return groups


class _SplitWriter:
    """Packs the documents of one split of one piece, and writes them as they fill blocks."""

    def __init__(self, job: ShardJob, split: str):
        self.job, self.split = job, split
        self.documents = self.tokens = self.unknown = 0
        self.dtype: Any = np.dtype(job.dtype)
        self.streams: dict[str, Stream] = {}
        self.domains: set[str] = set()
        self.file: ShardFile | None = None

    def add(self, documents: list[Document]) -> None:
        if self.job.packing == "kd":
            self._add_pairs(documents)
            return
        every = _encoder(self.job.tokenizer, self.job.dtype).encode([document.text for document in documents])
        by_domain: dict[str, tuple[list[Ids], list[int]]] = {}
        for document, ids in zip(documents, every, strict=True):
            if len(ids):
                encoded, numbers = by_domain.setdefault(document.domain, ([], []))
                encoded.append(ids)
                numbers.append((self.job.number << 32) + self.documents)
                self.documents += 1
                self.tokens += len(ids)
                self.unknown += int(np.count_nonzero(ids == self.job.unknown))
        for domain, (encoded, numbers) in by_domain.items():
            if self.job.packing in _BY_DOCUMENT:
                self._write(_BY_DOCUMENT[self.job.packing](encoded, numbers, self.job.layout), domain)
            else:
                self._extend(domain, Stream.of(encoded, numbers, self.job.layout.sep))

    def _add_pairs(self, documents: list[Document]) -> None:
        """Paragraph pairs of each document (`mlpt.data.kd_instances`)."""
        encoder, layout = _encoder(self.job.tokenizer, self.job.dtype), self.job.layout
        style: Style = "roberta" if encoder.tokenizer.id_to_token(layout.cls) == "<s>" else "bert"
        known = encoder.tokenizer.token_to_id("=")
        heading: int = -1 if known is None else known
        lines_of = [
            [*document.text.split("\n"), ""] for document in documents
        ]  # the blank line closes it, as in a file
        encoded = iter(encoder.encode([text for lines in lines_of for line in lines if (text := line.strip())]))

        def ids_of(line: str) -> list[int]:
            """Of the next line that is not blank: they are asked for in order."""
            ids: list[int] = next(encoded).tolist()
            return ids

        for document, lines in zip(documents, lines_of, strict=True):
            paragraphs = list(kd_documents(lines, ids_of, heading))
            number = (self.job.number << 32) + self.documents
            self.documents += 1
            self.tokens += sum(len(one) for part in paragraphs for one in part)
            self.unknown += sum(one.count(self.job.unknown) for part in paragraphs for one in part)
            # Addressed by the text's place in the corpus, which no other shard shares.
            rows = kd_block_rows(
                paragraphs,
                layout.block_size,
                layout.cls,
                layout.sep,
                layout.pad,
                style,
                self.job.splitting.seed + number,
            )
            n = len(rows)
            owner = np.full(n, number, dtype=np.int64)
            ones, offsets = np.ones(n, dtype=np.uint16), np.arange(n + 1, dtype=np.int32)
            self._write(Packed(rows.astype(self.dtype), owner, ones, offsets), document.domain)

    def _extend(self, domain: str, stream: Stream) -> None:
        before = self.streams.pop(domain, None)
        packed, rest = pack_full(stream if before is None else before.then(stream), self.job.layout)
        self._write(packed, domain)
        if len(rest.ids):
            self.streams[domain] = rest

    def _write(self, packed: Packed, domain: str | None) -> None:
        if len(packed):
            if self.file is None:
                name = f"shards/{self.split}-{self.job.number:05d}.arrow"
                self.file = ShardFile(posixpath.join(self.job.out, name), self.job.layout.block_size, self.job.dtype)
            self.file.write(packed, domain)
            if domain is not None:
                self.domains.add(domain)

    def close(self) -> Shard | None:
        """Pack what the domains left end to end, in blocks of no domain, and finish the file."""
        tail: Stream | None = None
        for _, stream in sorted(self.streams.items()):
            tail = stream if tail is None else tail.then(stream)
            packed, tail = pack_full(tail, self.job.layout)
            self._write(packed, None)
        if self.file is None:
            return None
        rows, size, digest = self.file.close()
        name = f"shards/{posixpath.basename(self.file.path)}"
        return Shard(name, self.split, rows, size, digest, tuple(sorted(self.domains)))


class ShardFile:
    """An Arrow IPC file of blocks being written: columns input_ids, domain (null: of several), document, boundaries."""

    def __init__(self, path: str, block_size: int, dtype: str):
        self.path, self.block_size = path, block_size
        ids = pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), block_size)
        self.schema = pa.schema(
            [
                ("input_ids", ids),
                ("domain", pa.string()),
                ("document", pa.int64()),
                ("boundaries", pa.list_(pa.uint16())),
            ]
        )
        self.rows = 0
        self.waiting: list[tuple[Packed, str | None]] = []
        self.waiting_bytes = 0
        with readable_errors(path, "write"):
            fs, inner = filesystem(path)
            self.stream = _Hashed(fs.open(inner, "wb"))
            self.writer = pa.ipc.new_file(pa.PythonFile(self.stream, mode="w"), self.schema)

    def write(self, packed: Packed, domain: str | None) -> None:
        """Add blocks of one domain, or of None; they reach the disk ROWS_BYTES at a time."""
        self.waiting.append((packed, domain))
        self.waiting_bytes += packed.tokens.nbytes
        if self.waiting_bytes >= ROWS_BYTES:
            self._flush()

    def close(self) -> tuple[int, int, str]:
        """Finish the file: its rows, bytes and SHA-256."""
        self._flush()
        with readable_errors(self.path, "write"):
            self.writer.close()
            self.stream.close()
        return self.rows, self.stream.size, self.stream.digest.hexdigest()

    def _flush(self) -> None:
        if not self.waiting:
            return
        packs = [packed for packed, _ in self.waiting]
        tokens = np.concatenate([packed.tokens for packed in packs])  # (rows, block_size)
        counts = np.concatenate([np.diff(packed.offsets) for packed in packs])
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        columns = [
            pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), self.block_size),
            pa.array([domain for packed, domain in self.waiting for _ in range(len(packed))], pa.string()),
            pa.array(np.concatenate([packed.document for packed in packs])),
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate([one.boundaries for one in packs]))),
        ]
        with readable_errors(self.path, "write"):
            self.writer.write_batch(pa.record_batch(columns, schema=self.schema))
        self.rows += len(tokens)
        self.waiting, self.waiting_bytes = [], 0


class _Hashed:
    """A file that is written once, front to back, and hashed on the way."""

    def __init__(self, file: IO[bytes]):
        self.file, self.size, self.digest = file, 0, hashlib.sha256()
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.file.write(view)
        self.digest.update(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.file.close()
