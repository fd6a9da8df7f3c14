"""Token ids of documents to blocks of one length, without a Python loop over tokens.

`packing: full` lays documents end to end, so that no position is padding:

    [CLS] payload [SEP]        every block, `block_size` ids long
    payload                    the next `block_size - 2` ids of the stream  doc1 [SEP] doc2 [SEP] doc3 [SEP] ...

The block opens and closes as the architecture expects a sequence to; a [SEP] inside it ends a document, and a document
that doesn't fit goes on in the next block. (Where a document ends right at the end of a payload, its own [SEP] and the
block's stand side by side.) As RoBERTa's FULL-SENTENCES (Liu et al. 2019, section 4.2), with domains kept apart:
what they leave at the end that doesn't fill a block goes into blocks of no domain.

`packing: document` gives each document a block: [CLS] its first `block_size - 2` ids [SEP], then padding.

`packing: windows` gives each document as many blocks as it takes, the last of them padded: nothing is lost, and no
block holds two documents. As MetaLMO's articles (Shen, 2021).

Beside the ids, each block has the number of the document that owns its first payload token, and `boundaries`: the
positions in the block at which a document begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[Any]  # uint16 or int32


@dataclass(frozen=True)
class Layout:
    """The length of a block and the ids that frame it."""

    block_size: int
    cls: int
    sep: int
    pad: int

    @property
    def payload(self) -> int:
        """Ids of text (and separators) in a block."""
        return self.block_size - 2


@dataclass(frozen=True)
class Packed:
    """Blocks and their metadata.

    tokens      (n, block_size) uint16 or int32.
    document    (n,) int64.
    boundaries  (m,) uint16, positions within their blocks, block after block.
    offsets     (n + 1,) int32: block i has boundaries[offsets[i]:offsets[i + 1]].
    """

    tokens: Ids
    document: NDArray[np.int64]
    boundaries: NDArray[np.uint16]
    offsets: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass
class Stream:
    """Documents laid end to end, not packed yet.

    ids        (t,): documents, each closed by [SEP]; the first may be the rest of one.
    starts     (d,) int64: offsets in `ids` at which documents begin, ascending.
    documents  (d,) int64: their numbers.
    opening    the number of the document that `ids` begins with the rest of.
    """

    ids: Ids
    starts: NDArray[np.int64]
    documents: NDArray[np.int64]
    opening: int = -1

    @classmethod
    def of(cls, encoded: Sequence[Ids], numbers: Sequence[int], sep: int) -> "Stream":
        """A stream of whole documents; `encoded` holds the ids of each, special ids left out."""
        lengths = np.fromiter((len(ids) + 1 for ids in encoded), dtype=np.int64, count=len(encoded))
        dtype = encoded[0].dtype if encoded else np.uint16
        end = np.array([sep], dtype=dtype)
        parts = [part for ids in encoded for part in (ids, end)]
        joined = np.concatenate(parts) if parts else np.empty(0, dtype)
        starts = np.cumsum(lengths) - lengths
        return cls(joined, starts, np.asarray(numbers, dtype=np.int64))

    def then(self, other: "Stream") -> "Stream":
        """This stream followed by another; where that begins with the rest of a document, a document begins there."""
        size = len(self.ids)
        starts, documents = other.starts, other.documents
        if size and len(other.ids) and not (len(starts) and starts[0] == 0):
            starts, documents = np.insert(starts, 0, 0), np.insert(documents, 0, other.opening)
        return Stream(
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.starts, starts + size]),
            np.concatenate([self.documents, documents]),
            self.opening if size else other.opening,
        )


def pack_full(stream: Stream, layout: Layout) -> tuple[Packed, Stream]:
    """As many whole blocks as `stream` fills, and the rest of it (shorter than one payload)."""
    payload = layout.payload
    n = len(stream.ids) // payload
    used = n * payload
    tokens = np.empty((n, layout.block_size), dtype=stream.ids.dtype)
    tokens[:, 0] = layout.cls
    tokens[:, 1:-1] = stream.ids[:used].reshape(n, payload)
    tokens[:, -1] = layout.sep

    inside = int(np.searchsorted(stream.starts, used))  # documents that begin in a whole block
    starts = stream.starts[:inside]
    offsets = np.searchsorted(starts, np.arange(n + 1) * payload).astype(np.int32)
    numbers = np.concatenate([[stream.opening], stream.documents])
    # The owner of an id is the last document that begins at or before it; `numbers` has the opening one in front.
    owner = numbers[np.searchsorted(stream.starts, np.arange(n) * payload, side="right")]
    packed = Packed(tokens, owner.astype(np.int64), (starts % payload + 1).astype(np.uint16), offsets)
    opening = int(numbers[inside])
    rest = Stream(stream.ids[used:], stream.starts[inside:] - used, stream.documents[inside:], opening)
    return packed, rest


def pack_documents(encoded: Sequence[Ids], numbers: Sequence[int], layout: Layout) -> Packed:
    """One block a document, cut at the payload's length and padded."""
    n = len(encoded)
    dtype = encoded[0].dtype if n else np.uint16
    cut = [ids[: layout.payload] for ids in encoded]
    lengths = np.fromiter((len(ids) for ids in cut), dtype=np.int64, count=n)
    tokens = np.full((n, layout.block_size), layout.pad, dtype=dtype)
    tokens[:, 0] = layout.cls
    if n:
        inside = np.arange(layout.payload) < lengths[:, None]  # (n, payload)
        tokens[:, 1:-1][inside] = np.concatenate(cut)
    tokens[np.arange(n), lengths + 1] = layout.sep
    return Packed(
        tokens, np.asarray(numbers, dtype=np.int64), np.ones(n, dtype=np.uint16), np.arange(n + 1, dtype=np.int32)
    )


def pack_windows(encoded: Sequence[Ids], numbers: Sequence[int], layout: Layout) -> Packed:
    """As many blocks a document as hold all its ids; only its last one is padded."""
    pieces = [np.array_split(ids, range(layout.payload, len(ids), layout.payload)) for ids in encoded]
    counts = np.fromiter((len(one) for one in pieces), dtype=np.int64, count=len(pieces))
    packed = pack_documents([piece for one in pieces for piece in one], np.repeat(numbers, counts).tolist(), layout)
    firsts = np.zeros(len(packed) + 1, dtype=np.int32)
    firsts[np.cumsum(counts) - counts + 1] = 1  # a document begins in the first of its blocks alone
    offsets = np.cumsum(firsts, dtype=np.int32)
    return Packed(packed.tokens, packed.document, np.ones(len(pieces), dtype=np.uint16), offsets)
