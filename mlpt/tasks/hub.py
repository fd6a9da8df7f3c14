"""Labelled tasks from the Hugging Face hub's parquet repositories, through `datasets`, without loading scripts."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import datasets

from mlpt.data.reach import hub_lookup
from mlpt.errors import UserError
from mlpt.tasks.glue import GLUE, hub_row
from mlpt.tasks.reading import FileReport, parse_rows
from mlpt.tasks.squad import SQUAD, hub_squad
from mlpt.tasks.superglue import SUPERGLUE
from mlpt.tasks.task import Example, TaskData

_SPLITS = {
    "train": "train",
    "dev": "validation",
    "test": "test",
    "dev_matched": "validation_matched",
    "dev_mismatched": "validation_mismatched",
    "test_matched": "test_matched",
    "test_mismatched": "test_mismatched",
}


def load_hub(name: str, max_malformed_share: float, splits: Iterable[str] | None = None) -> TaskData:
    """A task from `nyu-mll/glue`, `aps/super_glue` or `rajpurkar/squad`. Raises `UserError` when the hub can't be
    reached and nothing is cached."""
    configuration: str | None = name
    if name in GLUE:
        repository, task = "nyu-mll/glue", GLUE[name][0]
    elif name in SUPERGLUE:
        task, _, configuration, _ = SUPERGLUE[name]
        repository = "aps/super_glue"
    else:
        task, _, repository = SQUAD[name]
        configuration = None
    data = TaskData(task, {})
    tables = _download(repository, configuration)
    for split in ("train", *task.dev, *task.test):
        if _SPLITS.get(split) in tables and (splits is None or split in splits):
            report = FileReport(f"hub:{repository}/{name}/{_SPLITS[split]}")
            data.splits[split] = read_hub(name, tables[_SPLITS[split]], report)
            data.reports.append(report)
            report.check(0.0 if split.startswith("test") else max_malformed_share)
    return data


def read_hub(name: str, table: datasets.Dataset, report: FileReport) -> list[Example]:
    """The examples of one split of a hub dataset; labels are matched by the names that its features give."""
    label = table.features.get("label")
    names = tuple(label.names) if isinstance(label, datasets.ClassLabel) else None
    parse: Callable[[dict], Iterable[Example]]
    if name in GLUE:
        parse = hub_row(*GLUE[name], names)
    elif name in SUPERGLUE:
        task, _, _, original = SUPERGLUE[name]
        named = task.kind == "classification" and not set(task.labels) <= {"0", "1"}
        parse = _with_names(original, names) if named and names else original
    else:
        parse = hub_squad
    return list(parse_rows(enumerate(table, start=1), parse, report))


def _with_names(parse: Callable[[dict], Iterable[Example]], names: tuple[str, ...]) -> Callable:
    """The parser of the original files on rows whose label is a number into `names`."""

    def named(row: dict) -> Iterable[Example]:
        label = row.get("label", -1)
        return parse({**row, "label": None if label is None or label < 0 else names[label]})

    return named


def _download(repository: str, configuration: str | None) -> Mapping[str, Any]:
    try:
        with hub_lookup(repository):
            return datasets.load_dataset(repository, configuration)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"cannot get {repository} from the hub ({reason}); go online once, "
            "or download the original files and give their folder with --data-dir"
        ) from error
