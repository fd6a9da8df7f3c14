"""`mlpt report`: one HTML page of one run, of several side by side, of a sweep, or of a study."""

from collections.abc import Sequence
from pathlib import Path

from mlpt.errors import UserError
from mlpt.outputs import absolute, write_file
from mlpt.reporting.groups import grouped
from mlpt.reporting.history import REPORT
from mlpt.reporting.html import run_page, runs_page, study_page, sweep_page
from mlpt.reporting.html.page import MARK, render
from mlpt.reporting.html.parts import Section, Text
from mlpt.reporting.records import FolderReader, Record, read_run
from mlpt.reporting.studies import Study, is_study, read_study
from mlpt.reporting.sweeps import Sweep, is_sweep, read_sweep
from mlpt.storage.store import is_uri


def report_page(names: Sequence[str], version: str | None = None) -> str:
    """The page of the runs in the folders or at the URIs `names`, of one sweep, or of one study.

    version  of the files as they are: the page asks its server whether there is another one.
    Raises `UserError` where one of them is no run.
    """
    sweeps = [name for name in names if is_sweep(FolderReader(name))]
    if sweeps and len(names) > 1:
        raise UserError(f"{sweeps[0]} is a sweep: give it alone, or the runs in its folder trials")
    studies = [name for name in names if is_study(FolderReader(name))]
    if studies and len(names) > 1:
        raise UserError(f"{studies[0]} is a study: give it alone, or the runs in its folder runs")
    if studies:
        return _of_study(read_study(studies[0]), version)
    if sweeps:
        return _of_sweep(read_sweep(sweeps[0]), version)
    if len(names) == 1:
        return _of_run(read_run(names[0], in_full=True), version)
    return _of_runs([read_run(name) for name in names], version)


def write_report(place: str, folder: Path) -> None:
    """Write the report of the run `place` into its `folder`."""
    write_file(folder / REPORT, report_page([place]).encode())


def place_of_report(names: Sequence[str]) -> Path | None:
    """Where the report of one run or sweep in a folder lies; None for several, and for a run at a URI."""
    return absolute(names[0]) / REPORT if len(names) == 1 and not is_uri(names[0]) else None


def is_report(path: Path) -> bool:
    """True for a page that `report_page` made."""
    with open(path, "rb") as file:
        return MARK.encode() in file.read(2000)


def _of_run(record: Record, version: str | None) -> str:
    seed = "" if record.seed is None else f", seed {record.seed}"
    name = record.config.get("name") or record.name
    sections = run_page.sections(record)
    if record.metrics.damaged:
        warned = f"{record.metrics.damaged} lines of metrics.jsonl could not be read and are left out."
        sections.insert(0, Section("Damage", [Text("Warning", warned)]))
    return render(record.name, f"{name}{seed} · {record.place}", run_page.tiles(record), sections, version)


def _of_runs(records: list[Record], version: str | None) -> str:
    groups = grouped(records)
    subtitle = ", ".join(dict.fromkeys(str(record.config.get("name") or record.name) for record in records))
    return render(f"{len(records)} runs", subtitle, runs_page.tiles(groups), runs_page.sections(groups), version)


def _of_study(study: Study, version: str | None) -> str:
    return render(study.name, f"study · {study.place}", study_page.tiles(study), study_page.sections(study), version)


def _of_sweep(sweep: Sweep, version: str | None) -> str:
    space = sweep.space.rpartition("/")[2]
    subtitle = f"sweep over {space} · {sweep.place}"
    return render(sweep.name, subtitle, sweep_page.tiles(sweep), sweep_page.sections(sweep), version)
