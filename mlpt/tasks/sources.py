"""Where a task's rows come from: the original files, the hub, the user's own files, or the embedded documentation."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from mlpt.errors import UserError
from mlpt.settings import Settings
from mlpt.tasks.docs import DOCS, load_docs
from mlpt.tasks.glue import GLUE, read_glue
from mlpt.tasks.own import OwnTask, load_own
from mlpt.tasks.reading import FileReport, parse_rows, read_jsonl
from mlpt.tasks.squad import SQUAD, read_squad
from mlpt.tasks.superglue import SUPERGLUE, files_of
from mlpt.tasks.task import Example, Task, TaskData
from mlpt.tasks.two_moons import TWO_MOONS, load_two_moons

HUB = "hub:"

# Diagnostic sets have no training rows of their own: their server takes the predictions of a model of another task.
_DIAGNOSTICS = {"mnli": ("ax",), "superglue_rte": ("axb", "axg")}

TASKS: dict[str, Task] = {
    **{name: task for name, (task, _) in GLUE.items()},
    **{name: entry[0] for name, entry in SUPERGLUE.items()},
    **{name: entry[0] for name, entry in SQUAD.items()},
    **DOCS,
    **TWO_MOONS,
}


class TaskSource(Settings):
    """Where labelled rows come from. The `docs_*` and `two_moons_*` tasks need none of it."""

    data_dir: str | None = Field(
        None, description="folder of the original GLUE, SuperGLUE and SQuAD downloads, or 'hub:' for the hub"
    )
    own: tuple[OwnTask, ...] = Field((), description="tasks from your own CSV, TSV, JSONL or Parquet files")
    max_malformed_share: float = Field(
        0.01, ge=0, le=1, description="of a file's rows; more is an error. Test files must be whole"
    )


def task_of(name: str, source: TaskSource) -> Task:
    """What a task is; its files are read only for label names that nobody gave. Raises `UserError` if there is none."""
    for own in source.own:
        if own.name == name:
            return load_own(own, source.max_malformed_share, ()).task
    if name not in TASKS:
        known = [*TASKS, *(own.name for own in source.own)]
        near = difflib.get_close_matches(name, known, n=1)
        raise UserError(f"unknown task '{name}'; " + (f"did you mean '{near[0]}'?" if near else ", ".join(known)))
    return TASKS[name]


def whole_task(name: str, source: TaskSource) -> Task:
    """`task_of` with the labels of tasks that find theirs in the embedded documentation."""
    return load_docs(name, ()).task if name in DOCS else task_of(name, source)


def load_task(name: str, source: TaskSource, splits: Iterable[str] | None = None) -> TaskData:
    """A task's examples. `splits` limits what is read (None: all that is there).

    Raises `UserError` for an unknown task, a missing source, unreadable files, and too many malformed rows.
    """
    wanted = None if splits is None else tuple(splits)
    for own in source.own:
        if own.name == name:
            return load_own(own, source.max_malformed_share, wanted)
    task_of(name, source)
    if name in DOCS:
        return load_docs(name, wanted)
    if name in TWO_MOONS:
        return load_two_moons(name, wanted)
    if source.data_dir is None:
        raise UserError(f"task '{name}' needs data: give --data-dir FOLDER with the original files, or --data-dir hub:")
    if source.data_dir.startswith(HUB):
        from mlpt.tasks.hub import load_hub  # importing `datasets` takes a second that other sources need not wait

        data = load_hub(name, source.max_malformed_share, wanted)
    else:
        data = _load_files(name, Path(source.data_dir), source.max_malformed_share, wanted)
    for diagnostic in _DIAGNOSTICS.get(name, ()):
        if wanted is None or diagnostic in wanted:
            _add_diagnostics(data, diagnostic, source)
    return data


def _add_diagnostics(data: TaskData, name: str, source: TaskSource) -> None:
    """Add the diagnostic set `name` as a split of that name, if it is there."""
    data_dir = source.data_dir or ""
    if data_dir.startswith(HUB) or _places(name, Path(data_dir)):
        diagnostics = load_task(name, source)
        data.splits[name] = diagnostics.splits["test"]
        data.reports += diagnostics.reports


def _load_files(name: str, root: Path, max_malformed_share: float, splits: tuple[str, ...] | None) -> TaskData:
    if not root.is_dir():
        raise UserError(f"--data-dir {root} is not a folder; give the folder that holds GLUE, SuperGLUE or SQuAD")
    data = TaskData(TASKS[name], {})
    for split, path in _find_files(name, root).items():
        if splits is None or split in splits:
            report = FileReport(str(path))
            data.splits[split] = _read(name, split, path, report)
            data.reports.append(report)
            report.check(0.0 if split.startswith("test") else max_malformed_share)
    return data


def _read(name: str, split: str, path: Path, report: FileReport) -> list[Example]:
    if name in GLUE:
        return read_glue(*GLUE[name], split, path, report)
    if name in SQUAD:
        return read_squad(path, report)
    parser = SUPERGLUE[name][3]
    return list(parse_rows(read_jsonl(path, report), parser, report))


def _find_files(name: str, root: Path) -> dict[str, Path]:
    """Split to file. Raises `UserError` that says where files are expected where there are none."""
    found = _places(name, root)
    if not found:
        files, folders, benchmark = _layout(name)
        inside = root if root.name == benchmark else root / benchmark
        example = inside / folders[0] / next(iter(files.values()))[0]
        raise UserError(f"no files of task '{name}' under {root}; expected for example {example}")
    return found


def _places(name: str, root: Path) -> dict[str, Path]:
    """Split to file, looked for in the benchmark's folder under `root`, in `root`, and in the task's own folder."""
    files, folders, benchmark = _layout(name)
    places = [root / benchmark / folder for folder in folders] + [root / folder for folder in folders]
    if root.name in folders:
        places.append(root)
    for place in places:
        found = {
            split: path
            for split, names in files.items()
            if (path := next((place / file for file in names if (place / file).is_file()), None))
        }
        if found:
            return found
    return {}


def _layout(name: str) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...], str]:
    """Files by split, the folders that may hold them, and the folder of the benchmark."""
    if name in GLUE:
        layout = GLUE[name][1]
        return dict(layout.files), layout.folders, "GLUE"
    if name in SQUAD:
        return {split: (file,) for split, file in SQUAD[name][1].items()}, ("",), "SQuAD"
    return {split: (file,) for split, file in files_of(name).items()}, (SUPERGLUE[name][1],), "SuperGLUE"
