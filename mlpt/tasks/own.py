"""The user's own labelled data: CSV, TSV, JSONL or Parquet files with named columns; words also one a line."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mlpt.errors import UserError
from mlpt.outputs import expanded
from mlpt.settings import Settings, load_settings
from mlpt.tasks.entities import are_entity_labels
from mlpt.tasks.reading import (
    FileReport,
    label_of,
    name_of,
    number_of,
    parse_rows,
    read_columns,
    read_table,
    score_of,
    text_of,
)
from mlpt.tasks.squad import span_example
from mlpt.tasks.tagged_words import TaggedFile, label_names, tagged_example
from mlpt.tasks.task import Example, Task, TaskData
from mlpt.yaml_text import read_yaml


class OwnTask(Settings):
    """One task from own files. Which columns hold the texts and the label is said, never guessed."""

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="what the task is called, in settings and results")
    train: str | None = Field(None, description="file of the labelled training rows")
    dev: str | None = Field(None, description="file of the labelled rows that are scored")
    test: str | None = Field(None, description="file of rows that are predicted; labels are ignored")
    kind: Literal["classification", "regression", "span", "token_classification"] = Field(
        "classification", description="what a label is: one of several names, a number, a part of a text, or one a word"
    )
    first: str = Field("", description="column of the text, the question of a span, or the list of words")
    second: str | None = Field(None, description="column of the second text, or of the context of a span")
    label: str = Field("label", description="column of the label, the score, the answer's text, or the words' labels")
    answer_start: str = Field("answer_start", description="span: column of the answer's first character in the context")
    labels: tuple[str, ...] | None = Field(None, description="label names in order; default: those of train, sorted")
    metrics: tuple[str, ...] | None = Field(None, description="default: those that suit the kind and the labels")
    max_length: int = Field(128, gt=0, description="tokens")

    @field_validator("train", "dev", "test")
    @classmethod
    def _in_home(cls, file: str | None) -> str | None:
        return file and os.path.expanduser(file)

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> "OwnTask":
        if not (self.train or self.dev):
            raise ValueError("give train or dev, a file with labelled rows")
        if self.kind == "span" and not self.second:
            raise ValueError("a span task needs second, the column of the context")
        if self.kind != "token_classification" and not self.first:
            raise ValueError("give first, the column of the text")
        if self.kind == "token_classification" and self.second:
            raise ValueError("token_classification has one text, whose words are labelled; leave out second")
        return self


def read_task_file(file: str) -> tuple[OwnTask, ...]:
    """The own tasks that a YAML file describes, one mapping or a list of them; paths count from the file's folder.

    Raises `UserError` for a file that cannot be read and for settings that `OwnTask` refuses.
    """
    path = expanded(file)
    described = read_yaml(path, f"the task file {file}")
    tasks = described if isinstance(described, list) else [described]
    if not tasks or not all(isinstance(task, dict) for task in tasks):
        raise UserError(f"{file} describes no task; write for example 'name: mood', 'train: train.csv', 'first: text'")
    return tuple(_own_task(task, path) for task in tasks)


def _own_task(described: dict[str, Any], file: Path) -> OwnTask:
    placed = {
        key: str(file.parent / os.path.expanduser(value))
        if key in ("train", "dev", "test") and isinstance(value, str)
        else value
        for key, value in described.items()
    }
    try:
        return load_settings(OwnTask, placed)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


_METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "regression": ("pearson", "spearman", "pearson_and_spearman"),
    "span": ("f1", "exact_match"),
    "entities": ("entity_f1", "accuracy"),  # labelled words whose labels are B-PER, I-PER, O and the like
    "token_classification": ("accuracy", "macro_f1"),  # with other labels
}


def load_own(own: OwnTask, max_malformed_share: float, splits: Iterable[str] | None = None) -> TaskData:
    """Read the files of an own task. Raises `UserError` for missing columns and too many malformed rows."""
    labels = _label_names(own) if own.kind in ("classification", "token_classification") else ()
    metrics = own.metrics or _default_metrics(own, labels)
    asked = next((name for name in metrics if name.startswith("entity")), None)
    if asked and not are_entity_labels(labels):
        shown = ", ".join(labels[:3])
        raise UserError(f"task '{own.name}' asks for {asked}, and its labels ({shown}) are none like B-PER, I-PER, O")
    columns = tuple(name for name in (own.first, own.second, own.label) if name)
    template = (f"{{{own.first}}}", own.second and f"{{{own.second}}}")
    task = Task(own.name, "own", own.kind, labels, metrics, metrics[0], columns, template, max_length=own.max_length)
    data = TaskData(task, {})
    for split in ("train", "dev", "test"):
        path = getattr(own, split)
        if path and (splits is None or split in splits):
            report = FileReport(path)
            data.splits[split] = _read_split(own, labels, split, report)
            data.reports.append(report)
            report.check(0.0 if split == "test" else max_malformed_share)
    return data


def _default_metrics(own: OwnTask, labels: tuple[str, ...]) -> tuple[str, ...]:
    return _METRICS["entities" if own.kind == "token_classification" and are_entity_labels(labels) else own.kind]


def _read_tagged(own: OwnTask, labels: tuple[str, ...], split: str, report: FileReport) -> list[Example]:
    file = TaggedFile(report.path, own.first, None if split == "test" else own.label)
    numbered = ((line, (place, row)) for place, (line, row) in enumerate(file.rows(report)))
    return list(parse_rows(numbered, lambda row: [tagged_example(row[0], file.tagged(row[1]), labels)], report))


def _read_split(own: OwnTask, labels: tuple[str, ...], split: str, report: FileReport) -> list[Example]:
    if own.kind == "token_classification":
        return _read_tagged(own, labels, split, report)
    needed = [name for name in (own.first, own.second, None if split == "test" else own.label) if name]
    rows = read_columns(Path(report.path), report, needed)

    def parse(row: tuple[int, dict]) -> Iterable[Example]:
        number, record = row
        first = text_of(record, own.first)
        second = text_of(record, own.second) if own.second else None
        if split == "test":
            yield Example(number, first, second)
        elif own.kind == "span":
            answer = str(record.get(own.label) or "")
            answers = [(answer, number_of(record, own.answer_start))] if answer else []
            yield span_example(number, first, second or "", answers)
        elif own.kind == "regression":
            yield Example(number, first, second, score_of(record.get(own.label)))
        else:
            yield Example(number, first, second, label_of(name_of(record.get(own.label)), labels))

    numbered = ((line, (place, record)) for place, (line, record) in enumerate(rows))
    return list(parse_rows(numbered, parse, report))


def _label_names(own: OwnTask) -> tuple[str, ...]:
    if own.labels:
        return own.labels
    path = own.train or own.dev
    if own.kind == "token_classification":
        return label_names(TaggedFile(str(path), own.first, own.label))
    found = {name_of(record.get(own.label)) for _, record in read_table(Path(path or ""), FileReport(str(path)))}
    names = tuple(sorted(found - {""}, key=lambda name: (len(name), name) if name.isdigit() else (0, name)))
    if len(names) < 2:
        raise UserError(f"column '{own.label}' of {path} has {len(names)} different labels; a classification needs two")
    if len(names) > 1000:
        raise UserError(f"column '{own.label}' of {path} has {len(names)} different labels; is it kind=regression?")
    return names
