"""SuperGLUE (Wang et al., 2019): task descriptions and the rows of its jsonl files.

Text pairs follow the published MetaLMO formats, but for COPA and ReCoRD: those are here one row a choice, scored by the
same two-way head as MultiRC's answers, so that every SuperGLUE task is a stock sequence classifier. COPA as one text
pair that lists both choices is the task `copa_pair`, ReCoRD as a text from which the answer is copied `record_span`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mlpt.tasks.markers import find_span, insert_stars
from mlpt.tasks.reading import RowError, label_of, list_of, mapping_of, number_of, text_of
from mlpt.tasks.record import record_spans
from mlpt.tasks.task import Example, Task

Parser = Callable[[dict], Iterable[Example]]
BOOLEAN = ("False", "True")
RIGHT = ("0", "1")
_FILES = {"train": "train.jsonl", "dev": "val.jsonl", "test": "test.jsonl"}
_DIAGNOSTICS = ("axb", "axg")  # one file each, predicted by a model of RTE, whose labels they have


def _label(record: Mapping[str, Any], labels: tuple[str, ...]) -> int | None:
    """The class id of a record; None where it has no label (test files; -1 on the hub)."""
    value = record.get("label")
    if value is None or value == -1:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and labels == BOOLEAN:
        value = bool(value)
    return label_of(str(value), labels)


def _pair(first: str, second: str, labels: tuple[str, ...]) -> Parser:
    def parse(record: dict) -> Iterable[Example]:
        label = _label(record, labels)
        yield Example(number_of(record, "idx"), text_of(record, first), text_of(record, second), label)

    return parse


def _copa_rows(record: dict) -> Iterable[Example]:
    """Two rows: premise and question word, with each choice."""
    index, label = number_of(record, "idx"), _label(record, RIGHT)
    first = f"{text_of(record, 'premise')} {text_of(record, 'question')}"
    for number in (0, 1):
        choice = text_of(record, f"choice{number + 1}")
        yield Example(number, first, choice, None if label is None else int(label == number), (index,), choice)


def _copa_pair(record: dict) -> Iterable[Example]:
    first = f"{text_of(record, 'premise')} {text_of(record, 'question')}"
    second = f"0: {text_of(record, 'choice1')} 1: {text_of(record, 'choice2')}"
    yield Example(number_of(record, "idx"), first, second, _label(record, RIGHT))


def _multirc(record: dict) -> Iterable[Example]:
    """One row an answer, from a passage with its questions (the file) or a single answer (the hub)."""
    if "paragraph" in record:
        ids = mapping_of(record, "idx")
        group = (number_of(ids, "paragraph"), number_of(ids, "question"))
        paragraph = text_of(record, "paragraph")
        yield _answer(number_of(ids, "answer"), group, text_of(record, "question"), record, "answer", paragraph)
        return
    passage = mapping_of(record, "passage")
    text, index = text_of(passage, "text"), number_of(record, "idx")
    for question in list_of(passage, "questions"):
        group = (index, number_of(question, "idx"))
        for answer in list_of(question, "answers"):
            yield _answer(number_of(answer, "idx"), group, text_of(question, "question"), answer, "text", text)


def _answer(index: int, group: tuple, question: str, record: dict, key: str, passage: str) -> Example:
    # An answer may be the empty string in the official files; the row stands.
    answer = str(record.get(key, ""))
    return Example(
        index, f"Question: {question} Answer: {answer}", passage, _label(record, RIGHT), group=group, choice=answer
    )


def _record(record: dict) -> Iterable[Example]:
    """One row a different entity: the query with the entity in place, and the passage. Entity ends are inclusive."""
    if isinstance(record.get("idx"), dict):
        ids = mapping_of(record, "idx")
        entities, group = list_of(record, "entities"), (number_of(ids, "passage"), number_of(ids, "query"))
        yield from _entities(record, record, group, entities, record.get("answers") or [])
        return
    passage = mapping_of(record, "passage")
    text = text_of(passage, "text")
    spans = list_of(passage, "entities")
    entities = [text[number_of(span, "start") : number_of(span, "end") + 1] for span in spans]
    for query in list_of(record, "qas"):
        group = (number_of(record, "idx"), number_of(query, "idx"))
        gold = [str(answer["text"]) for answer in query.get("answers") or []]
        yield from _entities(query, {"passage": text}, group, entities, gold)


def _entities(query: dict, passage: dict, group: tuple, entities: list[str], gold: list[str]) -> Iterable[Example]:
    question = text_of(query, "query")
    if "@placeholder" not in question:
        raise RowError("has a query without @placeholder")
    text = text_of(passage, "passage").replace("\n@highlight\n", "\n")
    answers = tuple(dict.fromkeys(gold))
    for number, entity in enumerate(dict.fromkeys(entities)):
        label = int(entity in answers) if answers else None
        filled = question.replace("@placeholder", entity)
        yield Example(number, filled, text, label, group=group, choice=entity, answers=answers)


def _wic(record: dict) -> Iterable[Example]:
    first, second = (
        insert_stars(text_of(record, f"sentence{n}"), [number_of(record, f"start{n}"), number_of(record, f"end{n}")])
        for n in (1, 2)
    )
    yield Example(number_of(record, "idx"), first, second, _label(record, BOOLEAN))


def _wsc(record: dict) -> Iterable[Example]:
    target = record if "span1_text" in record else mapping_of(record, "target")
    text, label = text_of(record, "text"), _label(record, BOOLEAN)
    spans = [text_of(target, f"span{n}_text") for n in (1, 2)]
    found = [find_span(text, span, number_of(target, f"span{n}_index")) for n, span in enumerate(spans, start=1)]
    starred = insert_stars(text, [edge for span in found for edge in span])
    yield Example(number_of(record, "idx"), " = ".join(spans), starred, label)


def _task(name: str, labels: tuple[str, ...], columns: tuple[str, ...], template: tuple[str, str], **more: Any) -> Task:
    fields: dict[str, Any] = {"kind": "classification", "metrics": ("accuracy",), "select": "accuracy"}
    fields |= {"max_length": 256, **more}
    return Task(name, "superglue", labels=labels, columns=columns, template=template, **fields)


def files_of(name: str) -> dict[str, str]:
    """Split to file name of a task's folder in the original download."""
    return {"test": f"{SUPERGLUE[name][1]}.jsonl"} if name in _DIAGNOSTICS else _FILES


