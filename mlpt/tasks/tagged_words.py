"""Sentences whose words have a label each, from the user's own files: named entities, parts of speech.

JSONL and Parquet have a list of words and a list of labels a row; .conll, .txt and .tsv files one word a line with its
label last, and blank lines between sentences.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlpt.errors import UserError
from mlpt.tasks.reading import FileReport, RowError, label_of, list_of, name_of, read_columns
from mlpt.tasks.task import Example
from mlpt.tasks.token_labels import sentences_of_lines

LINES = (".conll", ".txt", ".tsv")  # one word a line
_TABLES = (".jsonl", ".parquet")

Row = Any  # a table's record, or the (line number, fields) of a sentence
Tagged = tuple[list[str], list[Any] | None]  # words, and a label each; None: unlabelled


class TaggedFile:
    """One file of labelled sentences. `words` and `label` name a table's columns; `label` None: labels are ignored."""

    def __init__(self, path: str, words: str, label: str | None):
        self.path, self.words, self.label = Path(path), words, label
        self.lines = self.path.suffix.lower() in LINES
        if not self.lines and self.path.suffix.lower() not in _TABLES:
            raise UserError(f"cannot tell the format of {path}; name it {', '.join(_TABLES + LINES)}")
        if not self.lines and not words:
            raise UserError(f"{path} has columns; name the one of the words by 'first'")

    def rows(self, report: FileReport) -> Iterator[tuple[int, Row]]:
        """The numbered rows or sentences; `tagged` reads them."""
        if self.lines:
            for sentence in sentences_of_lines(self.path, report):
                yield sentence[0][0], sentence
        else:
            yield from read_columns(self.path, report, [self.words, *([self.label] if self.label else [])])

    def tagged(self, row: Row) -> Tagged:
        """The words of a row, and their labels as they stand there. Raises `RowError` for a malformed one."""
        words, labels = self._of_lines(row) if self.lines else self._of_record(row)
        if not words:
            raise RowError("has no words")
        if labels is not None and len(labels) != len(words):
            raise RowError(f"has {len(words)} words and {len(labels)} labels")
        return words, labels

    def _of_lines(self, sentence: Sequence[tuple[int, list[str]]]) -> Tagged:
        for number, fields in sentence:
            if not fields or not fields[0].strip() or (self.label and (len(fields) < 2 or not fields[-1].strip())):
                raise RowError(f"line {number} has no word and label")
        words = [fields[0] for _, fields in sentence]
        return words, [fields[-1] for _, fields in sentence] if self.label else None

    def _of_record(self, record: dict[str, Any]) -> Tagged:
        words = list_of(record, self.words)
        if any(not isinstance(word, str) or not word.strip() for word in words):
            raise RowError(f"has a word in '{self.words}' that is empty or no text")
        return words, list_of(record, self.label) if self.label else None


def label_names(file: TaggedFile) -> tuple[str, ...]:
    """The different labels of a file, sorted. Raises `UserError` where there are fewer than two."""
    names: set[str] = set()
    for _, row in file.rows(FileReport(str(file.path))):
        try:
            names |= {name_of(label) for label in file.tagged(row)[1] or ()}
        except RowError:
            continue  # whoever reads the rows counts it
    if len(names - {""}) < 2:
        raise UserError(f"the words of {file.path} have {len(names - {''})} different labels; two are needed")
    return tuple(sorted(names - {""}))


def tagged_example(index: int, tagged: Tagged, labels: Sequence[str]) -> Example:
    """An example: the words with single spaces between them, and where each stands. Raises `RowError` for a label that
    is not among `labels`; a number is the place of a label unless one has that name."""
    words, given = tagged
    spans, at = [], 0
    for word in words:
        spans.append((at, at + len(word)))
        at += len(word) + 1
    ids = None if given is None else tuple(_label(one, labels) for one in given)
    return Example(index, " ".join(words), label=ids, spans=tuple(spans))


def _label(given: Any, labels: Sequence[str]) -> int:
    name = name_of(given)
    if isinstance(given, int) and name not in labels and 0 <= given < len(labels):
        return int(given)
    return label_of(name, labels)
