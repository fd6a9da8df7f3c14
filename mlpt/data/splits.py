"""Which split a document goes to where no file name says it: by a hash, so that equal texts stay together."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from mlpt.data.document import Document


@dataclass(frozen=True)
class Splitting:
    """Picklable.

    `shares`: the part of the documents (0..1) that goes to each split that no file name gives; `seed` decides which.
    `named`: digests of the documents of the splits that files do name, so that none of them is taken for another.
    """

    shares: dict[str, float]
    seed: int
    named: frozenset[bytes] = field(default_factory=frozenset)

    def split_of(self, document: Document) -> str | None:
        """The split of a document of training files; None: it stands in a named split too, and is left out."""
        if not self.shares:
            return "train"
        text = document.opening or document.text
        if self.named and _digest(text) in self.named:
            return None
        return split_of(text, self.shares, self.seed)


def split_of(text: str, shares: dict[str, float], seed: int) -> str:
    """The split of a document, from its text alone: equal texts never stand on both sides."""
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8, salt=seed.to_bytes(8, "little"))
    place = int.from_bytes(digest.digest(), "little") / 2**64
    for split, share in shares.items():
        if place < share:
            return split
        place -= share
    return "train"


def digests(documents: Iterable[Document]) -> frozenset[bytes]:
    """What `Splitting.named` wants to know of documents: 8 bytes each."""
    return frozenset(_digest(document.opening or document.text) for document in documents)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