_CB = ("contradiction", "entailment", "neutral")
_RTE = ("entailment", "not_entailment")

# name: the description, the folder of the original download, the hub's configuration, and the parser of both.
SUPERGLUE: dict[str, tuple[Task, str, str, Parser]] = {
    "boolq": (
        _task("boolq", BOOLEAN, ("question", "passage", "label"), ("{question}", "{passage}")),
        "BoolQ",
        "boolq",
        _pair("question", "passage", BOOLEAN),
    ),
    "cb": (
        _task(
            "cb",
            _CB,
            ("hypothesis", "premise", "label"),
            ("{hypothesis}", "{premise}"),
            metrics=("macro_f1", "accuracy"),
            select="macro_f1",
        ),
        "CB",
        "cb",
        _pair("hypothesis", "premise", _CB),
    ),
    "copa": (
        _task(
            "copa",
            RIGHT,
            ("premise", "question", "choice1", "choice2", "label"),
            ("{premise} {question}", "{choice}"),
            kind="multiple_rows",
            choose="one",
        ),
        "COPA",
        "copa",
        _copa_rows,
    ),
    "copa_pair": (
        _task(
            "copa_pair",
            RIGHT,
            ("premise", "question", "choice1", "choice2", "label"),
            ("{premise} {question}", "0: {choice1} 1: {choice2}"),
        ),
        "COPA",
        "copa",
        _copa_pair,
    ),
    "multirc": (
        _task(
            "multirc",
            RIGHT,
            ("passage", "question", "answer", "label"),
            ("Question: {question} Answer: {answer}", "{passage}"),
            kind="multiple_rows",
            metrics=("f1a", "exact_match"),
            select="f1a",
            max_length=512,
        ),
        "MultiRC",
        "multirc",
        _multirc,
    ),
    "record": (
        _task(
            "record",
            RIGHT,
            ("passage", "query", "entities", "answers"),
            ("{query with the entity}", "{passage}"),
            kind="multiple_rows",
            choose="one",
            metrics=("f1", "exact_match"),
            select="f1",
            max_length=512,
        ),
        "ReCoRD",
        "record",
        _record,
    ),
    "record_span": (
        _task(
            "record_span",
            (),
            ("passage", "query", "entities", "answers"),
            ("{query}", "{passage} with every entity between stars"),
            kind="span",
            metrics=("f1", "exact_match"),
            select="f1",
            max_length=512,
        ),
        "ReCoRD",
        "record",
        record_spans,
    ),
    "superglue_rte": (
        _task(
            "superglue_rte",
            _RTE,
            ("hypothesis", "premise", "label"),
            ("{hypothesis}", "{premise}"),
            test=("test", *_DIAGNOSTICS),
        ),
        "RTE",
        "rte",
        _pair("hypothesis", "premise", _RTE),
    ),
    # The diagnostic sets: the text that may be entailed comes first, as in RTE's rows.
    "axb": (
        _task(
            "axb",
            _RTE,
            ("sentence2", "sentence1", "label"),
            ("{sentence2}", "{sentence1}"),
            metrics=("matthews", "accuracy"),
            select="matthews",
            dev=(),
        ),
        "AX-b",
        "axb",
        _pair("sentence2", "sentence1", _RTE),
    ),
    "axg": (
        _task("axg", _RTE, ("hypothesis", "premise", "label"), ("{hypothesis}", "{premise}"), dev=()),
        "AX-g",
        "axg",
        _pair("hypothesis", "premise", _RTE),
    ),
    "wic": (
        _task(
            "wic",
            BOOLEAN,
            ("sentence1", "sentence2", "start1", "end1", "start2", "end2", "label"),
            ("{sentence1} with the word between stars", "{sentence2} likewise"),
        ),
        "WiC",
        "wic",
        _wic,
    ),
    "wsc": (
        _task(
            "wsc",
            BOOLEAN,
            ("text", "span1_text", "span1_index", "span2_text", "span2_index", "label"),
            ("{span1_text} = {span2_text}", "{text} with both spans between stars"),
        ),
        "WSC",
        "wsc.fixed",
        _wsc,
    ),
}
