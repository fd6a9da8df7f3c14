"""Articles out of rows that are lines: WikiText as the hub has it, each line of the files a row of its own.

Joined again, the rows give the documents that the files give (`mlpt.data.readers`, style "heading").
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import Literal

from mlpt.data.document import Document

RowStyle = Literal["row", "heading", "bare heading"]

_TITLE = re.compile(r"[ \t]*= (?![= ]).*[^=\s] =[ \t]*")
_HEADING = re.compile(r"[ \t]*(?:= )+(?![= ]).*[^=\s](?: =)+[ \t]*")  # of any level

LONGEST_TITLE = 250  # characters, twice WikiText's longest; a longer row is a text between equal signs


def row_style(texts: Iterable[str]) -> RowStyle:
    """What the rows are that a file begins with.

    "heading": lines of articles, blank ones between them; "bare heading": such lines without the blank ones; else
    "row": documents.
    """
    lines = []
    for text in texts:
        lines.append(_line(text))
        if "\n" in lines[-1]:
            return "row"
    bare = all(line.strip() for line in lines)
    for before, line, after in zip(["", *lines], lines, [*lines[1:], "end"], strict=False):
        if len(line) <= LONGEST_TITLE and _opens(before, line, after, bare):
            return "bare heading" if bare else "heading"
    return "row"


def articles(
    own: Iterable[Document], after: Iterable[Document], first: bool, bare: bool, most: int
) -> Iterator[Document]:
    """The articles that begin in a segment.

    own    the rows of the segment, blank ones too; `first`: those that the file begins with.
    after  the rows that follow it in the file. They are read to the end of the segment's last article. An article
           belongs to the segment of the row before its title.
    bare   the rows have no blank lines: headings get theirs back.
    most   characters in memory; a longer article is given in parts.
    """
    article = _Article(most) if first else None
    before: tuple[bool, str] | None = None
    rows = chain(((True, row) for row in own), ((False, row) for row in after), [(False, None)])
    for (is_own, row), (_, following) in pairwise(rows):
        assert row is not None
        line = _line(row.text)
        next_line = "end" if following is None else _line(following.text)
        if before is not None and _opens(before[1], line, next_line, bare):
            if article is not None:
                yield from article.end()
            if not before[0]:
                return
            article = _Article(most)
        elif article is None and not is_own:
            return
        if article is not None:
            yield from article.add(line, row.domain, bare)
        before = is_own, line
    if article is not None:
        yield from article.end()


def _line(text: str) -> str:
    return text.rstrip("\r\n")


def _opens(before: str, line: str, after: str, bare: bool) -> bool:
    """True for a title between blank lines, or any title where there are no blank lines."""
    return _TITLE.fullmatch(line) is not None and (bare or not (before.strip() or after.strip()))


class _Article:
    """The lines of one article."""

    def __init__(self, most: int):
        self.most, self.size = most, 0
        self.lines: list[str] = []
        self.domain = self.opening = ""

    def add(self, line: str, domain: str, bare: bool) -> Iterator[Document]:
        """Add a line; gives what stood before it if that has become too long."""
        if self.size + len(line) > self.most:
            yield from self.end()
        if not self.domain:
            self.domain = domain
        # In WikiText every line begins with a space, also a blank one; as a row that is "".
        blank = " " if (self.lines and self.lines[0].startswith(" ")) or line.startswith(" ") else ""
        if bare and _HEADING.fullmatch(line):
            self.lines += [blank, line, blank]
        else:
            self.lines.append(line if line.strip() else blank)
        self.size += len(line) + 1

    def end(self) -> Iterator[Document]:
        """What has been added, as a document."""
        text = "\n".join(self.lines).strip()
        if text:
            yield Document(text, self.domain, self.opening)
            self.opening = self.opening or text
        self.lines, self.size = [], 0
