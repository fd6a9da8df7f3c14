"""The command `mlpt study`. Parse, call, print; `mlpt.cli` adds it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlpt.cli_options import Overwrite
from mlpt.errors import UserError
from mlpt.reporting.text import plain_console, say, say_error

if TYPE_CHECKING:
    from mlpt.studies.moons.declaration import MoonsStudy


def study(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="STUDY [key=value ...]", help="a shipped study or a .yaml file; settings of all runs"),
    ] = None,
    studies: Annotated[bool, typer.Option("--list", help="show the shipped studies and what they ask")] = False,
    out: Annotated[str | None, typer.Option(help="its folder; default: studies/NAME")] = None,
    cells: Annotated[str | None, typer.Option(help="run these alone: NAME,NAME")] = None,
    seeds: Annotated[str | None, typer.Option(help="run these alone: 0,1,2")] = None,
    cores: Annotated[int | None, typer.Option(min=1, help="runs side by side; default: as many as fit")] = None,
    check: Annotated[bool, typer.Option("--check", help="say what would be run, and stop")] = False,
    overwrite: Overwrite = False,
) -> None:
    """A declared comparison over seeds, resumable, ending in a table with intervals (docs/STUDIES.md)."""
    from mlpt.settings import split_words
    from mlpt.stopping import Stopped
    from mlpt.studies.engine import run_study
    from mlpt.studies.moons.reading import read_moons
    from mlpt.studies.places import Places
    from mlpt.studies.plan import Plan, Selection
    from mlpt.studies.reading import read_study, shipped_studies

    names, settings = split_words(words or [])
    if studies:
        for name, question in shipped_studies():
            say(f"{name:16}  {question}")
        return
    if len(names) != 1:
        raise UserError("give one study (mlpt study --list shows the shipped ones) or the path of a .yaml file")
    if (moons := read_moons(names[0], settings)) is not None:
        _moons(moons, out, cells, seeds, cores, check, overwrite)
        return
    declared = read_study(names[0], settings)
    folder = Path(out or f"studies/{declared.name}")
    chosen = _names(cells)
    if check:
        plan, part = Plan(declared, Places(folder)), Selection.of(declared, chosen, _numbers(seeds))
        say(f"{declared.declared.question} Budget: {declared.declared.budget or 'each cell has its own'}. In {folder}:")
        for name in part.cells:
            say(f"  {name}: {plan.study.work(plan.works[name].cell)}, seeds {', '.join(map(str, part.seeds))}")
        return
    try:
        run_study(
            declared,
            folder,
            plain_console(stderr=True),
            cells=chosen,
            seeds=_numbers(seeds),
            at_once=cores,
            overwrite=overwrite,
        )
    except Stopped as stopped:
        say_error(str(stopped))
        raise typer.Exit(stopped.exit_code) from None
    say((folder / "study.md").read_text(encoding="utf-8"), whole=True)


def _moons(
    study: "MoonsStudy",
    out: str | None,
    cells: str | None,
    seeds: str | None,
    cores: int | None,
    check: bool,
    overwrite: bool,
) -> None:
    """The study of two moons, whose label counts and seeds train side by side in one process, its cells in several."""
    from mlpt.cores import available_cores
    from mlpt.stopping import Stopped
    from mlpt.studies.moons.run import run_moons

    if seeds is not None:
        raise UserError("a study of two moons has no --seeds: set seeds=N")
    folder = Path(out or f"studies/{study.name}")
    if check:
        say(f"{study.question} {study.steps:,} steps of {study.texts} texts, in {folder}:")
        for name in study.cells:
            say(f"  {name}: labels {', '.join(map(str, study.labels_of(name)))}; {len(study.seeds)} seeds")
        return
    console = plain_console(stderr=True)
    try:
        at_once = cores or available_cores()
        run_moons(study, folder, lambda text: say(text, console), _names(cells), overwrite, at_once)
    except Stopped as stopped:
        say_error(str(stopped))
        raise typer.Exit(stopped.exit_code) from None
    say((folder / "study.md").read_text(encoding="utf-8"), whole=True)


def _names(words: str | None) -> list[str]:
    return [name.strip() for name in words.split(",")] if words else []


def _numbers(words: str | None) -> list[int]:
    try:
        return [int(word) for word in words.split(",")] if words else []
    except ValueError as error:
        raise UserError(f"--seeds takes whole numbers with commas between them, not '{words}'") from error
