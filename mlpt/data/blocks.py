"""Prepared blocks on disk: opened memory-mapped, never loaded.

Local shards are mapped where they lie; remote ones are fetched into a bounded cache when they are first read.
"""

import hashlib
import itertools
import os
import posixpath
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlpt.data.batch import Batch, Split
from mlpt.data.counts import kept_counts
from mlpt.data.manifest import Manifest, ShardEntry, read_manifest
from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.storage.files import absolute, cache_directory, file_sha256, filesystem, is_local, one_line, readable_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CACHE_BYTES = 20 << 30  # of remote shards kept on this machine
VERIFIED_BYTES = 1 << 30  # a split up to this size is hashed when it is opened (under a second); larger: sizes only


@dataclass(frozen=True)
class _OpenShard:
    """A mapped shard: `first[i]` is the row at which `tokens[i]` (rows, block_size) begins."""

    table: pa.Table
    first: NDArray[np.int64]
    tokens: list[NDArray[Any]]


class Blocks:
    """The rows of one split of a prepared folder. Row order is fixed; `Sampler` says which to read when."""

    def __init__(
        self,
        folder: str,
        split: Split,
        manifest: Manifest,
        cache_bytes: int = CACHE_BYTES,
        tells_documents: bool = False,
    ):
        self.folder, self.split, self.manifest = folder, split, manifest
        self.entry = manifest.splits[split]
        self.block_size = manifest.block_size
        self.domains: list[str] = list(self.entry.domains)
        self.vocabulary = Vocabulary(**manifest.vocabulary)
        self.cache_bytes, self.tells_documents = cache_bytes, tells_documents
        self._ends = np.cumsum([shard.rows for shard in self.entry.shards], dtype=np.int64)
        self._begins = np.concatenate([[0], self._ends[:-1]])
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._local = is_local(filesystem(folder)[0])
        self._entropy: float | None = None

    @classmethod
    def open(
        cls, path: str, split: Split = "train", cache_bytes: int = CACHE_BYTES, tells_documents: bool = False
    ) -> "Blocks":
        """Open "train", "dev" or "test" of the folder (or URI) that `prepare` wrote.

        tells_documents  its batches say which document each token belongs to.

        Raises UserError: not a prepared folder, no blocks in that split, a shard that is missing, truncated or (hashed
        for splits up to 1 GB) changed, a tokenizer that isn't the one the blocks were made with.
        """
        path = absolute(path)
        manifest = read_manifest(path)
        if manifest is None:
            raise UserError(
                f"{path} is not a prepared folder (no manifest.json); make one with mlpt prepare SOURCE --out"
            )
        if split not in manifest.splits or not manifest.splits[split].rows:
            raise UserError(
                f"{path} has no blocks in its {split} split; prepare more text, or with a larger share of it"
            )
        blocks = cls(path, split, manifest, cache_bytes, tells_documents)
        blocks._check_tokenizer_file()
        if blocks._local:
            check_files(path, blocks.entry.shards, AGAIN)
        return blocks

    def __len__(self) -> int:
        return self.entry.rows

    def tokens(self, rows: NDArray[np.int64]) -> Tensor:
        """Token ids of `rows` (n,), in that order: (n, block_size) int64 on the CPU."""
        out = np.empty((len(rows), self.block_size), dtype=np.int64)
        for number, where, inside in self._by_shard(rows):
            shard = self._shard(number)
            if len(shard.tokens) == 1:
                out[where] = shard.tokens[0][inside]
                continue
            batch = np.searchsorted(shard.first, inside, side="right") - 1
            for one in np.unique(batch):
                chosen = batch == one
                out[where[chosen]] = shard.tokens[one][inside[chosen] - shard.first[one]]
        return torch.from_numpy(out)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """These rows, in that order, as a batch."""
        documents = self.documents_in(rows) if self.tells_documents else None
        return Batch(self.tokens(rows), rows, self.split, documents=documents)

    def rows_of(self, domain: str) -> NDArray[np.int64]:
        """The numbers of all rows of a domain, ascending: (n,) int64."""
        found = [np.empty(0, dtype=np.int64)]
        for number, begin in enumerate(self._begins):
            same = pc.fill_null(pc.equal(self._shard(number).table["domain"], domain), False)
            found.append(np.flatnonzero(same.to_numpy(zero_copy_only=False)) + begin)
        return np.concatenate(found)

    def domain_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The domain of each of `rows`, as an index into `domains`, -1 for a block of several: (n,) int64."""
        index: dict[str | None, int] = {domain: number for number, domain in enumerate(self.domains)} | {None: -1}
        out = np.empty(len(rows), dtype=np.int64)
        for number, where, inside in self._by_shard(rows):
            names = self._shard(number).table["domain"].take(pa.array(inside)).to_pylist()
            out[where] = [index[name] for name in names]
        return out

    def documents_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the document that each of `rows` begins with (a part of): (n,) int64."""
        out = np.empty(len(rows), dtype=np.int64)
        for number, where, inside in self._by_shard(rows):
            out[where] = self._shard(number).table["document"].take(pa.array(inside)).to_numpy()
        return out

    def documents_in(self, rows: NDArray[np.int64]) -> Tensor:
        """Which document of its block each token of `rows` belongs to, from 0 on: (n, block_size) int64.

        A document ends with its separator. The first token of a block belongs to the document that stands first.
        """
        begins = torch.zeros(len(rows), self.block_size, dtype=torch.int64)
        for number, where, inside in self._by_shard(rows):
            lists = self._shard(number).table["boundaries"].take(pa.array(inside)).combine_chunks()
            places = pc.list_flatten(lists).to_numpy().astype(np.int64)
            begins[where[pc.list_parent_indices(lists).to_numpy()], places] = 1
        begins[:, :2] = 0
        return begins.cumsum(1)

    def token_counts(self) -> NDArray[np.int64]:
        """How often each id occurs in the split, special ids and padding included: (vocabulary,) int64, the caller's.

        Counted once and kept in a small file: beside the shards or, for remote ones, in the user's cache.
        """
        return kept_counts(self._counts_file(), self.vocabulary.size, self._count)

    def _count(self) -> NDArray[np.int64]:
        counts = np.zeros(self.vocabulary.size, dtype=np.int64)
        for number in range(len(self.entry.shards)):
            for tokens in self._shard(number).tokens:
                counts += np.bincount(tokens.reshape(-1), minlength=self.vocabulary.size)
        return counts

    def _counts_file(self) -> Path:
        """Named by the blocks' digest; among the shards, so that it goes when they go."""
        name = f"{self.split}-{self.manifest.digest}.counts.npy"
        if self._local:
            return Path(filesystem(posixpath.join(self.folder, "shards"))[1]) / name
        return cache_directory() / "counts" / name

    def unigram_entropy(self) -> float:
        """Entropy of the split's distribution of tokens, in nats a token; special and padding ids left out.

        It is the loss of the best predictor that ignores all context. Zero for a split of special ids only.
        """
        if self._entropy is None:
            counts = self.token_counts()
            counts[list(self.vocabulary.special_ids)] = 0
            shares = counts[counts > 0] / max(1, counts.sum())
            self._entropy = float(-(shares * np.log(shares)).sum())
        return self._entropy

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The tokenizer the blocks were made with."""
        from mlpt.data.tokenizers import load_tokenizer

        if self._local:
            return load_tokenizer(posixpath.join(self.folder, "tokenizer"))
        fs, inner = filesystem(posixpath.join(self.folder, "tokenizer"))
        target = cache_directory() / "tokenizers" / self.manifest.tokenizer_sha256[:16]
        with readable_errors(self.folder, "read"):
            target.mkdir(parents=True, exist_ok=True)
            for name in fs.ls(inner, detail=False):
                fs.get_file(name, str(target / posixpath.basename(name)))
        return load_tokenizer(str(target))

    def require_tokenizer(self, tokenizer: "PreTrainedTokenizerFast", whose: str = "") -> None:
        """Raise UserError unless `tokenizer` (a pretrained model's, say) gives every token the id it has here."""
        from mlpt.data.tokenizers import vocabulary_hash

        if vocabulary_hash(tokenizer) != self.manifest.vocabulary_sha256:
            raise UserError(
                f"the tokenizer {whose}({len(tokenizer)} tokens) does not match the blocks in {self.folder} "
                f"({self.vocabulary.size} tokens); prepare them with that tokenizer"
            )

    def require_tokenizer_of(self, model: str) -> None:
        """As `require_tokenizer`, with the tokenizer saved beside a model (a folder or hub name), if there is one.

        An equal size proves nothing, and a smaller vocabulary gives plausible losses of other tokens.
        """
        from mlpt.data.tokenizers import has_tokenizer, load_tokenizer

        if has_tokenizer(model):
            self.require_tokenizer(load_tokenizer(model), f"of {model} ")

    def __getstate__(self) -> dict[str, Any]:
        """Sent to another process, the blocks are opened anew there."""
        return {**self.__dict__, "_open": OrderedDict()}

    def _by_shard(self, rows: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """(shard, places in `rows`, rows within the shard) of every shard that `rows` touch."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of {len(self)}")
        shards = np.searchsorted(self._ends, rows, side="right")
        order = np.argsort(shards, kind="stable")
        numbers = shards[order]
        inside = rows[order] - self._begins[numbers]
        edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(rows)]
        return [
            (int(numbers[start]), order[start:stop], inside[start:stop])
            for start, stop in itertools.pairwise(edges)
            if start < stop
        ]

    def _shard(self, number: int) -> _OpenShard:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        entry = self.entry.shards[number]
        path = posixpath.join(self.folder, entry.file)
        if self._local:
            path = filesystem(path)[1]
        else:
            path = str(fetch(path, entry, self.cache_bytes, AGAIN))
            # An open map keeps a file that left the cache on the disk.
            while self._open and entry.bytes + self._mapped_bytes() > self.cache_bytes:
                self._open.popitem(last=False)
        self._open[number] = _map(path, entry, self.block_size)
        return self._open[number]

    def _mapped_bytes(self) -> int:
        return sum(self.entry.shards[number].bytes for number in self._open)

    def _check_tokenizer_file(self) -> None:
        path = posixpath.join(self.folder, "tokenizer", "tokenizer.json")
        fs, inner = filesystem(path)
        with readable_errors(path, "read"):
            digest = hashlib.sha256(fs.cat_file(inner)).hexdigest()
        if digest != self.manifest.tokenizer_sha256:
            raise UserError(f"{path} does not match the blocks: it was changed after they were made; {AGAIN}")


AGAIN = "remove the folder and prepare it again"


def check_files(folder: str, entries: Sequence[ShardEntry], again: str) -> None:
    """Raise UserError unless every file of a local folder has its size and, up to VERIFIED_BYTES in all, its SHA-256.

    again  what a person does about it, the end of the message.
    """
    hashed = sum(entry.bytes for entry in entries) <= VERIFIED_BYTES
    for entry in entries:
        path = filesystem(posixpath.join(folder, entry.file))[1]
        with readable_errors(path, "read"):
            size = os.path.getsize(path)
            if size != entry.bytes:
                raise UserError(f"{path} has {size} bytes, not {entry.bytes}: it is truncated; {again}")
            if hashed and file_sha256(path) != entry.sha256:
                raise UserError(f"{path} is corrupt (its SHA-256 is not the manifest's); {again}")


def _map(path: str, entry: ShardEntry, block_size: int) -> _OpenShard:
    try:
        reader = pa.ipc.open_file(pa.memory_map(path))
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        tokens = []
        for batch in batches:
            column = batch.column("input_ids")
            tokens.append(column.flatten().to_numpy(zero_copy_only=True).reshape(-1, block_size))
        table = pa.Table.from_batches(batches, schema=reader.schema)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a whole shard ({one_line(error)}); {AGAIN}") from error
    if table.num_rows != entry.rows:
        raise UserError(f"{path} has {table.num_rows} rows, not {entry.rows}; {AGAIN}")
    sizes = [len(part) for part in tokens]
    return _OpenShard(table, np.cumsum([0, *sizes[:-1]], dtype=np.int64), tokens)


def fetch(path: str, entry: ShardEntry, cache_bytes: int, again: str) -> Path:
    """A remote file as a file of the cache, checked; the least recently used ones make room for it."""
    folder = cache_directory() / "shards"
    target = folder / f"{entry.sha256}.arrow"
    if target.exists() and target.stat().st_size == entry.bytes:
        os.utime(target)
        return target
    fs, inner = filesystem(path)
    partial = folder / f"{entry.sha256}.{os.getpid()}"
    with readable_errors(path, "read"):
        folder.mkdir(parents=True, exist_ok=True)
        _make_room(folder, cache_bytes - entry.bytes)
        fs.get_file(inner, str(partial))
        if file_sha256(str(partial)) != entry.sha256:
            partial.unlink()
            raise UserError(f"{path} is truncated or corrupt (its SHA-256 is not the manifest's); {again}")
        os.replace(partial, target)
    return target


def _make_room(folder: Path, most: int) -> None:
    kept = sorted(folder.glob("*.arrow"), key=lambda path: path.stat().st_mtime)
    total = sum(path.stat().st_size for path in kept)
    for path in kept:
        if total <= most:
            return
        total -= path.stat().st_size
        path.unlink(missing_ok=True)
