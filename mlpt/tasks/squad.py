"""SQuAD v1.1 and v2 (Rajpurkar et al., 2016, 2018): the nested JSON of the original files, and the hub's flat rows."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlpt.errors import UserError
from mlpt.tasks.reading import FileReport, RowError, parse_rows, read_json
from mlpt.tasks.task import Example, Task

_COLUMNS = ("id", "question", "context", "answers")


def _task(name: str) -> Task:
    metrics = ("f1", "exact_match")
    template = ("{question}", "{context}")
    return Task(name, "squad", "span", (), metrics, "f1", _COLUMNS, template, test=(), max_length=384)


# name: the description, the files of train and dev, and the hub's dataset.
SQUAD: dict[str, tuple[Task, dict[str, str], str]] = {
    "squad": (_task("squad"), {"train": "train-v1.1.json", "dev": "dev-v1.1.json"}, "rajpurkar/squad"),
    "squad_v2": (_task("squad_v2"), {"train": "train-v2.0.json", "dev": "dev-v2.0.json"}, "rajpurkar/squad_v2"),
}


def read_squad(path: Path, report: FileReport) -> list[Example]:
    """One example a question. The line number of a malformed one is its place in the file, counted from 1."""
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        raise UserError(f"{path} is not a SQuAD file: it has no list 'data'; give the official JSON")
    try:
        questions = [
            (paragraph["context"], question)
            for article in document["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not a SQuAD file: {error} is missing; give the official JSON") from error

    def parse(row: tuple[Any, Any]) -> Iterable[Example]:
        context, question = row
        if not isinstance(question, dict) or not isinstance(context, str):
            raise RowError("is not a question with a context")
        unanswerable = bool(question.get("is_impossible"))
        answers = [] if unanswerable else [(a["text"], a["answer_start"]) for a in question.get("answers") or []]
        if not answers and not unanswerable:
            raise RowError(f"question {question.get('id')} has no answer and isn't marked impossible")
        yield span_example(question.get("id", ""), question.get("question", ""), context, answers)

    return list(parse_rows(enumerate(questions, start=1), parse, report))


def hub_squad(row: dict) -> Iterable[Example]:
    """A row of `rajpurkar/squad` or `squad_v2`; no answers mean that there is none."""
    answers = list(zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True))
    yield span_example(row["id"], row["question"], row["context"], answers)


def span_example(index: int | str, question: str, context: str, answers: list[tuple[str, int]]) -> Example:
    """A span example; raises `RowError` where the first answer does not stand in the context where it says."""
    if not question or not context:
        raise RowError(f"question {index} has no text or no context")
    texts = tuple(dict.fromkeys(text for text, _ in answers))
    if not all(isinstance(text, str) for text in (question, context, *texts)):
        raise RowError(f"question {index} has a question, context or answer that is no text")
    if not answers:
        return Example(index, question, context, label=0)
    text, start = answers[0]
    if context[start : start + len(text)] != text or not text:
        raise RowError(f"answer {text!r} of question {index} does not stand at character {start}")
    return Example(index, question, context, label=1, answers=texts, answer_start=start)
