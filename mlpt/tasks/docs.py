"""Tasks made from the embedded documentation corpus, so that everything downstream runs offline on real text.

They are our own and comparable with nothing else: which package a text comes from (`docs_package`), whether a body
belongs to a summary line (`docs_summary`), and which words complete a sentence of a text (`docs_span`).
Splits follow from a hash of each text, 80/10/10, so they are the same everywhere and for every task.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

from mlpt.data.docs_corpus import collect
from mlpt.tasks.task import Example, Task, TaskData

Document = tuple[str, str]  # (package, text)
_CORPUS_BYTES = 4 << 20
_CLASSES = 6
# Rows of one package at most, so that no package is most of a task, and each task has some 2,000.
_PER_CLASS = 250
_PER_PACKAGE = 60
_SENTENCE = re.compile(r"[A-Z][^.!?\n]{30,200}[.!?](?=\s|$)")

DOCS: dict[str, Task] = {
    "docs_package": Task(
        "docs_package",
        "docs",
        "classification",
        (),  # the packages of the corpus, filled in by `load_docs`
        ("accuracy", "macro_f1"),
        "accuracy",
        ("text", "package"),
        ("{text}", None),
        max_length=64,
    ),
    "docs_summary": Task(
        "docs_summary",
        "docs",
        "classification",
        ("other", "own"),
        ("accuracy", "f1"),
        "accuracy",
        ("summary", "body"),
        ("{summary}", "{body}"),
        max_length=96,
    ),
    "docs_span": Task(
        "docs_span",
        "docs",
        "span",
        (),
        ("f1", "exact_match"),
        "f1",
        ("beginning", "text"),
        ("{beginning of a sentence}", "{text}"),
        test=(),
        max_length=192,
    ),
}


def load_docs(name: str, splits: Iterable[str] | None = None) -> TaskData:
    """A `docs_*` task from the embedded corpus (collected on first use, then cached)."""
    data = make_docs(name, _documents())
    return TaskData(data.task, {key: rows for key, rows in data.splits.items() if splits is None or key in splits})


@cache
def _documents() -> tuple[Document, ...]:
    path = collect(_CORPUS_BYTES)
    with path.open(encoding="utf-8") as lines:
        return tuple((record["domain"], record["text"]) for record in map(json.loads, lines))


def make_docs(name: str, documents: Sequence[Document]) -> TaskData:
    """The task `name` from (package, text) documents; a pure function of them."""
    task = DOCS[name]
    if name == "docs_package":
        task, rows = _package_rows(task, documents)
    elif name == "docs_summary":
        rows = _summary_rows(documents)
    else:
        rows = _span_rows(documents)
    splits: dict[str, list[Example]] = {"train": [], "dev": [], **{split: [] for split in task.test}}
    for key, example in rows:
        splits[_split(key, bool(task.test))].append(example)
    return TaskData(task, splits)


def _split(key: str, with_test: bool) -> str:
    """The split of a text by its hash: the same text is always on the same side."""
    tenth = hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest()[0] % 10
    if tenth < 8:
        return "train"
    return "test" if with_test and tenth == 9 else "dev"


def _paragraphs(text: str) -> list[str]:
    """Blocks between blank lines, white space collapsed."""
    return [" ".join(block.split()) for block in text.split("\n\n") if block.strip()]


def _package_rows(task: Task, documents: Sequence[Document]) -> tuple[Task, list[tuple[str, Example]]]:
    """Paragraphs that don't name their package, of the packages that have most of them."""
    found = []
    seen: set[str] = set()
    for package, text in documents:
        for paragraph in _paragraphs(text):
            piece = paragraph[:300]
            if len(piece) >= 80 and package.lower() not in piece.lower() and piece not in seen:
                seen.add(piece)
                found.append((package, piece))
    largest = Counter(package for package, _ in found).most_common(_CLASSES)
    labels = tuple(sorted(package for package, _ in largest))
    kept = _fair([(package, piece) for package, piece in found if package in labels], _PER_CLASS)
    rows = [(piece, Example(n, piece, label=labels.index(package))) for n, (package, piece) in enumerate(kept)]
    return replace(task, labels=labels), rows


def _summary_rows(documents: Sequence[Document]) -> list[tuple[str, Example]]:
    """One-sentence paragraphs with the paragraph that follows, or with one that follows another of the package.

    Each text stands in one pair, so that the split of a pair is the split of both its texts.
    """
    pairs = []
    seen: set[str] = set()
    for package, text in documents:
        for summary, following in pairwise(_paragraphs(text)):
            body = following[:400]
            sentence = 20 <= len(summary) <= 120 and summary[0].isupper() and summary.endswith(".")
            if sentence and len(body) >= 80 and not {summary, body} & seen:
                seen |= {summary, body}
                pairs.append((package, (summary, body)))
    rows: list[tuple[str, Example]] = []
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for package, pair in _fair(pairs, _PER_PACKAGE):
        groups.setdefault((package, _split(pair[0], True)), []).append(pair)  # strangers come from the same split
    for group in groups.values():
        for place, (summary, body) in enumerate(group):
            stranger = group[(place + 1) % len(group)][1]
            other = place % 2 == 1 and stranger != body
            rows.append((summary, Example(len(rows), summary, stranger if other else body, label=int(not other))))
    return rows


def _span_rows(documents: Sequence[Document]) -> list[tuple[str, Example]]:
    """The question is the first half of a sentence's words, the answer the rest, the context what stands around it."""
    found = []
    seen: set[str] = set()
    for package, text in documents:
        flat = " ".join(text.split())
        sentence = _SENTENCE.search(flat, 200) or _SENTENCE.search(flat)
        words = sentence.group().rstrip(".!? ").split(" ") if sentence else []
        if sentence and len(words) > 1 and sentence.group() not in seen:
            seen.add(sentence.group())
            found.append((package, (flat, sentence.start(), sentence.group(), words)))
    rows: list[tuple[str, Example]] = []
    for _, (flat, start, sentence, words) in _fair(found, _PER_PACKAGE):
        question = " ".join(words[: len(words) // 2])
        answer = " ".join(words[len(words) // 2 :])
        begin = max(0, start - 200)
        context = flat[begin : start + len(sentence) + 200]
        at = start - begin + len(question) + 1
        example = Example(len(rows), question, context, label=1, answers=(answer,), answer_start=at)
        rows.append((question, example))  # two sentences may begin alike
    return rows


def _fair(found: list[tuple[str, Any]], most: int) -> list[tuple[str, Any]]:
    """The first `most` rows of each package."""
    taken: Counter[str] = Counter()
    kept = []
    for package, row in found:
        if taken[package] < most:
            taken[package] += 1
            kept.append((package, row))
    return kept
