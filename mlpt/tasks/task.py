"""What a labelled task is: its columns, labels, kind, metrics and the text pair that is made of a row."""

from dataclasses import dataclass, field
from typing import Literal

from mlpt.tasks.reading import FileReport

Kind = Literal["classification", "regression", "span", "multiple_rows", "token_classification"]


@dataclass(frozen=True)
class Task:
    """One labelled task.

    kind           classification: `labels` by id. regression: a float. span: a stretch of the second text answers the
                   first. multiple_rows: a question has several rows (answers, choices, entities), each right or wrong.
                   token_classification: each word of the text has one of `labels`.
    choose         multiple_rows only: "one" row of each question is the answer (the best scored), or "any" number.
    labels         names in the order of the ids; a row of multiple_rows is "0" (wrong) or "1" (right).
    metrics        names in `mlpt.tasks.metrics`; `select` picks the best checkpoint, higher is better.
    columns        the named columns of the source that make a row.
    template       (first, second) text in terms of those columns, for people.
    dev, test      splits that are scored and reported one by one (MNLI has two of each).
    """

    name: str
    benchmark: Literal["glue", "superglue", "squad", "docs", "two_moons", "own"]
    kind: Kind
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    select: str
    columns: tuple[str, ...]
    template: tuple[str, str | None]
    choose: Literal["one", "any"] = "any"
    dev: tuple[str, ...] = ("dev",)
    test: tuple[str, ...] = ("test",)
    max_length: int = 128

    @property
    def outputs(self) -> int:
        """Width of the head: classes, 1 for a regression, 2 for (wrong, right) and for (start, end)."""
        if self.kind in ("classification", "token_classification"):
            return len(self.labels)
        return 1 if self.kind == "regression" else 2

    @property
    def per_token(self) -> bool:
        """Whether the head has outputs at every token, not one a row."""
        return self.kind in ("span", "token_classification")


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a task.

    index         the row's official id, as submissions want it back.
    label         class id; float of a regression; 1 or 0 for a right or wrong row; for a span, 1 answerable or 0 not;
                  for token classification, the class ids of the words. None: unlabelled.
    group         multiple_rows: ids of the question, outermost first. Rows of one question share it.
    choice        multiple_rows: the text that this row proposes.
    answers       span, and choices scored by text (ReCoRD): the gold texts, the first of them at `answer_start`.
    answer_start  span: character of `second` where `answers[0]` begins; -1 where there is none.
    spans         span: all characters (start, exclusive end) of `second` where an answer stands, where they are known.
                  Token classification: where each word stands in `first`.
    """

    index: int | str
    first: str
    second: str | None = None
    label: int | float | tuple[int, ...] | None = None
    group: tuple[int, ...] = ()
    choice: str = ""
    answers: tuple[str, ...] = ()
    answer_start: int = -1
    spans: tuple[tuple[int, int], ...] = ()

    @property
    def class_id(self) -> int:
        """The label of a row that has one class. Raises `TypeError` for any other row."""
        if not isinstance(self.label, int | float):
            raise TypeError(f"row {self.index} has no class")
        return int(self.label)


@dataclass
class TaskData:
    """A task's examples by split, and what its files said about malformed rows."""

    task: Task
    splits: dict[str, list[Example]]
    reports: list[FileReport] = field(default_factory=list)

    @property
    def dev_splits(self) -> list[str]:
        """Labelled splits that are scored, in the task's order."""
        return [split for split in self.task.dev if split in self.splits]

    @property
    def test_splits(self) -> list[str]:
        """Splits that are only predicted."""
        return [split for split in self.task.test if split in self.splits]

    @property
    def may_be_empty(self) -> bool:
        """Spans: whether a question may have no answer, as some of the training rows have none (of the rows that are
        scored, where there are no training rows)."""
        splits = ["train"] if "train" in self.splits else self.dev_splits
        return any(example.label == 0 for split in splits for example in self.splits[split])

    def warnings(self) -> list[str]:
        """One line a file that has malformed rows: how many, and the first few by file and line."""
        return [report.summary() for report in self.reports if report.malformed]
