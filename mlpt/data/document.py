"""What corpora are made of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text and the domain it comes from.

    `opening`: of the later parts of a document that is too long for memory, its first part; they share a split.
    """

    text: str
    domain: str
    opening: str = ""
