"""Sentences whose words have labels (parts of speech, for example): CoNLL-U, or one word a line and its label last."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlpt.errors import UserError
from mlpt.outputs import expanded
from mlpt.tasks.reading import FileReport, read_lines

Column = Literal["upos", "xpos", "deprel"]
_COLUMNS: dict[Column, int] = {"upos": 3, "xpos": 4, "deprel": 7}
_FIELDS = 10  # of a CoNLL-U line
_DOCUMENT = "-DOCSTART-"  # CoNLL-2003's sign between documents
_SUFFIXES = (".conllu", ".tsv", ".txt", ".conll")


@dataclass(frozen=True, slots=True)
class LabelledSentence:
    """`spans`: where each labelled word stands in `text`, characters (start, end); `labels`: one a word."""

    text: str
    spans: tuple[tuple[int, int], ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class TokenLabels:
    """`held_out` is None where the source has no sentences of its own to score on."""

    train: list[LabelledSentence]
    held_out: list[LabelledSentence] | None


def read_token_labels(source: str, column: Column = "upos") -> TokenLabels:
    """A file, or a treebank's folder with files named train and some named test (or dev): all of a name are read.

    column  which of CoNLL-U's columns labels the words; in other files the last one does.
    Raises `UserError` for a source that isn't there, and for malformed lines, by file and line.
    """
    path = expanded(source)
    if not path.is_dir():
        return TokenLabels(_read_file(path, column), None)
    named: dict[str, list[Path]] = {"train": [], "test": [], "dev": []}
    for file in sorted(file for file in path.iterdir() if file.name.endswith(_SUFFIXES)):
        role = max(named, key=file.stem.rfind)  # the last in its name
        if role in file.stem and (not named[role] or file.suffix == named[role][0].suffix):  # a treebank's text is .txt
            named[role].append(file)
    held_out = named["test"] or named["dev"]
    if not named["train"] or not held_out:
        raise UserError(
            f"{path} has no file named train and one named test or dev ({', '.join(_SUFFIXES)}); name a file"
        )
    return TokenLabels(_read_files(named["train"], column), _read_files(held_out, column))


def _read_files(paths: Sequence[Path], column: Column) -> list[LabelledSentence]:
    return [sentence for path in paths for sentence in _read_file(path, column)]


def _read_file(path: Path, column: Column) -> list[LabelledSentence]:
    report = FileReport(str(path))
    comments = path.suffix == ".conllu"
    sentences = []
    for rows in sentences_of_lines(path, report, comments):
        sentence = _conllu(rows, column, report) if comments else _word_and_label(rows, report)
        if sentence is not None:
            sentences.append(sentence)
    report.check(0.0)
    if not sentences:
        raise UserError(f"{path} has no words with labels{f' in column {column}' if comments else ''}; give another")
    return sentences


def sentences_of_lines(path: Path, report: FileReport, comments: bool = False) -> Iterator[list[tuple[int, list[str]]]]:
    """The (line number, fields) of each sentence; sentences end at blank lines, and at CoNLL-2003's lines between
    documents, which belong to none. `comments`: at # begins one."""
    sentence: list[tuple[int, list[str]]] = []
    last = 0
    for number, line in read_lines(path, report):
        if number > last + 1 and sentence:  # `read_lines` passes over blank lines
            yield sentence
            sentence = []
        last = number
        if comments and line.startswith("#"):
            continue
        fields = line.split("\t") if "\t" in line else line.split()
        if fields[:1] != [_DOCUMENT]:
            sentence.append((number, fields))
        elif sentence:
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def _word_and_label(rows: Sequence[tuple[int, list[str]]], report: FileReport) -> LabelledSentence | None:
    """Words joined by single spaces: what stood between them isn't told."""
    builder = _Builder()
    for number, fields in rows:
        report.rows += 1
        if len(fields) < 2 or not fields[0].strip() or not fields[-1].strip():
            report.bad(number, "has no word and label")
            continue
        builder.add(fields[0], [(fields[0], fields[-1])], space=True)
    return builder.sentence()


def _conllu(rows: Sequence[tuple[int, list[str]]], column: Column, report: FileReport) -> LabelledSentence | None:
    """Universal Dependencies: `SpaceAfter=No` glues words, a line `1-2` is the surface of two words, `1.1` is empty."""
    builder = _Builder()
    surface: tuple[str, bool] | None = None
    last_inside = 0
    inside: list[tuple[str, str]] = []
    for number, fields in rows:
        report.rows += 1
        if len(fields) != _FIELDS:
            report.bad(number, f"has {len(fields)} columns instead of {_FIELDS}")
            continue
        identity, form, label = fields[0], fields[1], fields[_COLUMNS[column]]
        space = "SpaceAfter=No" not in fields[9].split("|")
        if "-" in identity:
            first, _, last = identity.partition("-")
            if not (first.isdigit() and last.isdigit()):
                report.bad(number, f"has '{identity}' instead of a word's number")
                continue
            surface, last_inside, inside = (form, space), int(last), []
        elif identity.isdigit():
            if surface is None:
                builder.add(form, [(form, label)], space)
                continue
            inside.append((form, label))
            if int(identity) >= last_inside:
                builder.add(surface[0], inside, surface[1])
                surface = None
        elif "." not in identity:
            report.bad(number, f"has '{identity}' instead of a word's number")
    return builder.sentence()


class _Builder:
    """Grows a sentence word by word."""

    def __init__(self) -> None:
        self.text = ""
        self.glued = True
        self.spans: list[tuple[int, int]] = []
        self.labels: list[str] = []

    def add(self, surface: str, words: Sequence[tuple[str, str]], space: bool) -> None:
        """Words that are written as `surface`. Where they aren't its parts (French "au": "à", "le") each gets all."""
        if not self.glued:
            self.text += " "
        start = at = len(self.text)
        parts = "".join(word for word, _ in words) == surface
        for word, label in words:
            if label != "_":  # CoNLL-U's sign for "not annotated"
                self.spans.append((at, at + len(word)) if parts else (start, start + len(surface)))
                self.labels.append(label)
            at += len(word)
        self.text += surface
        self.glued = not space

    def sentence(self) -> LabelledSentence | None:
        """What has been added; None where that is nothing."""
        return LabelledSentence(self.text, tuple(self.spans), tuple(self.labels)) if self.labels else None
