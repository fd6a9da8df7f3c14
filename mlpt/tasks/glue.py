"""GLUE (Wang et al., 2019): task descriptions and the TSV layout of the original download.

Columns and label order follow the published CA-MTL readers. The hub's MNLI counts its labels in another order
(entailment, neutral, contradiction); labels are therefore matched by name, never by number.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlpt.tasks.reading import FileReport, Row, RowError, label_of, number_of, parse_rows, read_tsv, score_of, text_of
from mlpt.tasks.task import Example, Task

NLI = ("contradiction", "entailment", "neutral")
RTE = ("entailment", "not_entailment")
BINARY = ("0", "1")
_COLA = ("source", "label", "mark", "sentence")


@dataclass(frozen=True)
class Layout:
    """Where a task's rows stand in the TSV files of the original download.

    files       split -> names in the task's folder, the first that exists is read.
    label       column of the label, where the file has it; unlabelled rows otherwise.
    index       column of the official id; rows are numbered from 0 where the file has none.
    headerless  split -> column names of a file without a header.
    hub         the hub's names of (first, second) and of the labels, in the order of `Task.labels`.
    """

    folders: tuple[str, ...]
    first: str
    second: str | None
    label: str
    index: str = "index"
    files: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"train": ("train.tsv",), "dev": ("dev.tsv",), "test": ("test.tsv",)}
    )
    headerless: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hub: tuple[str, str | None] | None = None
    hub_labels: tuple[str, ...] | None = None


def _task(
    name: str, labels: tuple[str, ...], metrics: tuple[str, ...], select: str, layout: Layout, **more: Any
) -> tuple[Task, Layout]:
    columns = tuple(column for column in (layout.first, layout.second, layout.label) if column)
    kind = more.pop("kind", "classification")
    template = (f"{{{layout.first}}}", layout.second and f"{{{layout.second}}}")
    return Task(name, "glue", kind, labels, metrics, select, columns, template, **more), layout


_MNLI_FILES = {
    "train": ("train.tsv",),
    "dev_matched": ("dev_matched.tsv",),
    "dev_mismatched": ("dev_mismatched.tsv",),
    "test_matched": ("test_matched.tsv",),
    "test_mismatched": ("test_mismatched.tsv",),
}
_F1 = ("accuracy", "f1", "accuracy_and_f1")

GLUE: dict[str, tuple[Task, Layout]] = {
    "cola": _task(
        "cola",
        BINARY,
        ("matthews",),
        "matthews",
        Layout(
            ("CoLA",),
            "sentence",
            None,
            "label",
            headerless={"train": _COLA, "dev": _COLA},
            hub_labels=("unacceptable", "acceptable"),
        ),
    ),
    "sst2": _task(
        "sst2",
        BINARY,
        ("accuracy",),
        "accuracy",
        Layout(("SST-2",), "sentence", None, "label", hub_labels=("negative", "positive")),
    ),
    "mrpc": _task(
        "mrpc",
        BINARY,
        _F1,
        "accuracy_and_f1",
        Layout(
            ("MRPC",),
            "#1 String",
            "#2 String",
            "Quality",
            files={
                "train": ("train.tsv", "msr_paraphrase_train.txt"),
                "dev": ("dev.tsv",),
                "test": ("test.tsv", "msr_paraphrase_test.txt"),
            },
            hub=("sentence1", "sentence2"),
            hub_labels=("not_equivalent", "equivalent"),
        ),
    ),
    "stsb": _task(
        "stsb",
        (),
        ("pearson", "spearman", "pearson_and_spearman"),
        "pearson_and_spearman",
        Layout(("STS-B",), "sentence1", "sentence2", "score"),
        kind="regression",
    ),
    "qqp": _task(
        "qqp",
        BINARY,
        _F1,
        "accuracy_and_f1",
        Layout(
            ("QQP",),
            "question1",
            "question2",
            "is_duplicate",
            index="id",
            hub_labels=("not_duplicate", "duplicate"),
        ),
    ),
    "mnli": _task(
        "mnli",
        NLI,
        ("accuracy",),
        "accuracy",
        Layout(("MNLI",), "sentence1", "sentence2", "gold_label", files=_MNLI_FILES, hub=("premise", "hypothesis")),
        dev=("dev_matched", "dev_mismatched"),
        test=("test_matched", "test_mismatched", "ax"),
    ),
    "qnli": _task("qnli", RTE, ("accuracy",), "accuracy", Layout(("QNLI",), "question", "sentence", "label")),
    "rte": _task("rte", RTE, ("accuracy",), "accuracy", Layout(("RTE",), "sentence1", "sentence2", "label")),
    "wnli": _task(
        "wnli",
        BINARY,
        ("accuracy",),
        "accuracy",
        Layout(("WNLI",), "sentence1", "sentence2", "label", hub_labels=("not_entailment", "entailment")),
    ),
    # The diagnostic set has no training file of its own: a model of MNLI predicts it.
    "ax": _task(
        "ax",
        NLI,
        ("matthews", "accuracy"),
        "matthews",
        Layout(
            ("diagnostic", "AX"),
            "sentence1",
            "sentence2",
            "label",
            files={"test": ("diagnostic.tsv", "AX.tsv", "diagnostic-full.tsv")},
            hub=("premise", "hypothesis"),
        ),
        dev=(),
    ),
}

# diagnostic-full.tsv, the labelled release, names the same columns differently.
_ALIASES = {"Premise": "sentence1", "Hypothesis": "sentence2", "Label": "label"}


def make_label(task: Task, text: Any) -> int | float:
    """The label of a row from the text in its file: class id, or the float of a regression (STS-B: 0 to 5)."""
    return score_of(text, 0.0, 5.0) if task.kind == "regression" else label_of(str(text), task.labels)


def read_glue(task: Task, layout: Layout, split: str, path: Path, report: FileReport) -> list[Example]:
    """The examples of one split from its TSV file; malformed rows go to `report`."""
    count = iter(range(10**12))

    def parse(row: Row) -> Iterable[Example]:
        number = next(count)
        cells = {_ALIASES.get(name, name): text for name, text in row.check().items()}
        index = number_of(cells, layout.index) if layout.index in cells else number
        second = text_of(cells, layout.second) if layout.second else None
        label = make_label(task, cells[layout.label]) if layout.label in cells else None
        if label is None and not split.startswith("test"):
            raise RowError(f"has no column '{layout.label}'")
        yield Example(index, text_of(cells, layout.first), second, label)

    rows = read_tsv(path, report, layout.headerless.get(split))
    return list(parse_rows(rows, parse, report))


def hub_row(task: Task, layout: Layout, names: tuple[str, ...] | None) -> Callable[[dict], Iterable[Example]]:
    """A parser of `nyu-mll/glue` rows, whose class labels are numbers into `names`."""
    first, second = layout.hub or (layout.first, layout.second)
    ours = dict(zip(layout.hub_labels or task.labels, task.labels, strict=True))

    def parse(row: dict) -> Iterable[Example]:
        raw = row.get("label", -1)
        label: int | float | None = None
        if raw is not None and raw >= 0:
            label = make_label(task, raw if names is None else ours.get(names[raw], names[raw]))
        yield Example(row["idx"], text_of(row, first), text_of(row, second) if second else None, label)

    return parse
