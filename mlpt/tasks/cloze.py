"""Cloze questions: a text with one blank and the word that belongs there, as LAMA (Petroni et al., 2019) asks them.

Rows of one's own are `{"text": "Paris is the capital of [MASK].", "answer": "France"}`, with `relation` where questions
have kinds. LAMA's rows are read as published: `masked_sentence(s)` and `obj_label`, or `sub_label` and `obj_label` with
the template of their relation.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlpt.errors import UserError
from mlpt.outputs import expanded
from mlpt.tasks.reading import FileReport, RowError, parse_rows, read_jsonl, read_lines, text_of

BLANK = "[MASK]"
_SUFFIXES = (".jsonl", ".jsonl.gz")
_RELATION = ("relation", "predicate_id", "pred")


@dataclass(frozen=True, slots=True)
class ClozeQuestion:
    """`text` holds BLANK once; `relation` is the kind of question ("" where nothing tells it)."""

    text: str
    answer: str
    relation: str = ""


def read_cloze(source: str, templates: str | None = None, max_malformed_share: float = 0.0) -> list[ClozeQuestion]:
    """All questions of a .jsonl(.gz) file, or of the files of a folder, whose names are then their relations.

    templates  LAMA's relations.jsonl: one `{"relation", "template"}` a line, [X] for the subject and [Y] for the blank.
    Raises `UserError` for a source that isn't there and for malformed rows, by file and line.
    """
    by_relation = {} if templates is None else _read_templates(templates)
    path = expanded(source)
    folder = path.is_dir()
    files = sorted(file for file in path.iterdir() if file.name.endswith(_SUFFIXES)) if folder else [path]
    if not files or not all(file.name.endswith(_SUFFIXES) for file in files):
        raise UserError(
            f"there are no cloze questions in '{source}'; give a .jsonl or .jsonl.gz file, or a folder of them"
        )
    questions: list[ClozeQuestion] = []
    for file in files:
        report = FileReport(str(file))
        name = file.name.removesuffix(".gz").removesuffix(".jsonl") if folder else ""
        questions += parse_rows(read_jsonl(file, report), _parser(name, by_relation), report)
        report.check(max_malformed_share)
    return questions


def read_words(source: str) -> list[str]:
    """A vocabulary of candidate answers, one word a line (LAMA's common vocabulary)."""
    report = FileReport(source)
    words = [line.strip() for _, line in read_lines(expanded(source), report)]
    report.rows += len(words)
    report.check(0.0)
    return words


def _parser(name: str, templates: Mapping[str, str]) -> Callable[[Mapping[str, Any]], Iterable[ClozeQuestion]]:
    def parse(row: Mapping[str, Any]) -> Iterable[ClozeQuestion]:
        relation = next((str(row[key]) for key in _RELATION if row.get(key)), name)
        text = _text(row, templates.get(relation))
        if (blanks := text.count(BLANK)) != 1:
            raise RowError(f"has {blanks} blanks ({BLANK}) instead of one")
        yield ClozeQuestion(text, text_of(row, "obj_label" if "obj_label" in row else "answer").strip(), relation)

    return parse


def _text(row: Mapping[str, Any], template: str | None) -> str:
    if template is not None and "sub_label" in row:
        return template.replace("[X]", text_of(row, "sub_label")).replace("[Y]", BLANK)
    sentences = row.get("masked_sentences")
    if isinstance(sentences, list):
        return " ".join(str(sentence) for sentence in sentences)
    key = next((key for key in ("text", "masked_sentence") if key in row), None)
    if key is None and "sub_label" in row:
        raise RowError("has no text and its relation no template; name LAMA's relations.jsonl with templates=FILE")
    return text_of(row, key or "text")


def _read_templates(source: str) -> dict[str, str]:
    report = FileReport(source)

    def parse(row: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
        template = text_of(row, "template")
        if template.count("[X]") != 1 or template.count("[Y]") != 1:
            raise RowError("has a template without one [X] and one [Y]")
        yield text_of(row, "relation"), template

    found = dict(parse_rows(read_jsonl(expanded(source), report), parse, report))
    report.check(0.0)
    return found
